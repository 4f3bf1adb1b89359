"""Workdirs in an object store: what is in the bucket is always some moment of the folder."""

import contextlib
import json
import os
import sys
import threading
from pathlib import Path

import pytest
from etils import epath

from robustjax.cli import main
from robustjax.errors import UserError
from robustjax.runtime import distributed, mirror
from robustjax.runtime.mirror import Mirror, as_given, brought, workdir
from tests.analysis.conftest import Plan, write_study
from tests.runtime.fake_bucket import FakeBucket, install

ROOT = Path(__file__).parents[2]
ADDRESS = "gs://bucket/runs/one"


@pytest.fixture(autouse=True)
def bucket(tmp_path, monkeypatch):
    """The folder behind gs://bucket; local copies go below `copies`."""
    install(tmp_path / "store")
    monkeypatch.setattr(FakeBucket, "on_change", staticmethod(lambda name: None))
    monkeypatch.setenv("ROBUSTJAX_MIRROR", str(tmp_path / "copies"))
    monkeypatch.setenv("ROBUSTJAX_MIRROR_SECONDS", "1000")
    return tmp_path / "store" / "bucket"


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "_mirror" not in path.parts and ".uploads" not in path.parts
    }


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def from_bucket(tmp_path, name="fresh"):
    """What another machine would find."""
    folder = tmp_path / name
    folder.mkdir()
    Mirror(ADDRESS, folder).bring()
    return contents(folder)


FIRST = {"records.jsonl": "a\n", "state.npz": "old", "stage.json": "{}", "1/COMPLETE.json": "x"}
SECOND = {"records.jsonl": "a\nb\n", "state.npz": "new", "stage.json": "{}", "DONE": "done"}
SECOND |= {"2/arrays": "numbers", "2/COMPLETE.json": "y"}


def first_to_second(folder):
    """Appends, replaces, deletes, and adds: files of every kind."""
    with open(folder / "records.jsonl", "a") as file:
        file.write("b\n")
    replacement = folder / ".state.npz.tmp"
    replacement.write_text("new")
    os.replace(replacement, folder / "state.npz")
    write(folder, {name: SECOND[name] for name in ("2/arrays", "2/COMPLETE.json", "DONE")})
    (folder / "1" / "COMPLETE.json").unlink()


def test_what_was_written_is_there_on_another_machine(tmp_path, bucket):
    with workdir(ADDRESS) as folder:
        assert contents(folder) == {}
        write(folder, FIRST)
        write(folder, {"xla_cache/program": "no", ".write-test-1": "no", ".x.tmp": "no"})
    assert from_bucket(tmp_path) == FIRST
    assert contents(bucket / "runs" / "one") == FIRST  # each in its place, for other programs
    with workdir(ADDRESS) as folder:
        first_to_second(folder)
    assert from_bucket(tmp_path, "second") == SECOND == contents(bucket / "runs" / "one")
    assert not [path for path in (bucket / "runs" / "one" / "_mirror").rglob("*") if path.is_file()
                if path.name != "note.json"]  # fmt: skip


class DiedError(Exception):
    """The process ended here."""


def test_a_kill_at_any_change_of_the_bucket_leaves_one_moment(tmp_path):
    """At every one in turn; what another machine finds is the old or the new, and whole."""
    moments, number, died = [], 0, True
    while died:
        number += 1
        here = tmp_path / f"here-{number}"
        install(tmp_path / f"store-{number}")
        store = tmp_path / f"store-{number}" / "bucket" / "runs" / "one"
        here.mkdir()
        ours = Mirror(ADDRESS, here)
        ours.bring()
        write(here, FIRST)
        assert ours.push()
        first_to_second(here)
        died = _push_until(ours, number)
        if store.joinpath("DONE").exists():  # seen by programs that know of no note
            assert contents(store).items() >= SECOND.items()
        found = from_bucket(tmp_path, f"fresh-{number}")
        assert found in (FIRST, SECOND), number
        moments.append("first" if found == FIRST else "second")
        # And it goes on from there, on the machine that was killed as on another.
        again = Mirror(ADDRESS, here)
        again.bring()
        assert contents(here) == found
        write(here, {"more.jsonl": "c\n"})
        assert again.push()
        assert from_bucket(tmp_path, f"later-{number}") == found | {"more.jsonl": "c\n"}
        expected = {*found, "more.jsonl", "_mirror/note.json"}
        there = {p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file()}
        assert there == expected, "objects that count for nothing are deleted"
    assert moments == sorted(moments) and {*moments} == {"first", "second"}
    assert number > 10


def _push_until(ours, number):
    """Pushes, and dies instead of the `number`-th change; whether it came to that."""
    changes = 0

    def count(name):
        nonlocal changes
        changes += 1
        if changes >= number:
            raise DiedError

    FakeBucket.on_change = staticmethod(count)
    try:
        ours.push()
    except DiedError:
        return True
    finally:
        FakeBucket.on_change = staticmethod(lambda name: None)
    return False


class Counter:
    """A program that writes a record, then how many there are in another file."""

    def __init__(self, folder):
        self.folder, self.count, self.lock = folder, 0, threading.Lock()

    def step(self):
        with self.lock:  # several uploads may each ask for one
            self.count += 1
            with open(self.folder / "records.jsonl", "a") as records:
                records.write(f"{self.count}\n")
            (self.folder / ".count.tmp").write_text(str(self.count))
            os.replace(self.folder / ".count.tmp", self.folder / "count.txt")


@pytest.fixture
def counted(tmp_path):
    """A mirror and the program in its folder, which took a step."""
    folder = tmp_path / "here"
    folder.mkdir()
    ours, program = Mirror(ADDRESS, folder), Counter(folder)
    ours.bring()
    program.step()
    return ours, program


def records_and_count():
    found = contents(brought(ADDRESS))
    return len(found["records.jsonl"].splitlines()), int(found["count.txt"])


def test_a_pass_is_one_moment_though_files_are_written_while_it_freezes(counted, monkeypatch):
    ours, program = counted
    link, busy = os.link, [True, True, True]

    def while_linking(source, target):
        if busy:
            busy.pop()
            program.step()
        link(source, target)

    monkeypatch.setattr(os, "link", while_linking)
    assert ours.push()
    assert records_and_count() == (4, 4)


def test_a_pass_is_one_moment_though_files_are_written_while_it_uploads(counted, monkeypatch):
    ours, program = counted
    monkeypatch.setattr(FakeBucket, "on_change", staticmethod(lambda name: program.step()))
    assert ours.push()
    assert program.count > 3
    assert records_and_count() == (1, 1)
    assert ours.push()  # a file that was there is uploaded twice: beside its place, then to it
    records, count = records_and_count()
    assert 1 < records == count < program.count


def test_a_folder_that_never_stands_still_is_left_for_later(counted, monkeypatch):
    ours, program = counted
    link = os.link
    monkeypatch.setattr(mirror, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(os, "link", lambda *paths: (program.step(), link(*paths)))
    assert not ours.push()
    monkeypatch.setattr(os, "link", link)
    assert ours.push()
    assert records_and_count() == (program.count, program.count)


def test_what_the_bucket_does_not_know_is_forgotten(tmp_path):
    """A machine may have gone on after its last pass; another one goes on from the bucket."""
    with workdir(ADDRESS) as folder:
        write(folder, FIRST)
    write(folder, {"records.jsonl": "a\nnever seen\n", "DONE": "never seen"})
    with workdir(ADDRESS) as folder:
        assert contents(folder) == FIRST


def test_passes_are_made_while_the_command_works(tmp_path, monkeypatch, bucket):
    monkeypatch.setenv("ROBUSTJAX_MIRROR_SECONDS", "0.01")
    written = threading.Event()
    monkeypatch.setattr(
        FakeBucket,
        "on_change",
        staticmethod(lambda name: written.set() if str(name).endswith("records.jsonl") else None),
    )
    with workdir(ADDRESS) as folder:
        write(folder, FIRST)
        assert written.wait(30)


def test_a_bad_connection_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTJAX_MIRROR_SECONDS", "0.01")
    tried = threading.Semaphore(0)
    working = threading.Event()

    def change(name):
        tried.release()
        if not working.is_set():
            raise ConnectionError("no route to host")

    with workdir(ADDRESS) as folder:
        monkeypatch.setattr(FakeBucket, "on_change", staticmethod(change))
        write(folder, FIRST)
        for _ in range(3):
            assert tried.acquire(timeout=30)
        working.set()
    assert from_bucket(tmp_path) == FIRST


def test_a_bucket_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch):
    def fail(name):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(mirror, "_TRIED_AGAIN_AFTER_SECONDS", (0.0, 0.0))
    said = r"gs://bucket/runs/one: cannot be reached \(ConnectionError: no route to host\); check"
    with pytest.raises(UserError, match=said):
        with workdir(ADDRESS) as folder:
            write(folder, FIRST)
            monkeypatch.setattr(FakeBucket, "on_change", staticmethod(fail))
    with pytest.raises(UserError, match=said):
        with workdir(ADDRESS):
            raise AssertionError
    failures = [1, 2]
    with workdir_later(monkeypatch, failures) as folder:
        write(folder, FIRST)
    assert failures == [] and from_bucket(tmp_path) == FIRST


@contextlib.contextmanager
def workdir_later(monkeypatch, failures):
    """A workdir whose last pass fails a few times."""

    def fail_at_first(name):
        if failures:
            failures.pop()
            raise ConnectionError("no route to host")

    monkeypatch.setattr(FakeBucket, "on_change", staticmethod(lambda name: None))
    with workdir(ADDRESS) as folder:
        yield folder
        monkeypatch.setattr(FakeBucket, "on_change", staticmethod(fail_at_first))


def test_a_workdir_that_is_written_to_for_ever_is_told(monkeypatch):
    monkeypatch.setattr(mirror, "_TRIED_AGAIN_AFTER_SECONDS", (0.0,))
    with pytest.raises(UserError, match="files are still being written"):
        with workdir(ADDRESS):
            monkeypatch.setattr(Mirror, "push", lambda self: False)


def test_two_on_one_machine_are_told():
    with workdir(ADDRESS):
        with pytest.raises(UserError, match="another process works in this workdir; wait"):
            with workdir(ADDRESS):
                raise AssertionError


def test_who_was_replaced_by_another_machine_stops(tmp_path):
    machines = [tmp_path / "one", tmp_path / "two"]
    for folder in machines:
        folder.mkdir()
    first, second = (Mirror(ADDRESS, folder) for folder in machines)
    first.bring()
    write(machines[0], FIRST)
    assert first.push()
    second.bring()
    write(machines[0], SECOND)
    with pytest.raises(UserError, match="another process works in this workdir now"):
        first.push()
    write(machines[1], {"more.jsonl": "c\n"})
    assert second.push()
    assert from_bucket(tmp_path) == FIRST | {"more.jsonl": "c\n"}


def test_models_and_runs_are_brought_to_be_read(tmp_path, bucket):
    files = {"summary.json": "{}", "rounds/003/model/arrays": "3", "rounds/002/model/arrays": "2"}
    with workdir(ADDRESS) as folder:
        write(folder, files)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    part = brought(f"{ADDRESS}/rounds/003")
    assert contents(part) == {"model/arrays": "3"}
    assert contents(part.parents[1]) == {"summary.json": "{}", "rounds/003/model/arrays": "3"}
    assert contents(brought(ADDRESS)) == files
    assert brought(ADDRESS).name == "one"
    with workdir(ADDRESS) as folder:
        (folder / "rounds" / "002" / "model" / "arrays").unlink()
    write(folder, {"DONE": "of an earlier copy"})
    assert contents(brought(ADDRESS)) == {name: files[name] for name in [*files][:2]}

    write(bucket / "copied", {"config.json": "{}", "deeper/weights": "w"})  # by no mirror
    assert contents(brought("gs://bucket/copied")) == {"config.json": "{}", "deeper/weights": "w"}
    with pytest.raises(UserError, match="gs://bucket/nothing: there is nothing"):
        brought("gs://bucket/nothing")
    assert not brought("gs://bucket/nothing", may_be_new=True).exists()
    assert brought("some/folder").as_posix() == "some/folder"


def test_a_forecast_disturbs_nobody(bucket, capsys, monkeypatch):
    """It looks at a workdir in which another process works, and leaves it as it is."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    command = ["study", "--config=tests/tiny_study.py", f"--workdir={ADDRESS}", "--dry_run"]
    with workdir(ADDRESS) as folder:
        write(folder, FIRST)
    before = (bucket / "runs" / "one" / "_mirror" / "note.json").read_bytes()
    assert main(command) == 0
    assert "finetune/nano-27k-s0" in capsys.readouterr().out
    assert (bucket / "runs" / "one" / "_mirror" / "note.json").read_bytes() == before


def test_damage_is_told(bucket):
    with workdir(ADDRESS) as folder:
        write(folder, FIRST)
    (folder / "records.jsonl").unlink()
    (bucket / "runs" / "one" / "records.jsonl").write_text("b\n")
    with pytest.raises(UserError, match="gs://bucket/runs/one/records.jsonl: not what was written"):
        with workdir(ADDRESS):
            raise AssertionError
    (bucket / "runs" / "one" / "_mirror" / "note.json").write_text("[")
    with pytest.raises(UserError, match="note.json: not a note of a mirror"):
        brought(ADDRESS)


def test_a_local_workdir_is_its_own_folder(tmp_path):
    with workdir(tmp_path / "w") as folder:
        assert folder == tmp_path / "w" and not folder.exists()
    assert as_given("runs/x/report", "runs/x", "runs/x") == "runs/x/report"
    place = mirror._place(ADDRESS)
    assert (
        as_given(place / "report" / "index.html", ADDRESS, place) == f"{ADDRESS}/report/index.html"
    )
    assert as_given(place, f"{ADDRESS}/", place) == ADDRESS


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: 2)
    with pytest.raises(UserError, match="several processes need a folder that all of them see"):
        with workdir(ADDRESS):
            raise AssertionError
    with workdir("local/folder") as folder:
        assert folder == Path("local/folder")


def test_errors_name_what_was_given():
    with pytest.raises(UserError, match=f"workdir of another config; delete {ADDRESS}/x"):
        with workdir(ADDRESS) as folder:
            raise UserError(f"workdir of another config; delete {folder}/x")


def test_a_report_is_read_from_a_bucket_and_written_to_it(tmp_path, bucket, capsys):
    plan = Plan(sizes={"nano-28k": 28_320}, num_rounds=1, num_examples=4)
    with workdir(ADDRESS) as folder:
        write_study(folder, plan)
    assert main(["report", ADDRESS, "--out=gs://bucket/report"]) == 0
    assert capsys.readouterr().out == "gs://bucket/report/index.html\n"
    write_study(tmp_path / "one", plan)
    assert main(["report", str(tmp_path / "one"), f"--out={tmp_path / 'report'}"]) == 0
    here, there = tmp_path / "report", bucket / "report"
    names = {path.name for path in here.iterdir()}
    assert {path.name for path in there.iterdir()} == names | {"_mirror"}
    assert all((here / name).read_bytes() == (there / name).read_bytes() for name in names)


def test_a_note_is_what_a_person_can_read(bucket):
    with workdir(ADDRESS) as folder:
        write(folder, {"DONE": "x"})
    note = json.loads((epath.Path(ADDRESS) / "_mirror" / "note.json").read_text())
    assert note["generation"] == 1
    assert note["files"] == {"DONE": {"size": 1, "crc32": 2363233923, "at": "DONE"}}

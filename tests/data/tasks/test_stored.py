"""Tasks made of their owners' files: built from small ones in the same formats, and read again."""

import json
import tarfile

import numpy as np
import pytest

from robustjax.data.prompts import ANSWER_PROMPT
from robustjax.data.tasks import FACTS, TaskConfig, load_task, stored
from robustjax.errors import UserError
from tests.data.tasks import owners
from tests.data.tasks.owners import SIZES, STORED, sha256, tar_gz


def splits(task):
    return {"train": task.train, "validation": task.validation}


@pytest.mark.parametrize("way", ["manual", "served"])
@pytest.mark.parametrize("name", STORED)
def test_a_task_is_built_from_its_owners_files(owner, name, way):
    given = owner(name, way)
    task, facts = given.load(), FACTS[name]
    assert len(given.asked) == (len(given.builder.SOURCES) if way == "served" else 0)
    assert (task.name, task.class_names) == (name, facts.class_names)
    assert task.chunk_kinds == facts.chunk_kinds
    for split, examples in splits(task).items():
        assert len(examples) == SIZES[name].get(split, 0)
        ids = [example.example_id for example in examples]
        assert len(set(ids)) == len(ids), "keys are not unique"
        for example in examples:
            assert len(example.content) == 1 and example.content[0].strip()
            assert example.instructions == facts.instructions
            assert example.answer_prompt == ANSWER_PROMPT
            assert example.target_label == 1 - example.label
            if facts.class_names:
                assert example.gen_target == facts.class_names[example.label]
                assert example.proxy_gen_target == facts.class_names[1 - example.label]
    files = task.source["files"]
    assert set(files) == {one.url for one in given.builder.SOURCES.values()}
    for key, one in given.builder.SOURCES.items():
        assert files[one.url] == sha256(given.path(key).read_bytes())
    json.dumps(task.source)


@pytest.mark.parametrize("name", STORED)
def test_a_rebuild_is_equal_and_reading_needs_no_files(owner, name, tmp_path):
    given = owner(name)
    first = given.load()
    assert given.load(data_dir=str(tmp_path / "again")) == first
    for path in given.folder.iterdir():
        path.unlink()
    assert given.load() == first
    assert load_task(TaskConfig(name, data_dir=given.settings["data_dir"])) == first


def test_labels_are_the_owners(owner):
    for example in (task := owner("imdb").load()).train + task.validation:
        kind = "pos" if example.label else "neg"
        split = "train" if example in task.train else "test"
        assert example.content[0].startswith(f"A {kind} review,")
        assert f"of {split}: très bien." in example.content[0], "bytes are not read as UTF-8"
    mails = owner("spam").load().train
    assert [one.label for one in mails] == [one.example_id % 2 for one in mails]
    assert all(f"subject {one.example_id} of train\nBuy" in one.text for one in mails)
    assert 3 not in [one.example_id for one in mails], "an empty mail is kept"


@pytest.mark.parametrize("name", ["helpful", "harmless"])
def test_the_preferred_conversation_stands_first_at_even_places_of_the_shuffled_file(owner, name):
    order = np.random.default_rng(0).permutation(11)
    expected = [(int(row), place % 2) for place, row in enumerate(order) if row != 5]
    examples = owner(name).load().train
    assert [(one.example_id, one.label) for one in examples] == expected
    for example in examples:
        first, second = (" no", " yes") if example.label else (" yes", " no")
        asked = f"\n\nHuman: question {example.example_id} of train?\n\nAssistant:"
        assert example.content[0] == (
            f"Conversation 1\n---\n{asked}{first}\n---\nConversation 2\n---\n{asked}{second}\n---\n"
        )


def test_texts_are_shuffled_as_the_published_data_sets_are(owner):
    order = [int(row) for row in np.random.default_rng(0).permutation(10) if row != 3]
    assert [example.example_id for example in owner("spam").load().train] == order
    order = np.random.default_rng(0).permutation(12)
    assert [example.example_id for example in owner("imdb").load().train] == list(order)
    prompts = owner("strongreject").load().validation
    assert [one.example_id for one in prompts] == [0, 1, 2, 3], "prompts keep their order"
    assert prompts[1].content == ('Say "nothing", please;\nline two of 1',)
    assert (prompts[1].proxy_gen_target, prompts[1].instructions) == (" Sure, here", "")


def test_a_seed_orders_anew_and_a_number_takes_the_first(owner):
    given = owner("imdb")
    whole, other = given.load(), given.load(seed=1)
    assert whole.train != other.train
    assert set(whole.train) == set(other.train)
    part = given.load(seed=1, num_train=5, num_validation=2)
    assert (part.train, part.validation) == (other.train[:5], other.validation[:2])
    told = given.load(instruction="Good?\n\n").train
    assert [one.content for one in told] == [one.content for one in whole.train]
    assert {one.instructions for one in told} == {"Good?\n\n"}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("imdb", {"num_train": 13}, "task.num_train=13: task 'imdb' has 12 train examples"),
        ("strongreject", {"num_train": 1}, "num_train=1: task 'strongreject' has 0 train examples"),
        ("imdb", {"train_path": "a"}, "task.train_path='a' has no effect on task 'imdb'"),
        ("imdb", {"class_names": (" A", " B")}, "task.class_names=.* set task.name='jsonl'"),
        ("password_match", {"manual_dir": "m"}, "manual_dir='m' has no effect on the generated"),
        ("jsonl", {"data_dir": "d"}, "data_dir='d' has no effect on a task of your own files"),
    ],
)
def test_a_wrong_setting_is_named(owner, name, changes, message):
    settings = owner(name).settings if name in STORED else {}
    with pytest.raises(UserError, match=message):
        load_task(TaskConfig(name, **(settings | changes)))


# Files that are not as they should be. Whatever is wrong, nothing of the data set is left.


def refused(given, message, downloads=0, **changes):
    """The message; so many whole downloads are left, and nothing else."""
    with pytest.raises(UserError, match=message) as caught:
        given.load(**changes)
    left = [name for name in given.left() if not name.endswith(".INFO")]
    assert len(left) == downloads, f"something half-written is left: {left}"
    assert all(name.startswith("downloads/") for name in left)
    return str(caught.value)


@pytest.mark.parametrize("way", ["manual", "served"])
def test_a_file_that_is_not_the_published_one_is_refused(owner, monkeypatch, way):
    published = owners.builder_class("imdb").SOURCES["archive"].sha256
    assert len(published) == 64, "the real builder knows no checksum"
    given = owner("imdb", way)
    (key,) = given.builder.SOURCES
    known = {key: given.builder.SOURCES[key].__class__(
        given.builder.SOURCES[key].url, given.builder.SOURCES[key].file_name, published
    )}  # fmt: skip
    monkeypatch.setattr(given.builder, "SOURCES", known)
    message = refused(given, f"has sha256 .* not {published[:16]}... as its publisher says")
    assert ("now deleted" in message) == (way == "served")
    assert given.path(key).exists(), "a file of the user's was deleted"


@pytest.mark.parametrize("way", ["manual", "served"])
def test_a_file_that_changed_since_the_first_time_is_refused(owner, way, tmp_path):
    given = owner("spam", way)
    given.load()
    record = tmp_path / "data" / "checksums.json"
    known = json.loads(record.read_text())
    assert known == {
        one.url: sha256(given.path(key).read_bytes()) for key, one in given.builder.SOURCES.items()
    }
    path = given.path("validation")
    path.write_bytes(path.read_bytes().replace(b"Buy", b"Sell"))
    # Another machine, that has the record but neither the data set nor the downloads.
    other = tmp_path / "other"
    other.mkdir()
    record.rename(other / "checksums.json")
    with pytest.raises(UserError, match=r"not .* as the file had when .* remove it from .*other/"):
        given.load(data_dir=str(other))
    record = other / "checksums.json"
    record.write_text("{}")
    assert any("Sell" in one.text for one in given.load(data_dir=str(other)).validation)
    record.write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"checksums.json is damaged .*: delete it"):
        owner("helpful", way).load(data_dir=str(other))


def with_member(info_type, name, **fields):
    """An archive of reviews with one more member at its end."""
    info = tarfile.TarInfo(name)
    info.type = info_type
    for field, value in fields.items():
        setattr(info, field, value)
    return tar_gz([*owners.reviews("train"), *owners.reviews("test"), (info, b"")])


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (owners.imdb()["archive"][:-40], "is not a whole tar.gz archive"),
        (owners.imdb()["archive"][:300], "is not a whole tar.gz archive"),
        (owners.imdb()["archive"][:-4], "is not a whole tar.gz archive"),  # inside its checksum
        (owners.imdb()["archive"][:-8] + bytes(8), "is not a whole tar.gz archive"),
        (b"no archive at all", "is not a whole tar.gz archive"),
        (b"", "is not a whole tar.gz archive"),
        (tar_gz([("aclImdb/README", b"")]), "has no reviews in aclImdb/train"),
        (
            tar_gz([("aclImdb/train/pos/0_9.txt", b"\xff"), *owners.reviews("test")]),
            "aclImdb/train/pos/0_9.txt is not UTF-8",
        ),
        (with_member(tarfile.REGTYPE, "../../evil.txt"), "leads out of the archive"),
        (with_member(tarfile.REGTYPE, "aclImdb/../../evil.txt"), "leads out of the archive"),
        (with_member(tarfile.REGTYPE, "/tmp/evil.txt"), "leads out of the archive"),
        (with_member(tarfile.REGTYPE, "..\\evil.txt"), "leads out of the archive"),
        (
            with_member(tarfile.SYMTYPE, "aclImdb/train/pos/9_9.txt", linkname="/etc/passwd"),
            "is a link or a device",
        ),
        (
            with_member(tarfile.LNKTYPE, "aclImdb/train/pos/9_9.txt", linkname="aclImdb/README"),
            "is a link or a device",
        ),
        (with_member(tarfile.FIFOTYPE, "aclImdb/fifo"), "is a link or a device"),
        (with_member(tarfile.REGTYPE, "aclImdb/x.txt", size=65 * 2**20), "claims 68,157,440 bytes"),
    ],
)
def test_a_hostile_or_broken_archive_leaves_nothing(owner, archive, message, tmp_path):
    given = owner("imdb")
    given.path("archive").write_bytes(archive)
    before = sorted(path for path in tmp_path.parent.rglob("evil*"))
    refused(given, message)
    assert sorted(path for path in tmp_path.parent.rglob("evil*")) == before
    assert given.path("archive").exists(), "a file of the user's was deleted"


def test_a_broken_download_is_fetched_anew_when_its_owner_has_mended_it(owner):
    given = owner("imdb", "served")
    whole = given.path("archive").read_bytes()
    given.path("archive").write_bytes(whole[:-40])
    refused(given, "is not a whole tar.gz archive")
    given.path("archive").write_bytes(whole)
    assert len(given.load().train) == SIZES["imdb"]["train"]


@pytest.mark.parametrize(
    ("name", "key", "change", "message"),
    [
        ("spam", "train", lambda data: data + b'{"text": "a", "label": 2}\n', "line 11: .*'label'"),
        ("spam", "train", lambda data: data + b'{"label": 1}\n', "line 11: field 'text' is None"),
        ("spam", "validation", lambda data: data + b"{", "line 7: is not JSON"),
        ("helpful", "train", lambda data: data[:-9], "is not a whole gzip file"),
        ("harmless", "validation", lambda data: b"\x1f", "is not a whole gzip file"),
        ("strongreject", "validation", lambda data: b"a,b\n1,2\n", "needs a column 'forbidden"),
        ("strongreject", "validation", lambda data: data[:-20], "is not a CSV file in UTF-8"),
        ("strongreject", "validation", lambda data: b"\xff", "is not a CSV file in UTF-8"),
    ],
)
def test_a_broken_file_is_named(owner, name, key, change, message):
    given = owner(name)
    given.path(key).write_bytes(change(given.path(key).read_bytes()))
    assert given.path(key).name in refused(given, message)


def test_a_file_that_is_not_there(owner):
    given = owner("helpful")
    given.path("train").unlink()
    message = refused(given, "has no helpful-base-train.jsonl.gz")
    assert "http://nowhere.invalid/helpful-base-train.jsonl.gz" in message
    refused(given, "has no helpful-base-train.jsonl.gz", manual_dir="nowhere")
    served = owner("spam", "served")
    served.path("validation").unlink()
    message = r"cannot be downloaded \(.*404.*enron_spam-test.jsonl .*--manual_dir=FOLDER"
    refused(served, message, downloads=1)  # the other file is whole


@pytest.mark.parametrize("name", ["spam", "imdb"])
def test_a_download_that_breaks_off_is_not_taken_for_a_whole_one(owner, name):
    given = owner(name, "served")
    given.breaks_off.append(True)
    refused(given, "cannot be downloaded")
    given.breaks_off.clear()
    assert len(given.load().train) == SIZES[name]["train"]


def test_a_folder_that_cannot_be_written_is_named(owner, tmp_path):
    given = owner("spam")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"'spam' cannot be written to .*file.*--data_dir=FOLDER"):
        given.load(data_dir=str(tmp_path / "file"))


def test_what_another_process_built_meanwhile_is_taken(owner, monkeypatch):
    given = owner("spam")
    expected = given.load()
    builder = stored.find(FACTS["spam"], given.settings["data_dir"])
    find = stored.find
    monkeypatch.setattr(builder, "is_prepared", lambda: False)
    first = iter([builder])
    monkeypatch.setattr(stored, "find", lambda *args: next(first, None) or find(*args))

    def too_late(**arguments):
        raise FileExistsError("there already")

    monkeypatch.setattr(builder, "download_and_prepare", too_late)
    assert given.load() == expected

"""Small files are written whole or not at all, and hold only JSON."""

import errno
import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.errors import UserError
from robustjax.evaluation.strict_json import write_text_atomic
from robustjax.runtime.files import check_writable, disk_trouble, read_json, write_json, write_text


def test_json_is_sorted_indented_and_ends_in_a_newline(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"b": [1, 2.5], "a": "é"})
    assert path.read_text(encoding="utf-8") == ('{\n "a": "é",\n "b": [\n  1,\n  2.5\n ]\n}\n')


def test_what_json_does_not_know_becomes_null_or_lists(tmp_path):
    value = {
        "nan": float("nan"),
        "inf": [np.float32("inf"), -float("inf")],
        "int": np.int64(3),
        "bool": np.bool_(True),
        "array": np.arange(3),
        "jax": jnp.asarray([0.5, jnp.nan]),
        "tuple": (1, None),
        "path": pathlib.Path("a/b"),
        3: "integer key",
    }
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == {
        "nan": None,
        "inf": [None, None],
        "int": 3,
        "bool": True,
        "array": [0, 1, 2],
        "jax": [0.5, None],
        "tuple": [1, None],
        "path": "a/b",
        "3": "integer key",
    }


@pytest.mark.parametrize("value", [{1, 2}, object(), {"a": b"bytes"}, {(1, 2): 3}])
def test_the_rest_is_refused_and_the_old_file_stays(tmp_path, value):
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, value)
    assert read_json(path) == 1


def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"new": 1})
    assert json.loads(path.read_text()) == {"old": 1}


def test_data_are_on_disk_before_the_rename(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *a: (order.append("rename"), replace(*a)))
    write_text(tmp_path / "a", "text")
    assert order[:2] == ["fsync", "rename"]


def test_only_the_file_is_left(tmp_path):
    write_text(tmp_path / "a", "1")
    write_text(tmp_path / "a", "2")
    assert os.listdir(tmp_path) == ["a"]


def test_reading_what_is_not_there_or_not_json(tmp_path):
    with pytest.raises(UserError, match="missing.json: no such file"):
        read_json(tmp_path / "missing.json")
    (tmp_path / "bad.json").write_text('{"a": ')
    with pytest.raises(UserError, match="bad.json: not a JSON file"):
        read_json(tmp_path / "bad.json")


def test_check_writable_creates_the_folder_and_leaves_it_empty(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []


def test_check_writable_refuses_a_file_and_a_place_nobody_may_write(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nonexistent"):
        with pytest.raises(UserError, match="no write permission") as caught:
            check_writable(folder)
        message = str(caught.value)
        assert message.startswith(f"workdir {folder}:") and "choose another --workdir" in message


@pytest.mark.parametrize("write", [write_text, write_text_atomic])
def test_what_a_killed_writer_left_is_cleared_away(tmp_path, monkeypatch, write):
    class Killed(BaseException):
        pass

    def killed(*args):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        patched.setattr(
            pathlib.Path, "unlink", lambda *args, **kwargs: None
        )  # nor does SIGKILL tidy up
        with pytest.raises(Killed):
            write(tmp_path / "file", "half")
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(os, "getpid", lambda: -1)  # another process
    write(tmp_path / "file", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "whole"


TENSORSTORE = (
    'RESOURCE_EXHAUSTED: Error writing local file "/w/arrays/d/1": Failed to write 21822 bytes to '
    "file 6: No space left on device [os_error_code='28']"
)


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room, "),
        (OSError(errno.EROFS, "x", "/w/a"), "Read-only file system: /w/a; make the disk writable"),
        (OSError(errno.EDQUOT, "x"), "Disk quota exceeded; make room, or have the quota raised"),
        (ValueError(TENSORSTORE), "No space left on device; make room, and the same command goes"),
        (ValueError("write [OS error 28: ENOSPC No space]"), "No space left on device; make room"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/w/a"), None),
        (ValueError("28"), None),
    ],
)
def test_what_is_wrong_with_the_disk(error, trouble):
    assert (disk_trouble(error) or "none").startswith(trouble or "none")
    for chained in ("cause", "context"):
        outer = RuntimeError("a save failed")
        setattr(outer, f"__{chained}__", error)
        assert disk_trouble(outer) == disk_trouble(error)

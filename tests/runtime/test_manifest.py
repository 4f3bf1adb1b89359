"""The manifest says what a result was made with."""

import shutil
import subprocess

import jax
import pytest

from robustjax.runtime.files import read_json
from robustjax.runtime.manifest import (
    config_hash,
    device_table,
    git_commit,
    versions,
    write_manifest,
)


def test_versions_name_what_a_result_depends_on():
    found = versions()
    assert found["jax"] == jax.__version__
    needed = {"python", "jax", "jaxlib", "flax", "optax", "orbax", "transformers", "tokenizers"}
    assert needed | {"numpy", "robustjax"} == found.keys()
    assert all(found[name] for name in needed)


def test_git_commit(tmp_path, monkeypatch):
    assert shutil.which("git")
    monkeypatch.delenv("ROBUSTJAX_COMMIT", raising=False)
    assert git_commit(tmp_path) is None

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *identity, "-C", tmp_path, *arguments], check=True, capture_output=True
        )
        return done.stdout.decode().strip()

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert git_commit(tmp_path) == commit
    (tmp_path / "new_file").write_text("")  # untracked: results of runs, mostly
    assert git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == commit + "-dirty"
    monkeypatch.setenv("ROBUSTJAX_COMMIT", "f00d-dirty")  # of code that was sent without its past
    assert git_commit(tmp_path) == commit + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert git_commit(tmp_path) == "f00d-dirty"
    monkeypatch.delenv("ROBUSTJAX_COMMIT")
    assert git_commit(tmp_path) is None


def test_config_hash_sees_values_and_nothing_else():
    config = {"attack": {"name": "gcg", "sizes": (1, 2)}, "seed": 0, "learning_rate": 1e-5}
    known = config_hash(config, 1)
    assert len(known) == 16 and int(known, 16) >= 0
    assert known == config_hash(
        {"learning_rate": 1e-5, "seed": 0, "attack": {"sizes": [1, 2], "name": "gcg"}}, 1
    )
    assert known != config_hash(config, 2)
    assert known != config_hash(config | {"seed": 1}, 1)
    # Committed, because an accidental change would orphan every finished stage on disk.
    assert config_hash({"a": 1}, 1) == "9476040d448974da"


def test_config_hash_refuses_what_has_no_canonical_form():
    with pytest.raises(ValueError):
        config_hash({"a": float("nan")}, 1)
    with pytest.raises(TypeError):
        config_hash({"a": object()}, 1)


def test_write_manifest(tmp_path):
    write_manifest(
        tmp_path, config={"a": 1}, config_hash="ab", seeds={"attack": 3}, extra={"flops": 10}
    )
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["config"] == {"a": 1} and manifest["config_hash"] == "ab"
    assert manifest["seeds"] == {"attack": 3} and manifest["flops"] == 10
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["devices"] == device_table()
    assert len(manifest["devices"]) == len(jax.devices())
    assert manifest["devices"][0]["platform"] == "cpu"
    assert "git_commit" in manifest
    with pytest.raises(ValueError, match="'seeds'"):
        write_manifest(tmp_path, config={}, config_hash="", seeds={}, extra={"seeds": 1})

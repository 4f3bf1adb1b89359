"""What a result was made with: config, seeds, versions, commit, devices."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from robustjax.runtime.files import StrPath, write_json

COMMIT_VARIABLE = "ROBUSTJAX_COMMIT"
"""Tells the commit of code that came without its repository, as what the launch scripts send."""

_DISTRIBUTIONS = {
    "robustjax": "robustjax",
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "numpy": "numpy",
}


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages a result depends on; None for one not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name, distribution in _DISTRIBUTIONS.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_commit(folder: StrPath) -> str | None:
    """The commit checked out in a folder, with "-dirty" when tracked files differ from it.

    Outside a git checkout, or where git is missing, what `ROBUSTJAX_COMMIT` says; else None.
    """
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get(COMMIT_VARIABLE) or None
    return commit + ("-dirty" if changes else "")


def _git(folder: StrPath, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.stdout.strip()


def device_table() -> list[dict[str, Any]]:
    """One row per device of the run: id, process, platform, kind."""
    import jax  # here, because reading records needs no JAX

    return [
        {
            "id": device.id,
            "process": device.process_index,
            "platform": device.platform,
            "kind": device.device_kind,
        }
        for device in jax.devices()
    ]


def config_hash(config: dict[str, Any], schema_version: int) -> str:
    """Names a configuration: 16 hex digits of the SHA-256 of its canonical JSON.

    Key order, and tuple or list, do not matter; every value does. Raise `schema_version` when the
    meaning of a field changes, so that old results are not taken for new ones.

    Raises:
        TypeError: a value JSON has no word for.
        ValueError: a NaN or an infinity.
    """
    text = json.dumps(
        {"config": config, "schema_version": schema_version},
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_manifest(
    folder: StrPath,
    *,
    config: dict[str, Any],
    config_hash: str,
    seeds: dict[str, int],
    extra: dict[str, Any] | None = None,
) -> None:
    """Writes `manifest.json` into a folder.

    Args:
        folder: the run's or the stage's folder.
        config: the whole configuration, with defaults filled in.
        config_hash: the hash of the leaves that define the result.
        seeds: every seed of the run by name.
        extra: what else belongs there (FLOPs, precision, mesh), merged in at the top level.

    Raises:
        ValueError: `extra` would overwrite a field of the manifest.
    """
    manifest = {
        "config": config,
        "config_hash": config_hash,
        "seeds": seeds,
        "versions": versions(),
        "git_commit": git_commit(Path(__file__).parent),
        "devices": device_table(),
    }
    clash = sorted(manifest.keys() & (extra or {}).keys())
    if clash:
        raise ValueError(f"manifest extra: {clash[0]!r} is a field of every manifest; rename it")
    write_json(f"{folder}/manifest.json", manifest | (extra or {}))

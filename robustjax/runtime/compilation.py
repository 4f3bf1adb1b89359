"""Keeping compiled programs, so that a resumed run does not compile again."""

import os
from pathlib import Path

import jax

from robustjax.runtime.files import StrPath, is_remote

_WORTH_KEEPING_SECONDS = 0.5


def keep_compiled_programs(workdir: StrPath) -> None:
    """Keeps them beside the results, unless the environment names a place or the disk is remote."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and not is_remote(workdir):
        folder = Path(workdir).resolve() / "xla_cache"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING_SECONDS)

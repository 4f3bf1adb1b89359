"""Compiled programs: on disk for a resumed run, and in memory no more than there is room for."""

import os
from pathlib import Path

import jax

from robustjax.runtime.files import StrPath, is_remote

MAX_CACHE_BYTES = 4 * 2**30

_WORTH_KEEPING_SECONDS = 0.5
_MAPS, _MAX_MAPS = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")


def keep_compiled_programs(workdir: StrPath) -> None:
    """Keeps them beside the results, unless the environment names a place or the disk is remote.

    The key is JAX's own: the program, its options, the device, and the versions of what compiles.
    Of several processes JAX lets the first alone write, and all read.
    Past `MAX_CACHE_BYTES`, or what `JAX_COMPILATION_CACHE_MAX_SIZE` says, those that were not asked
    for the longest go first.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and not is_remote(workdir):
        folder = Path(workdir).resolve() / "xla_cache"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING_SECONDS)
        if not os.environ.get("JAX_COMPILATION_CACHE_MAX_SIZE"):
            jax.config.update("jax_compilation_cache_max_size", MAX_CACHE_BYTES)


def make_room_for_programs(max_share: float = 0.5) -> bool:
    """Lets go of all programs in memory when they fill the process's table of memory maps.

    On a CPU each program takes about six entries of that table, of which Linux allows 65,530 by
    default; one more and the compiler ends the process. A long search over texts of many lengths
    gets there. A program that is needed again comes from the disk, or is compiled again.

    Args:
        max_share: share of the table that may be filled.

    Returns:
        Whether they were let go; never where there is no such table.
    """
    if not (_MAPS.exists() and _MAX_MAPS.exists()):
        return False
    with _MAPS.open("rb") as maps:
        used = sum(1 for _ in maps)
    if used <= max_share * int(_MAX_MAPS.read_text()):
        return False
    jax.clear_caches()
    return True

"""Programs in memory: let go before the process's table of memory maps is full, not earlier."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from robustjax.runtime import compilation
from robustjax.runtime.compilation import make_room_for_programs

MAPS, MAX_MAPS = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")


def used() -> int:
    return len(MAPS.read_text().splitlines())


@pytest.fixture
def program():
    """A jitted function with thirty programs in memory, and no others."""
    jax.clear_caches()

    @jax.jit
    def double(x):
        return 2 * x

    for size in range(1, 31):
        double(jnp.zeros(size))
    return double


def test_programs_stay_while_there_is_room(program):
    assert not make_room_for_programs()

    assert program._cache_size() == 30


def test_a_fuller_table_lets_them_go_and_they_still_compute(program):
    before = used()
    share = (before - 1) / int(MAX_MAPS.read_text())

    assert make_room_for_programs(share)

    assert program._cache_size() == 0
    assert used() <= before - 2 * 30  # at least two maps a program
    assert program(jnp.ones(3)).tolist() == [2.0, 2.0, 2.0]


def test_a_system_without_the_table_keeps_its_programs(program, monkeypatch, tmp_path):
    monkeypatch.setattr(compilation, "_MAPS", tmp_path / "maps")

    assert not make_room_for_programs(0.0)

    assert program._cache_size() == 30


def test_programs_on_the_disk_stay_within_their_bound(tmp_path):
    program = """
import sys
import jax, jax.numpy as jnp
from robustjax.runtime import compilation

compilation.MAX_CACHE_BYTES, compilation._WORTH_KEEPING_SECONDS = int(sys.argv[2]), 0.0
compilation.keep_compiled_programs(sys.argv[1])
for size in range(1, 9):
    jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((size, size)))
"""

    def kept(name, most):
        folder = tmp_path / name
        subprocess.run([sys.executable, "-c", program, str(folder), str(most)], check=True)
        return [file.stat().st_size for file in folder.glob("xla_cache/*-cache")]

    everything = kept("all", 10**9)
    assert len(everything) >= 8
    few = kept("few", sum(everything) // 3)
    assert 0 < sum(few) <= sum(everything) // 3

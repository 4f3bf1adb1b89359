"""Programs in memory: let go before the process's table of memory maps is full, not earlier."""

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

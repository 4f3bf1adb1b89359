"""The bound is whatever takes longest at the published peaks."""

import pytest

from robustjax.planning.chips import parse_slice
from robustjax.planning.hlo_costs import Collective, Costs
from robustjax.planning.roofline import bound

PLACES = [(x, y) for x in range(4) for y in range(4)]
LINE = Collective("all-reduce", 4_000_000, (0, 1, 2, 3), 1, "", False)
SLICE = parse_slice("v5e:4x4")


def of(flops=None, moved=0.0, collectives=(), chosen=SLICE, places=PLACES):
    return bound(Costs(flops or {}, moved, tuple(collectives)), chosen, places)


def test_products_at_the_peak_rate():
    found = of({1: 197e12})
    assert (found.compute, found.limit) == (pytest.approx(1.0), "compute")


def test_float32_products_take_their_passes():
    assert of({6: 197e12}).seconds == pytest.approx(6 * of({1: 197e12}).seconds)


def test_memory_at_its_bandwidth():
    found = of({1: 1e9}, moved=819e9)
    assert (found.memory, found.limit, found.seconds) == (pytest.approx(1.0), "memory", 1.0)


def test_a_line_of_chips_has_one_link():
    found = of(collectives=[LINE])
    assert found.interconnect == pytest.approx(2 * 4e6 * 3 / 4 / 50e9)
    assert found.limit == "interconnect"


def test_a_group_over_both_axes_uses_both():
    square = Collective("all-reduce", 4_000_000, (0, 1, 4, 5), 1, "", False)
    assert of(collectives=[LINE]).interconnect == pytest.approx(
        2 * of(collectives=[square]).interconnect
    )


def test_a_ring_has_a_way_back():
    ring = parse_slice("v5p:4x4x1")
    places = [(*place, 0) for place in PLACES]
    found = of(collectives=[LINE], chosen=ring, places=places)
    assert found.interconnect == pytest.approx(2 * 4e6 * 3 / 4 / (2 * 100e9))

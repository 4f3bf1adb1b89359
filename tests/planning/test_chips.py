"""Slices and what they say of their chips, hosts and links."""

import pytest

from robustjax.errors import UserError
from robustjax.planning.chips import GENERATIONS, parse_slice


@pytest.mark.parametrize(
    ("name", "chips", "host_chips"),
    [
        ("v5e:1x1", 1, (1, 1)),
        ("v5e:4x4", 16, (2, 2)),
        ("v6e:16x16", 256, (2, 2)),
        ("v4:2x2x1", 4, (2, 2, 1)),
        ("v5p:4x4x8", 128, (2, 2, 1)),
    ],
)
def test_a_slice_is_its_chips(name, chips, host_chips):
    chosen = parse_slice(name)
    assert (chosen.name, chosen.chips) == (name, chips)
    assert chosen.host_chips == host_chips


def test_an_axis_is_a_ring_only_where_it_closes():
    assert [parse_slice("v5e:4x16").links(axis, size) for axis, size in ((0, 4), (1, 16))] == [1, 2]
    assert [parse_slice("v5p:4x4x1").links(axis, 4) for axis in (0, 1)] == [2, 2]


def test_chips_of_a_part_of_a_ring_are_a_line():
    assert [parse_slice("v5e:4x16").links(1, extent) for extent in (1, 4, 16)] == [0, 1, 2]


def test_newer_chips_of_a_kind_do_more():
    old, new = GENERATIONS["v5e"], GENERATIONS["v6e"]
    assert old.flops < new.flops and old.hbm_bytes < new.hbm_bytes
    assert old.hbm_bandwidth < new.hbm_bandwidth and old.link_bandwidth < new.link_bandwidth


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "is no TPU slice"),
        ("v9:2x2", "v4, v5e, v5p, v6e"),
        ("v5e:4x4x4", "stand in 2 dimensions"),
        ("v4:0x2x1", "at least 1"),
        ("v5e:32x16", "has 512 chips; a slice of v5e has at most 256"),
        ("v5e:3x4", "no multiple of a host's 2x2 chips"),
        ("v5e:1x8", "no multiple of a host's 2x2 chips"),
    ],
)
def test_what_is_no_slice(name, message):
    with pytest.raises(UserError, match=message):
        parse_slice(name)

"""What a plan adds up to, and how it is shown."""

import pytest

from robustjax.planning.ahead_of_time import HBM_SHARE
from robustjax.planning.chips import parse_slice
from robustjax.planning.run_plan import collectives, table
from tests.planning.made_up import plan_of

SLICE = parse_slice("v5e:2x2")


def test_chip_hours_are_of_all_runs_and_chips():
    plan = plan_of(SLICE, 1, seconds=0.5, runs=7200)
    assert plan.chip_hours == pytest.approx(4.0)
    assert plan.to_json(price=1.5)["cost"] == pytest.approx(6.0)
    assert plan.to_json()["cost"] is None


def test_a_tenth_of_the_memory_stays_free():
    room = int(HBM_SHARE * SLICE.generation.hbm_bytes)
    assert plan_of(SLICE, room, 1.0).fits
    assert not plan_of(SLICE, room + 1, 1.0).fits
    assert not plan_of(SLICE, room, 1.0, beside=1).fits


def test_the_table_says_what_limits_a_program():
    saved = plan_of(SLICE, 4 << 30, seconds=0.5, runs=7200).to_json()
    heading, row = (line.split("  ") for line in table(saved))
    cells = dict(
        zip(*([c.strip() for c in line if c.strip()] for line in (heading, row)), strict=True)
    )
    assert cells["program"] == "only"
    assert (cells["arguments"], cells["of HBM"]) == ("4.00 GiB", "25 %")
    assert (cells["TFLOP"], cells["bound"], cells["by"]) == ("3", "500 ms", "compute")
    assert (cells["runs"], cells["compiled in"]) == ("7,200", "1 s")
    assert collectives(saved) == ["only: all-reduce 0.000 GiB"]


def test_what_is_saved_is_whole():
    (row,) = plan_of(SLICE, 10, seconds=0.5).to_json()["programs"].values()
    assert row["flops"] == sum(row["flops_by_passes"].values()) == 3e12
    assert row["collective_bytes"] == {"all-reduce": 3000.0}
    assert row["seconds"]["bound"] == max(
        row["seconds"][name] for name in ("compute", "memory", "interconnect")
    )

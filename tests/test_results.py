"""The README's tables of speed are what the kept results give, and their columns what they say."""

import pytest

from benchmarks.results import (
    PAGES,
    comparison_table,
    read_results,
    scaling_table,
    tables,
    with_table,
)

OURS = {
    "milliseconds": 50.0,
    "useful_share": 0.81,
    "executed_share": 0.62,
    "executed_gflop": 7.3,
    "matmul_gflops": 140.0,
    "peak_resident_gb": 1.25,
    "compile_seconds": 9.0,
}
MEASURED_ON = {"machine": {"cpu": "A chip", "cores": 2, "jax": "1.2.3"}, "rounds": 2}


def cells(lines):
    """Cells of a table by the heading of their column."""
    table = [line.split("|")[1:-1] for line in lines if line.startswith("|")]
    heading, values = ([cell.strip() for cell in table[i]] for i in (0, 2))
    assert len(heading) == len(values) == len(table[1]) == len(set(heading))
    return dict(zip(heading, values, strict=True))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_the_table_of_the_results(name):
    page, table = PAGES[name].read_text(encoding="utf-8"), dict(tables())[name]
    assert with_table(page, name, table) == page, "run python -m benchmarks.results --write"


def test_every_kept_figure_of_ours_is_whole():
    comparison, scaling = (read_results(name) for name in ("gcg_vs_nanogcg", "gcg_scaling"))
    runs = [run for row in comparison["rows"] for run in row["runs"]["ours"]]
    runs += [run for row in scaling["rows"] for run in row["runs"]]
    assert runs
    for run in runs:
        assert run.keys() >= OURS.keys()
        assert run["useful_share"] == pytest.approx(
            run["useful_gflops"] / run["matmul_gflops"], abs=0.01
        )
        assert run["executed_share"] == pytest.approx(
            run["executed_gflops"] / run["matmul_gflops"], abs=0.01
        )


def test_shares_stand_below_their_own_heading():
    row = {
        "point": "some-model",
        "ratio": 12.34,
        "ratio_together": 15.0,
        "nanogcg": {"milliseconds": 617.0, "peak_resident_gb": 2.5},
        "ours": OURS,
        "ours_together": OURS | {"milliseconds": 41.0, "peak_resident_gb": 3.5},
        "ours_classifier": OURS | {"milliseconds": 40.0, "useful_share": 1.02},
        "runs": {
            "nanogcg": [{"milliseconds": 617.0}],
            "ours": [OURS],
            "ours_classifier": [OURS | {"matmul_gflops": 151.0}],
        },
    }
    lines = comparison_table({**MEASURED_ON, "together": 8, "rows": [row]})

    found = cells(lines)
    assert found["useful FLOPs, of the matmul rate"] == "81 %"
    assert found["executed FLOPs, of the matmul rate"] == "62 %"
    assert found["times as fast"] == "12.3"
    assert found["robustjax, 8 examples at once"] == "41 ms"
    assert found["times as fast, 8 at once"] == "15.0"
    assert found["memory, 8 examples at once"] == "3.50 GB"
    assert found["classifier: useful FLOPs, of the matmul rate"] == "102 %"
    assert lines[-1].startswith("Medians of 2 runs on 2 cores of A chip")
    assert "140 to 151 GFLOP/s" in lines[-1]


def test_a_single_run_is_called_provisional():
    growth = {"of": [60, 900], "milliseconds": 1.5, "executed_gflop": 1.27}
    row = {"varied": "batch", "value": 4, "measured": OURS, "runs": [OURS]}
    once = {**MEASURED_ON, "rounds": 1, "base": "m", "prefix_growth": growth, "rows": [row]}

    assert scaling_table(once)[-1].startswith("Provisional")
    assert scaling_table(once | {"rounds": 3})[-1].startswith("Medians of 3 runs")


def test_the_scaling_table_tells_what_a_long_prefix_costs():
    results = {
        **MEASURED_ON,
        "base": "some-model",
        "prefix_growth": {"of": [60, 900], "milliseconds": 1.5, "executed_gflop": 1.27},
        "rows": [{"varied": "batch", "value": 4, "measured": OURS, "runs": [OURS]}],
    }
    lines = scaling_table(results)

    found = cells(lines)
    assert "some-model" in lines[0]
    assert (found["what differs"], found["value"]) == ("examples at once", "4")
    assert found["useful FLOPs, of the matmul rate"] == "81 %"
    assert found["executed FLOPs, of the matmul rate"] == "62 %"
    assert found["matmul GFLOP/s"] == "140"
    assert "900 tokens" in lines[-2] and "1.50 times as long" in lines[-2]
    assert "1.27 times the FLOPs" in lines[-2]


def test_a_table_takes_the_place_of_the_one_before():
    page = "above\n<!-- one -->\nold\n<!-- end -->\nbetween\n<!-- two -->\nkept\n<!-- end -->\n"
    assert with_table(page, "one", "new") == page.replace("old", "new")
    with pytest.raises(ValueError, match="no place for three"):
        with_table(page, "three", "new")

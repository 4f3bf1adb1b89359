"""The transfer matrix: cells by hand, and the drawing."""

import math

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from robustjax.analysis import transfer
from robustjax.analysis.groups import groups
from robustjax.analysis.heatmap import Matrix, draw_matrices
from robustjax.analysis.load import load_study
from robustjax.evaluation.records import read_records


def group_of(folder):
    (group,) = groups(load_study([folder]))
    return group


def test_a_row_is_what_the_records_say(shared_study):
    folder = shared_study()
    group = group_of(folder)
    rows = transfer.matrix_rows(group)
    chosen = [
        row
        for row in rows
        if (row["point"], row["trained_on"], row["attack"]) == ("nano-28k", "random_token", "gcg")
    ]
    last = max(row["round"] for row in chosen)
    path = folder / "attack" / "nano-28k-s0" / f"random_token-r{last}" / "gcg"
    records = [one for one in read_records(path / "attack_records.jsonl") if one.attacked]
    total = len(records[0].iterations)
    of_round = [row for row in chosen if row["round"] == last]
    powers = [2**k for k in range(20) if 2**k < total]
    assert [row["iteration"] for row in of_round] == [*powers, total]
    for row in of_round:
        k = row["iteration"]
        broken = sum(record.iterations[k - 1].success for record in records)
        assert row["value"] == pytest.approx(broken / len(records))
        ever = sum(any(step.success for step in record.iterations[:k]) for record in records)
        assert row["first_success"] == pytest.approx(ever / len(records))
        assert (row["position"], row["metric"]) == (1.0, "asr_at")
    spent = sum(record.flops_algorithmic for record in records) / len(records)
    assert of_round[-1]["attack_flops"] == pytest.approx(spent)


def test_matrices_show_the_last_round_and_iteration(shared_study):
    group = group_of(shared_study())
    rows = transfer.matrix_rows(group)
    found = transfer.matrices(group, rows)
    assert [matrix.title for matrix in found] == list(group.sizes.values())
    for matrix, point in zip(found, group.sizes, strict=True):
        assert matrix.rows == ("undefended", "trained on GCG", "trained on RandomToken")
        assert matrix.columns == ("GCG", "RandomToken")
        for trained_on, values in zip(("none", "gcg", "random_token"), matrix.values, strict=True):
            for attack, value in zip(("gcg", "random_token"), values, strict=True):
                (mine,) = [
                    row
                    for row in rows
                    if (row["point"], row["trained_on"], row["attack"])
                    == (point, trained_on, attack)
                    and row["round"] == (3 if trained_on != "none" else 0)
                    and row["iteration"]
                    == max(r["iteration"] for r in rows if r["attack"] == attack)
                ]
                assert value == mine["value"]
    assert transfer.last_rounds(rows) == 3


def test_a_position_is_an_attack_of_its_own(lone_attack):
    group = group_of(lone_attack(position=0.9))
    (row, *_) = transfer.matrix_rows(group)
    assert (row["attack"], row["position"]) == ("gcg@0.9", 0.9)


def test_every_cell_has_its_number_and_fits_its_box():
    matrix = Matrix("1M", ("undefended", "trained on GCG"), ("GCG", "GCG at 0.9", "BEAST"),
                    ((1.0, 0.5, None), (0.0, math.nan, 0.25)))  # fmt: skip
    figure = draw_matrices([matrix] * 4)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = [ax for ax in figure.axes if ax.texts]
    assert len(drawn) == 4
    for ax in drawn:
        texts = [text.get_text() for text in ax.texts]
        assert texts == ["100%", "50%", "-", "0%", "-", "25%"]
        boxes = [patch.get_window_extent() for patch in ax.patches]
        for text, box in zip(ax.texts, boxes, strict=True):
            extent = text.get_window_extent()
            assert box.x0 <= extent.x0 and extent.x1 <= box.x1
            assert box.y0 <= extent.y0 and extent.y1 <= box.y1
    assert [label.get_text() for label in drawn[0].get_yticklabels()] == list(matrix.rows)
    assert [label.get_text() for label in drawn[3].get_xticklabels()] == list(matrix.columns)

"""Drawings: no text lies on other text, whatever the panels, sizes and rates are."""

import itertools
import math

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from robustjax.analysis import canvas, labels, plots
from robustjax.analysis.canvas import Line, Panel, Point, XAxis, YAxis
from robustjax.analysis.groups import groups
from robustjax.analysis.load import load_study

PYTHIA = (7.6e6, 17.6e6, 44.7e6, 123.7e6, 353.8e6, 908.8e6, 1.31e9, 2.65e9, 6.65e9, 11.6e9)
NANO = (28e3, 121e3, 481e3, 914e3, 3.2e6)


def size_axis(sizes):
    return XAxis("Parameters", "size", [(size, labels.size_label(int(size))) for size in sizes])


def panels(count, xs, rate, title="RandomToken attack,\ntrained on RandomToken"):
    line_points = [Point(x, rate, max(0.0, rate - 0.1), min(1.0, rate + 0.1)) for x in xs]
    lines = [
        Line(name, colour, "o", line_points)
        for name, colour in (("undefended", "#000000"), ("trained on RandomToken", "#0072B2"))
    ]
    return [Panel(title, lines)] * count


def text_boxes(figure):
    """Where text is drawn, by what it says."""
    canvas_agg = FigureCanvasAgg(figure)
    canvas_agg.draw()
    renderer = canvas_agg.get_renderer()
    texts = [figure._supxlabel, figure._supylabel]
    for legend in figure.legends:
        texts += [legend.get_title(), *legend.get_texts()]
    for ax in figure.axes:
        texts += [ax.title, *ax.texts]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [
                tick.label1
                for tick in axis.get_major_ticks()
                if tick.label1.get_visible() and low <= tick.get_loc() <= high
            ]
    return [
        (text.get_text(), text.get_window_extent(renderer), text.get_rotation() % 90 != 0)
        for text in texts
        if text is not None and text.get_text()
    ]


def assert_readable(figure):
    boxes = text_boxes(figure)
    width, height = figure.canvas.get_width_height()
    for name, box, _ in boxes:
        assert box.x0 >= 0 and box.x1 <= width + 1, f"{name} is cut off"
        assert box.y0 >= 0 and box.y1 <= height + 1, f"{name} is cut off"
    for (name, box, slanted), (other_name, other, both) in itertools.combinations(boxes, 2):
        across = min(box.x1, other.x1) - max(box.x0, other.x0)
        along = min(box.y1, other.y1) - max(box.y0, other.y0)
        # The boxes of slanted neighbours overlap where their ink does not.
        assert across <= 1 or along <= 1 or (slanted and both), f"{name!r} touches {other_name!r}"


@pytest.mark.parametrize(("count", "kind"), [(1, "logit"), (2, "fraction"), (4, "logit")])
@pytest.mark.parametrize("sizes", [NANO[:1], NANO, PYTHIA])
def test_figures_against_size_are_readable(sizes, kind, count):
    drawn = canvas.draw(
        panels(count, sizes, 0.3),
        size_axis(sizes),
        YAxis("Attack success rate", kind),
        "Victim",
        "bars",
        columns=2,
    )
    assert_readable(drawn)


@pytest.mark.parametrize(
    ("xs", "rate"),
    [([3e9], 1 / 502), ([3e9, 4e9], 0.3), ([9e8, 2e9], 501 / 502), ([1e7, 1e19], 0.6)],
)
def test_figures_against_compute_are_readable_and_have_two_ticks_an_axis(xs, rate):
    drawn = canvas.draw(
        panels(3, xs, rate, "After training on RandomToken"),
        XAxis("Cumulative attack compute (algorithmic FLOPs)", "flops"),
        YAxis("Attack success rate", "logit"),
        "Parameters",
        "band",
    )
    assert_readable(drawn)
    ax = drawn.axes[0]
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        assert sum(low <= place <= high for place in axis.get_majorticklocs()) >= 2


def test_the_figures_of_a_study_are_readable(shared_study, monkeypatch):
    drawn = []
    monkeypatch.setattr(canvas, "png", lambda figure: drawn.append(figure) or b"png")
    plan = {"sizes": {"nano-28k": 28_320, "nano-900k": 913_664}, "num_examples": 32}
    (group,) = groups(load_study([shared_study(**plan)]))
    figures = plots.all_figures(group)
    assert len(drawn) == len(figures) == 9
    for figure in drawn:
        assert_readable(figure)


def test_close_sizes_get_upright_labels():
    drawn = canvas.draw(panels(2, PYTHIA, 0.3), size_axis(PYTHIA), YAxis("y", "logit"), "", "bars")
    FigureCanvasAgg(drawn).draw()
    boxes = [label.get_window_extent() for label in drawn.axes[0].get_xticklabels()]
    for left, right in itertools.pairwise(boxes):
        assert left.x1 <= right.x0


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_rounds_have_whole_ticks_and_every_column_has_labels(columns):
    drawn = canvas.draw(
        panels(3, [0.0, 1.0, 2.0], 0.3),
        XAxis("Round", "round"),
        YAxis("y", "logit"),
        "",
        "band",
        columns,
    )
    assert_readable(drawn)
    assert all(float(place).is_integer() for place in drawn.axes[0].get_xticks())
    lowest = drawn.axes[max(0, 3 - columns) : 3]
    assert all(ax.xaxis.get_tick_params()["labelbottom"] for ax in lowest)


def test_percent_labels_are_exact():
    low_rates = ((0.55, 0.9), (0.71, 0.9), (0.84, 0.9), (0.01, 0.9))
    for low, value in low_rates:
        line = Line("a", "#000000", "o", [Point(1e6, value, low, 1.0)])
        axis = YAxis("Accuracy", "fraction", from_zero=False)
        ax = canvas.draw([Panel("", [line])], size_axis([1e6]), axis, "", "bars").axes[0]
        assert ax.get_ylim()[0] < low
        for place, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True):
            assert float(label.get_text().rstrip("%")) == pytest.approx(100 * place, abs=1e-6)


def test_points_without_a_place_are_left_out_and_bounds_of_0_reach_the_edge():
    points = [
        Point(0.0, 0.5, 0.4, 0.6),
        Point(1e9, math.nan, math.nan, math.nan),
        Point(2e9, 0.1, 0.0, 0.3),
        Point(4e9, 0.2, 0.1, 0.4),
    ]
    drawn = canvas.draw(
        [Panel("", [Line("a", "#000000", "o", points)]), Panel("empty", [])],
        XAxis("x", "flops"),
        YAxis("y", "logit"),
        "",
        "band",
    )
    ax, empty = drawn.axes
    (line,) = ax.get_lines()
    assert list(line.get_xdata()) == [2e9, 4e9]
    (band,) = ax.collections
    lowest = band.get_paths()[0].vertices[:, 1].min()
    assert lowest == pytest.approx(ax.get_ylim()[0])
    assert [text.get_text() for text in empty.texts] == ["no data"]


def test_size_colours_run_from_dark_to_light():
    def luminance(colour):
        return sum(int(colour[i : i + 2], 16) for i in (1, 3, 5))

    for count in (1, 2, 10):
        colours = canvas.size_colours(count)
        assert len(set(colours)) == count
        assert [*sorted(colours, key=luminance)] == colours

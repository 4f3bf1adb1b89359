"""Drawings: no text lies on other text, whatever the panels, sizes and rates are."""

import dataclasses
import itertools
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.layout_engine import ConstrainedLayoutEngine

from robustjax.analysis import canvas, labels, plots
from robustjax.analysis.drawing import Fit, Guides, Line, Panel, Point, XAxis, YAxis
from robustjax.analysis.groups import groups
from robustjax.analysis.load import load_study
from robustjax.analysis.publication import publication

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


def test_the_figures_of_a_study_are_readable(shared_study):
    plan = {"sizes": {"nano-28k": 28_320, "nano-900k": 913_664}, "num_examples": 32}
    (group,) = groups(load_study([shared_study(**plan)]))
    figures = plots.all_figures(group)
    assert len(figures) == 17
    for figure in figures:
        assert_readable(figure.drawing.draw())


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


def compute_panel(num_sizes, is_bound=False):
    """Attack compute against defence compute, a line a size."""
    lines = []
    for index, colour in enumerate(canvas.size_colours(num_sizes)):
        points = [
            Point(10.0 ** (-5 + r / 2), v := 10.0 ** (-6 + r / 3 + index / 9), v / 2, v * 2,
                  is_bound and r == 4)
            for r in range(5)
        ]  # fmt: skip
        lines.append(Line(labels.size_label(int(PYTHIA[index])), colour, "o", points))
    return Panel("spam", lines, guides=Guides())


FRACTION = XAxis("Defence compute (share of pretraining)", "fraction")
COMPUTE = YAxis("Attack compute (share of pretraining)", "flops")
SLOPE = YAxis("Slope", "slope", reference=0.0)


def test_compute_against_compute_is_readable_and_logarithmic_on_both_axes():
    drawn = canvas.draw([compute_panel(10)] * 2, FRACTION, COMPUTE, "Parameters", "band")
    assert_readable(drawn)
    ax = drawn.axes[0]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    FigureCanvasAgg(drawn).draw()
    low, high = ax.get_xlim()
    names = {
        tick.label1.get_text()
        for tick in ax.xaxis.get_major_ticks()
        if low <= tick.get_loc() <= high
    }
    assert names == {"0.001%", "0.01%", "0.1%"}


@pytest.mark.parametrize(("lowest", "percent"), [(1e-5, True), (1e-7, False)])
def test_small_fractions_are_powers_of_ten(lowest, percent):
    line = Line("a", "#000000", "o", [Point(x, 0.5, 0.4, 0.6) for x in (lowest, 1e-3)])
    ax = canvas.draw([Panel("", [line])], FRACTION, YAxis("y", "logit"), "", "band").axes[0]
    assert ax.xaxis.get_major_formatter()(1e-3, 0).endswith("%") == percent


def test_guides_have_their_slope_lie_behind_and_change_no_limit():
    plain = dataclasses.replace(compute_panel(2), guides=None)
    guided = dataclasses.replace(plain, guides=Guides(slope=2.0, count=7))
    axes = [
        canvas.draw([panel], FRACTION, COMPUTE, "", "band").axes[0] for panel in (plain, guided)
    ]
    assert axes[0].get_xlim() == axes[1].get_xlim()
    assert axes[0].get_ylim() == axes[1].get_ylim()
    lines = [line for line in axes[1].get_lines() if line.get_linestyle() == "--"]
    assert len(lines) == 7
    data = [line for line in axes[1].get_lines() if line not in lines]
    for line in lines:
        (x0, x1), (y0, y1) = np.log10(line.get_xdata()), np.log10(line.get_ydata())
        assert (y1 - y0) / (x1 - x0) == pytest.approx(2)
        assert line.get_zorder() < min(other.get_zorder() for other in data)


def test_lower_bounds_are_open_triangles_with_an_entry_in_the_legend():
    drawn = canvas.draw([compute_panel(2, True)], FRACTION, COMPUTE, "", "band")
    open_ones = [line for line in drawn.axes[0].get_lines() if line.get_marker() == "^"]
    assert [list(line.get_xdata()) for line in open_ones] == [[1e-3], [1e-3]]
    assert {line.get_markerfacecolor() for line in open_ones} == {"#ffffff"}
    full = [line for line in drawn.axes[0].get_lines() if line.get_marker() == "o"]
    assert [line.get_markevery() for line in full] == [[0, 1, 2, 3]] * 2
    texts = [[text.get_text() for text in legend.get_texts()] for legend in drawn.legends]
    assert texts == [["7.6M", "17.6M", "at least"]]


def test_bounds_and_unjoined_points_of_long_lines_are_seen():
    points = [Point(float(i), 0.5, 0.4, 0.6, i == 7) for i in range(1, 60)]
    panel = Panel("", [Line("a", "#000000", "o", points)])
    for fits, markers in (((), ["None", "^"]), ([Fit("f", 1, 0.5, 9, 0.5)], ["o", "None", "^"])):
        panel = dataclasses.replace(panel, fits=fits)
        ax = canvas.draw([panel], XAxis("x", "flops"), YAxis("y", "logit"), "", "band").axes[0]
        assert sorted(line.get_marker() for line in ax.get_lines()) == sorted(markers)


def test_a_fit_is_drawn_instead_of_joining_lines_and_named_where_there_is_room():
    for ends in ((0.3, 0.1), (0.1, 0.3)):
        heights = np.linspace(*ends, len(PYTHIA))
        points = [Point(x, y, y - 0.01, y + 0.01) for x, y in zip(PYTHIA, heights, strict=True)]
        fits = [Fit("R² = 0.74", PYTHIA[0], ends[0], PYTHIA[-1], ends[1])]
        panel = Panel("spam", [Line("", "#333333", "o", points)], fits=fits)
        drawn = canvas.draw([panel], size_axis(PYTHIA), SLOPE, "", "bars")
        assert_readable(drawn)
        assert drawn.legends == []
        ax = drawn.axes[0]
        (fitted,) = [line for line in ax.get_lines() if line.get_color() == "#c1121f"]
        assert list(fitted.get_ydata()) == list(ends)
        (dots,) = [line for line in ax.get_lines() if line.get_marker() == "o"]
        assert dots.get_linestyle() == "None"
        low, high = ax.get_ylim()
        assert low < 0 < high
        (text,) = ax.texts
        assert text.get_text() == "R² = 0.74"
        box = text.get_window_extent()
        for point in points:
            for y in np.linspace(point.low, point.high, 9):
                assert not box.contains(*ax.transData.transform((point.x, y)))
        assert not box.y0 <= ax.transData.transform((1e8, 0))[1] <= box.y1


def test_long_lines_lose_points_but_not_their_shape():
    x = 10 ** np.linspace(9, 13, 1280)
    y = 0.5 + 0.3 * np.sin(5 * np.log10(x))
    y[700] = 0.9
    points = [Point(a, b, b - 0.05, b + 0.05) for a, b in zip(x, y, strict=True)]
    panel = Panel("", [Line("a", "#000000", "o", points)])
    ax = canvas.draw([panel], XAxis("x", "flops"), YAxis("y", "fraction"), "", "band").axes[0]
    (line,) = ax.get_lines()
    assert line.get_marker() == "None"
    assert len(line.get_xdata()) < 640
    assert max(line.get_ydata()) == pytest.approx(0.9, abs=1e-3)
    shown = np.interp(np.log10(x), np.log10(line.get_xdata()), line.get_ydata())
    assert np.quantile(np.abs(shown - y), 0.99) < 1e-2  # the line is steep
    corners = ax.collections[0].get_paths()[0].vertices
    assert corners[:, 1].max() == pytest.approx(0.95, abs=1e-3)


def test_files_of_a_figure_are_the_same_bytes_again():
    for save in (canvas.png, canvas.svg, canvas.pdf):
        one, two = (
            save(canvas.draw([compute_panel(3)], FRACTION, COMPUTE, "P", "band")) for _ in range(2)
        )
        assert one == two
        figure = canvas.draw([compute_panel(3)], FRACTION, COMPUTE, "P", "band")
        canvas.png(figure)
        assert save(figure) == one  # whatever was saved before


def test_svg_has_text_no_date_and_short_numbers():
    drawing = canvas.svg(canvas.draw([compute_panel(3)], FRACTION, COMPUTE, "Sizes", "band"))
    text = drawing.decode("utf-8")
    assert ">7.6M</text>" in text and "sans-serif" in text
    assert "dc:date" not in text and "Matplotlib" not in text
    numbers = re.findall(r"-?\d+\.?\d*", " ".join(re.findall(r' d="([^"]+)"', text)))
    assert len(numbers) > 100
    assert max(len(number.partition(".")[2]) for number in numbers) == 2
    ElementTree.fromstring(drawing)


def test_the_layout_is_solved_once(monkeypatch):
    solved = []
    execute = ConstrainedLayoutEngine.execute
    monkeypatch.setattr(
        ConstrainedLayoutEngine, "execute", lambda *args: solved.append(1) or execute(*args)
    )
    drawn = canvas.draw([compute_panel(2)] * 2, FRACTION, COMPUTE, "", "band")
    canvas.png(drawn)
    canvas.svg(drawn)
    assert len(solved) == 1


@pytest.mark.parametrize("has_legend", [True, False])
@pytest.mark.parametrize("names", [["7.6M", "11.6B"], ["undefended", "trained on RandomToken"]])
def test_publications_have_the_size_of_a_column_and_embedded_fonts(monkeypatch, has_legend, names):
    figures = []
    pdf = canvas.pdf
    monkeypatch.setattr(canvas, "pdf", lambda figure: figures.append(figure) or pdf(figure))
    points = compute_panel(1).lines[0].points
    panel = Panel("A title", [Line(name, "#000000", "o", points) for name in names])
    arguments = (panel, FRACTION, COMPUTE, "Victim", "band", has_legend)
    content = publication(*arguments)
    assert content.startswith(b"%PDF-")
    assert b"/MediaBox [ 0 0 252 180 ]" in content
    assert b"/FontFile2" in content and b"/Type3" not in content
    assert b"CreationDate" not in content and b"Matplotlib" not in content
    assert publication(*arguments) == content
    (figure, _) = figures
    assert_readable(figure)
    assert len(figure.legends) == has_legend
    (ax,) = figure.axes
    assert ax.get_title() == ""
    box = ax.get_window_extent()
    assert box.height > 0.3 * figure.bbox.height and box.width > 0.5 * figure.bbox.width
    for legend in figure.legends:
        assert not box.overlaps(legend.get_window_extent())


def test_families_and_rounds_have_maps_of_their_own():
    maps = [canvas.size_colours(5), canvas.size_colours(5, "qwen2.5"), canvas.round_colours(5)]
    assert canvas.size_colours(5, "pythia") == canvas.size_colours(5, "nano") == maps[0]
    assert len({tuple(colours) for colours in maps}) == 3
    assert canvas.round_colours(1) != canvas.round_colours(2)[:1]

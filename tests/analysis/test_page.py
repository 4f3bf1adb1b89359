"""Building blocks of the page: what is sorted by, contrast, the policy, escaping."""

import base64
import hashlib
import itertools
import math
import re

import numpy as np
import pytest

from robustjax.analysis import page

ROWS = [
    {"size": "28k", "num_params": 28_320, "rate": 0.25, "slope": None},
    {"size": "0.9M", "num_params": np.int64(913_664), "rate": math.nan, "slope": -math.inf},
]


def data_values(html):
    """The attribute of every cell in order, None where there is none."""
    cells = re.findall(r"<td([^>]*)>", html)
    found = [re.search(r'data-value="([^"]*)"', cell) for cell in cells]
    return [match and match[1] for match in found]


def test_cells_carry_the_number_that_is_sorted_by():
    columns = {
        "Size": page.column("size", by="num_params"),
        "Name": page.column("size"),
        "Rate": page.column("rate", page.percent),
        "Slope": page.column("slope"),
        "Either": page.Column(lambda row: "text", lambda row: row["rate"] > 0.1),
        "Bare": lambda row: "1",
    }
    table = page.table(ROWS, columns, "")
    assert data_values(table) == [
        "28320", None, "0.25", None, None, None,
        "913664", None, None, "-Infinity", None, None,
    ]  # fmt: skip
    assert "25.0&thinsp;%</td>" in table


def test_only_tables_with_something_to_sort_are_sortable():
    columns = {"Size": page.column("size")}
    assert 'class="sortable"' in page.table(ROWS, columns, "")
    assert "sortable" not in page.table(ROWS[:1], columns, "")
    assert page.table([], columns, "").count("<th ") == 1


def test_columns_of_words_are_aligned_to_the_left():
    table = page.table([{"a": "-3", "b": "x"}], {"A": page.column("a"), "B": page.column("b")}, "")
    assert '<th scope="col">A</th><th scope="col" class="text">B</th>' in table
    assert '<td>-3</td><td class="text">x</td>' in table


def test_a_figure_links_to_its_files():
    files = {"CSV": "a&b.csv", "SVG": "a.svg"}
    figure = page.figure(3, "<T>", "<C>", b"png", files)
    assert '<a href="a&amp;b.csv">CSV</a>, <a href="a.svg">SVG</a>.' in figure
    assert base64.b64encode(b"png").decode() in figure
    assert "<b>Figure 3. &lt;T&gt;.</b> &lt;C&gt; Files: " in figure


def test_answers_say_question_verdict_and_sentence():
    items = [
        page.Answer("A & B?", "yes", "Both <did>.", page.paragraph("Why")),
        page.Answer("C?", "withheld", "Too few."),
    ]
    html = page.answers(items)
    assert "<h3>A &amp; B?</h3>" in html
    assert '<strong class="verdict firm">yes</strong> Both &lt;did&gt;.</p>' in html
    assert '<strong class="verdict">withheld</strong> Too few.</p>' in html
    assert html.count("<details>") == 1 and "<p>Why</p>" in html


def test_the_policy_allows_this_style_and_script_and_no_other_source():
    html = page.document("T", "S", [("a", "A", "")])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert rules.pop("img-src") == "data:"
    assert set(rules.values()) == {"'none'"} and "default-src" in rules
    assert html.index("Content-Security-Policy") < html.index("<style>")
    assert '<link rel="icon" href="data:,">' in html
    assert " style=" not in html  # the policy would ignore it


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_of_text_is_readable_on_every_ground(scheme):
    by_day, by_night = page._STYLE.split("prefers-color-scheme: dark")
    colours = dict(re.findall(r"--(\w+): (#\w{6})", by_day if scheme == "light" else by_night))
    assert set(colours) == {"text", "soft", "rule", "faint", "page", "link"}
    inks = set(re.findall(r"(?<![-\w])color: var\(--(\w+)\)", page._STYLE))
    grounds = {"page", "faint"}
    assert inks == {"text", "soft", "link", "page"}
    pairs = {*itertools.product(inks - {"page"}, grounds), ("page", "text")}
    for ink, ground in sorted(pairs):
        dark, light = sorted((luminance(colours[ink]), luminance(colours[ground])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)

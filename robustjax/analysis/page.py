"""HTML building blocks and the page they end in: one file that asks for nothing from outside.

A small script sorts the tables; without it they read as well.
"""

import base64
import dataclasses
import hashlib
import html
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Cell = Callable[[Mapping[str, Any]], str]
"""Makes the (escaped) HTML of a table cell from its row."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A cell that knows what its column is sorted by.

    Attributes:
        show: makes the HTML.
        value: picks what counts from the row: a number, or anything else for none. A column
            without any number is sorted by what it shows.
    """

    show: Cell
    value: Callable[[Mapping[str, Any]], Any]

    def __call__(self, row: Mapping[str, Any]) -> str:
        """The HTML of the cell."""
        return self.show(row)


@dataclasses.dataclass(frozen=True)
class Answer:
    """A question of the study and what was found.

    Attributes:
        question: plain text.
        verdict: "yes", "no" or another word for why it is neither; plain text.
        sentence: the answer; plain text.
        detail: HTML of what it rests on, empty for nothing.
        is_open: whether that is shown unasked.
    """

    question: str
    verdict: str
    sentence: str
    detail: str = ""
    is_open: bool = False


def escape(value: Any) -> str:
    """Any value as text that cannot be taken for HTML."""
    return html.escape(str(value))


def percent(value: float) -> str:
    """A proportion in percent; a dash where there is none."""
    return "&ndash;" if math.isnan(value) else f"{100 * value:.1f}&thinsp;%"


def interval(low: float, high: float) -> str:
    """Bounds of a proportion in percent."""
    return "" if math.isnan(low) else f"[{100 * low:.1f}, {100 * high:.1f}]"


def number(value: float | int) -> str:
    """A number with three digits, or an integer in full; a dash for NaN."""
    if isinstance(value, int):
        return f"{value:,}".replace(",", "&thinsp;")
    return "&ndash;" if math.isnan(value) else f"{value:.3g}"


def flops(value: float | int) -> str:
    """FLOPs as mantissa and power of ten."""
    if math.isnan(value):
        return "&ndash;"
    mantissa, exponent = f"{float(value):.2e}".split("e")
    return "0" if value == 0 else f"{mantissa}&times;10<sup>{int(exponent)}</sup>"


def column(name: str, show: Callable[[Any], str] = escape, by: str | None = None) -> Cell:
    """A cell that shows one column of the row.

    Args:
        name: of the column.
        show: makes HTML of its value.
        by: another column whose numbers the table is sorted by.
    """
    return Column(lambda row: show(row[name]), lambda row: row[by or name])


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Cell], caption: str) -> str:
    """A table; columns are HTML headers with their cells, in order."""
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    kinds = ["" if _is_numeric(texts) else ' class="text"' for texts in zip(*cells, strict=True)]
    head = "".join(
        f'<th scope="col"{kind}>{header}</th>'
        for header, kind in zip(columns, kinds or [""] * len(columns), strict=True)
    )
    values = [[_data_value(cell, row) for cell in columns.values()] for row in rows]
    body = "\n".join(
        "<tr>" + "".join(map("<td{}{}>{}</td>".format, kinds, data, line)) + "</tr>"
        for data, line in zip(values, cells, strict=True)
    )
    sortable = ' class="sortable"' if len(rows) > 1 else ""
    return (
        f'<div class="scroll"><table{sortable}>\n<caption>{caption}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
    )


def _data_value(cell: Cell, row: Mapping[str, Any]) -> str:
    """The attribute that the script sorts by; none where there is no number."""
    value = cell.value(row) if isinstance(cell, Column) else None
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or math.isnan(value):
        return ""
    text = str(int(value)) if isinstance(value, numbers.Integral) else repr(float(value))
    return f' data-value="{text.replace("inf", "Infinity")}"'


def _is_numeric(texts: Sequence[str]) -> bool:
    """Whether a column looks like numbers, which are aligned to the right."""
    return all(not text or text[0] in "0123456789-&[" for text in texts)


def figure(number_: int, title: str, caption: str, png: bytes, files: Mapping[str, str]) -> str:
    """A figure with its caption and links to the files beside the page.

    Args:
        number_: of the figure.
        title: plain text.
        caption: plain text.
        png: the image, which becomes a part of the page.
        files: words of the links and the names of the files.
    """
    image = base64.b64encode(png).decode("ascii")
    links = ", ".join(
        f'<a href="{escape(name)}">{escape(words)}</a>' for words, name in files.items()
    )
    return (
        f'<figure id="figure-{number_}">\n'
        f'<div class="scroll"><img alt="{escape(title)}" src="data:image/png;base64,{image}">'
        "</div>\n"
        f"<figcaption><b>Figure {number_}. {escape(title)}.</b> {escape(caption)} "
        f"Files: {links}.</figcaption>\n</figure>\n"
    )


def section(identifier: str, heading: str, *content: str) -> str:
    """A section with a heading that can be linked to."""
    body = "".join(content)
    return f'<section id="{identifier}">\n<h2>{escape(heading)}</h2>\n{body}</section>\n'


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>\n"


def details(summary: str, content: str, is_open: bool = False) -> str:
    """Content that can be folded away, and is unless it is to be open."""
    tag = "<details open>" if is_open else "<details>"
    return f"{tag}<summary>{escape(summary)}</summary>\n{content}</details>\n"


def answers(items: Sequence[Answer]) -> str:
    """Questions with their answers, for the top of the page."""
    return f'<ol class="answers">\n{"".join(map(_answer, items))}</ol>\n'


def _answer(item: Answer) -> str:
    kind = "verdict firm" if item.verdict in ("yes", "no") else "verdict"
    detail = details("What this rests on", item.detail, item.is_open) if item.detail else ""
    return (
        f"<li>\n<h3>{escape(item.question)}</h3>\n"
        f'<p><strong class="{kind}">{escape(item.verdict)}</strong> {escape(item.sentence)}</p>\n'
        f"{detail}</li>\n"
    )


def document(title: str, subtitle: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole page.

    Args:
        title: plain text.
        subtitle: plain text.
        sections: identifier, heading and HTML of each section.
    """
    links = "".join(
        f'<li><a href="#{identifier}">{escape(heading)}</a></li>'
        for identifier, heading, _ in sections
    )
    body = "".join(section(*parts) for parts in sections)
    # Nothing but this very style and script may act, and nothing may be fetched.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(_STYLE)}'; "
        f"script-src '{_hash(_SCRIPT)}'; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<link rel="icon" href="data:,">\n'  # a browser would ask for one elsewhere
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>\n"
        f"<nav><ol>{links}</ol></nav>\n<main>\n{body}</main>\n"
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _hash(text: str) -> str:
    """What a Content-Security-Policy calls an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


_STYLE = """
:root {
  --text: #1c2024; --soft: #5b6470; --rule: #c9ced6; --faint: #eceff3; --page: #ffffff;
  --link: #0b5cad;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e3e6ea; --soft: #a2abb6; --rule: #4a525c; --faint: #262b31; --page: #16191d;
    --link: #7db7f0;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 72rem; background: var(--page);
  color: var(--text); font: 1rem/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif;
}
header { border-bottom: 2px solid var(--text); margin-bottom: 1rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0; }
header p { color: var(--soft); margin: .35rem 0 .8rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
.answers { list-style: none; margin: 0; padding: 0; }
.answers > li { max-width: none; border-top: 1px solid var(--rule); padding: .9rem 0; }
.answers > li:last-child { border-bottom: 1px solid var(--rule); }
.answers h3, .answers p { margin: 0 0 .3rem; }
.answers details { margin: .4rem 0 0; }
.verdict {
  display: inline-block; min-width: 4.6rem; margin-right: .5rem; padding: 0 .5rem;
  border: 1px solid var(--text); border-radius: 3px; font-size: .875rem; text-align: center;
}
.verdict.firm { background: var(--text); color: var(--page); }
a { color: var(--link); }
nav ol {
  display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; list-style: none; margin: 0; padding: 0;
  font-size: .9rem;
}
.scroll { overflow-x: auto; margin: 1rem 0; }
table {
  border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums;
  border-top: 2px solid var(--text); border-bottom: 2px solid var(--text);
}
caption {
  caption-side: top; text-align: left; color: var(--soft); padding-bottom: .5rem;
  position: sticky; left: 0; max-width: min(46rem, calc(100vw - 2.5rem));
}
th, td { padding: .28rem .65rem; text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
thead th { border-bottom: 1px solid var(--rule); font-weight: 600; vertical-align: bottom; }
tbody tr:nth-child(even) { background: var(--faint); }
thead button { all: unset; position: relative; cursor: pointer; }
thead button:hover { text-decoration: underline; }
thead button:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
thead button::after { position: absolute; right: -.95em; bottom: .2em; font-size: .75em; }
th[aria-sort="ascending"] button::after { content: "▲"; }
th[aria-sort="descending"] button::after { content: "▼"; }
figure { margin: 1.8rem 0; }
figure img {
  display: block; max-width: max(100%, 36rem); height: auto; background: #ffffff; padding: .6rem;
  border: 1px solid var(--rule); border-radius: 4px;
}
figcaption { color: var(--soft); font-size: .875rem; margin-top: .6rem; max-width: 50rem; }
figcaption b { color: var(--text); }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--link); }
code { font-size: .875em; }
ul.warn { border-left: 3px solid #c77700; padding: .3rem 0 .3rem 2rem; }
dt { font-weight: 600; margin-top: .6rem; }
dd { margin: 0; max-width: 46rem; }
@media print {
  nav, thead button::after { display: none; }
  figure, tr, .answers > li { break-inside: avoid; }
  .scroll { overflow: visible; }
  .verdict.firm { print-color-adjust: exact; }
  .answers details::details-content { content-visibility: visible; }
}
"""

_SCRIPT = """
"use strict";
// A click on a header sorts up, the next one down, the third restores the order of the page.
const NEXT = {none: "ascending", ascending: "descending", descending: "none"};
const WORDS = new Intl.Collator(document.documentElement.lang, {numeric: true});

// What a row is sorted by; rows without a number or word come last, up and down.
function entry(row, column, isNumeric) {
  const cell = row.cells[column];
  if (isNumeric) {
    const value = Number(cell.dataset.value ?? NaN);
    return {row, value, isMissing: Number.isNaN(value)};
  }
  const value = cell.textContent.trim();
  return {row, value, isMissing: value === "" || value === "\u2013"};
}

function sorted(rows, column, sign) {
  const isNumeric = rows.some((row) => "value" in row.cells[column].dataset);
  const compare = isNumeric ? (a, b) => a - b : WORDS.compare;
  const entries = rows.map((row) => entry(row, column, isNumeric));
  entries.sort((a, b) =>
    a.isMissing - b.isMissing || (a.isMissing ? 0 : sign * compare(a.value, b.value)));
  return entries.map(({row}) => row);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    // A button: it is found by the tab key and pressed by Enter and the space bar.
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    head.addEventListener("click", () => {
      const order = NEXT[head.getAttribute("aria-sort")];
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", order);
      const sign = {ascending: 1, descending: -1}[order];
      body.append(...(sign ? sorted(original, column, sign) : original));
    });
  });
}
"""

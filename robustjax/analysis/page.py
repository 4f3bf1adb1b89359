"""HTML building blocks and the page they end in: no scripts, nothing loaded from outside."""

import base64
import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Cell = Callable[[Mapping[str, Any]], str]
"""Makes the (escaped) HTML of a table cell from its row."""


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


def column(name: str, show: Callable[[Any], str] = escape) -> Cell:
    """A cell that shows one column of the row."""
    return lambda row: show(row[name])


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Cell], caption: str) -> str:
    """A table; columns are HTML headers with their cells, in order."""
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    kinds = ["" if _is_numeric(texts) else ' class="text"' for texts in zip(*cells, strict=True)]
    head = "".join(
        f'<th scope="col"{kind}>{header}</th>'
        for header, kind in zip(columns, kinds or [""] * len(columns), strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{kind}>{text}</td>" for text, kind in zip(line, kinds, strict=True))
        + "</tr>"
        for line in cells
    )
    return (
        f'<div class="scroll"><table>\n<caption>{caption}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
    )


def _is_numeric(texts: Sequence[str]) -> bool:
    """Whether a column looks like numbers, which are aligned to the right."""
    return all(not text or text[0] in "0123456789-&[" for text in texts)


def figure(number_: int, title: str, caption: str, png: bytes, data_file: str) -> str:
    """A figure with its caption and a link to the numbers behind it."""
    image = base64.b64encode(png).decode("ascii")
    return (
        f'<figure id="figure-{number_}">\n'
        f'<img alt="{escape(title)}" src="data:image/png;base64,{image}">\n'
        f"<figcaption><b>Figure {number_}. {escape(title)}.</b> {escape(caption)} "
        f'Data: <a href="{escape(data_file)}">{escape(data_file)}</a>.</figcaption>\n</figure>\n'
    )


def section(identifier: str, heading: str, *content: str) -> str:
    """A section with a heading that can be linked to."""
    body = "".join(content)
    return f'<section id="{identifier}">\n<h2>{escape(heading)}</h2>\n{body}</section>\n'


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>\n"


def details(summary: str, content: str) -> str:
    """Content that is folded away until asked for."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}</details>\n"


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
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>\n"
        f"<nav><ol>{links}</ol></nav>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


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
  margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 66rem; background: var(--page);
  color: var(--text); font: 1rem/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif;
}
header { border-bottom: 2px solid var(--text); margin-bottom: 1rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0; }
header p { color: var(--soft); margin: .35rem 0 .8rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p, li { max-width: 46rem; }
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
  max-width: 46rem;
}
th, td { padding: .28rem .8rem; text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
thead th { border-bottom: 1px solid var(--rule); font-weight: 600; vertical-align: bottom; }
tbody tr:nth-child(even) { background: var(--faint); }
figure { margin: 1.8rem 0; }
figure img {
  display: block; max-width: 100%; height: auto; background: #ffffff; padding: .6rem;
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
@media print { nav { display: none; } figure, table { break-inside: avoid; } }
"""

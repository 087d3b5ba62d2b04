"""The page itself: style, tables, and text that is escaped unless it says it is markup."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image


class Markup(str):
    """Text that is HTML already."""


def text(value: object) -> str:
    """``value`` as HTML; anything but :class:`Markup` is escaped."""
    return value if isinstance(value, Markup) else html.escape(str(value))


def table(head: Sequence[object], rows: Iterable[Sequence[object]], *, left: int = 1) -> Markup:
    """A table whose first ``left`` columns are text and whose others are figures.

    A cell that is Markup and begins with ``<td`` brings its own element.
    """

    def cell(index: int, value: object) -> str:
        if isinstance(value, Markup) and value.startswith("<td"):
            return value
        kind = "" if index < left else ' class="num"'
        return f"<td{kind}>{text(value)}</td>"

    titles = "".join(
        f'<th scope="col"{"" if i < left else " class=num"}>{text(t)}</th>'
        for i, t in enumerate(head)
    )
    body = "".join(
        f"<tr>{''.join(cell(i, value) for i, value in enumerate(row))}</tr>\n" for row in rows
    )
    return Markup(
        f'<div class="wide"><table><thead><tr>{titles}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def notes(lines: Iterable[object]) -> Markup:
    """Small print under a table."""
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    return Markup(f'<ul class="notes">{items}</ul>' if items else "")


def paragraph(value: object) -> Markup:
    """A paragraph."""
    return Markup(f"<p>{text(value)}</p>")


def heading(value: object) -> Markup:
    """A heading below the section's."""
    return Markup(f"<h3>{text(value)}</h3>")


def figures(svgs: Iterable[str]) -> Markup:
    """Plots side by side, as many as the window holds."""
    return Markup('<div class="plots">' + "".join(f"<figure>{s}</figure>" for s in svgs) + "</div>")


def picture(path: Path, alt: str) -> Markup:
    """A picture within the page, as JPEG: photographs as PNG would take several times the room."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=88, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup(
        f'<div class="wide"><img alt="{html.escape(alt)}" src="data:image/jpeg;base64,{data}">'
        "</div>"
    )


def page(title: str, lead: Markup, sections: Sequence[tuple[str, str, Markup]]) -> str:
    """The whole document.

    Args:
        title: Of the page.
        lead: Below the title.
        sections: Anchor, heading and body of each.
    """
    links = "".join(f'<a href="#{key}">{text(name)}</a>' for key, name, _ in sections)
    body = "\n".join(
        f'<section id="{key}"><h2>{text(name)}</h2>\n{content}</section>'
        for key, name, content in sections
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{text(title)}</h1>\n{lead}\n<nav>{links}</nav></header>\n"
        f"<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2126; --soft: #5b6672;
  --line: #d9dee3; --band: #f4f6f8; --accent: #1f6fb2; --warn: #a4540f;
  --more: 43, 125, 190; --less: 224, 123, 57; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181c; --ink: #e3e7eb; --soft: #98a3ae;
  --line: #333b43; --band: #1c2228; --accent: #6db3ec; --warn: #f0a560; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
header, main { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 1.7em; line-height: 1.2; margin: 0 0 .3em; }
h2 { font-size: 1.25em; margin: 0 0 .5em; padding-top: 1.2em; border-top: 1px solid var(--line); }
h3 { font-size: 1em; margin: 1.3em 0 .4em; }
section { margin-top: 1.6em; }
p { max-width: 78ch; margin: .4em 0; }
nav { display: flex; flex-wrap: wrap; gap: .2em 1.2em; margin-top: 1em; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
pre { background: var(--band); border: 1px solid var(--line); border-radius: 6px;
  padding: .6em .8em; overflow-x: auto; white-space: pre-wrap; }
.wide { overflow-x: auto; margin: .5em 0; }
table { border-collapse: collapse; font-size: .92em; font-variant-numeric: tabular-nums; }
th, td { padding: .28em .7em; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; color: var(--soft); white-space: nowrap; border-bottom-width: 2px; }
td:first-child { white-space: nowrap; }
td.num, th.num { text-align: right; white-space: nowrap; }
td.sure { background: rgba(var(--more), .16); }
td.sure.worse { background: rgba(var(--less), .2); }
td.few, .soft { color: var(--soft); }
.notes { color: var(--soft); font-size: .85em; padding-left: 1.2em; max-width: 100ch; }
.lead { color: var(--soft); }
.key { border-left: 3px solid var(--accent); padding: .1em 0 .1em .9em; margin: .8em 0; }
.warn { border-left: 3px solid var(--warn); padding-left: .9em; margin: .5em 0; max-width: 90ch;
  overflow-wrap: anywhere; white-space: pre-wrap; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 14px;
  align-items: start; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; padding: 6px; }
figure svg { display: block; width: 100%; height: auto; max-width: 560px; margin: 0 auto; }
img { max-width: 100%; min-width: 700px; border: 1px solid var(--line); border-radius: 6px;
  background: #fff; }
main { padding-bottom: 60px; }
@media print { nav { display: none; } section { break-inside: avoid-page; } }
"""

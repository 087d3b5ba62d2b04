"""The breakdown by attribute on the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from codmoe.evaluation.tables import format_value

_NOTE = (
    "mean IoU of the images of each bin; bold: the best expert there (equal to four decimals: all "
    "of them), whatever the number of images; definitions: codmoe/evaluation/attributes.py"
)


def breakdown_to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of the rows of :func:`codmoe.evaluation.attributes.breakdown`."""
    sources = _sources(rows)
    lines = [
        "| " + " | ".join(["attribute", "bin", "n", *sources, "best expert"]) + " |",
        "|" + "|".join([" :--- ", " :--- ", *[" ---: "] * (len(sources) + 1), " :--- "]) + "|",
    ]
    lines += ["| " + " | ".join(_cells(row, sources, "**{}**")) + " |" for row in rows]
    return "\n".join([*lines, "", f"- {_NOTE}"]) + "\n"


def print_breakdown(
    rows: Sequence[Mapping[str, Any]], *, title: str | None = None, console: Console | None = None
) -> None:
    """Prints the rows; the best expert of each is bold."""
    sources = _sources(rows)
    table = Table(title=title, title_justify="left")
    for name in ("attribute", "bin"):
        table.add_column(name, no_wrap=True)
    for name in ("n", *map(escape, sources)):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("best expert", no_wrap=True)
    for index, row in enumerate(rows):
        last = index + 1 == len(rows) or rows[index + 1]["attribute"] != row["attribute"]
        table.add_row(*_cells(row, sources, "[bold]{}[/bold]"), end_section=last)
    if console is None:
        console = Console()
        # In a log file rich assumes 80 columns and would cut figures to "0.7…".
        wide = console.options.update(width=10_000)
        console.width = max(console.width, console.measure(table, options=wide).maximum)
    console.print(table)
    console.print(_NOTE, style="dim", markup=False, highlight=False)


def _sources(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        raise ValueError("There is no breakdown to show: it has no rows.")
    return list(rows[0]["IoU"])


def _cells(row: Mapping[str, Any], sources: Sequence[str], bold: str) -> list[str]:
    values = [
        bold.format(text) if source in row["best"] else text
        for source in sources
        for text in [format_value(row["IoU"][source])]
    ]
    best = " = ".join(row["best"]) or "-"
    return [row["attribute"], row["bin"], str(row["n"]), *values, best]

"""A comparison on the terminal, as Markdown, as LaTeX and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from codmoe.evaluation.compare import Comparison
from codmoe.evaluation.measures import LOWER_IS_BETTER
from codmoe.evaluation.tables import format_value
from codmoe.files import replacing

_DIFFERENCE = ("dataset", "method", "baseline", "metric", "n", "difference", "low", "high")
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{"<": "$<$", ">": "$>$", "|": "$|$", "≥": r"$\geq$", "≤": r"$\leq$"},
    **{"α": r"$\alpha$", "β": r"$\beta$", "λ": r"$\lambda$", "²": "$^2$", "·": r"$\cdot$"},
    **{
        "×": r"$\times$",
        "−": "$-$",
        "±": r"$\pm$",
        "“": "``",
        "”": "''",
        "–": "--",
        "…": r"\dots{}",
    },
}


def latex_escape(text: str) -> str:
    """``text`` with every character that LaTeX reads as a command, or lacks, written out."""
    return "".join(_LATEX.get(character, character) for character in text)


def to_markdown(comparison: Comparison) -> str:
    """The table with its conventions; the best of each data set is bold."""
    bold = _marks("**{}**", "{}")
    cells = _cells(comparison, bold)
    table = _markdown(["data set", "method", "n", *_headings(comparison)], cells, 2)
    return table + _list(["bold: best of the data set as printed", *comparison.notes])


def differences_to_markdown(comparison: Comparison) -> str:
    """Differences to the baseline with their intervals; those that exclude zero are bold."""
    cells = []
    for row in comparison.differences:
        text = f"{row['difference']:+.4f}"
        text = text if row["verdict"] == "undecided" else f"**{text}**"
        names = [_pipe(row[key]) for key in ("dataset", "method", "metric")]
        cells.append([*names, str(row["n"]), text, _interval(row), row["verdict"]])
    heads = ["data set", "method", "metric", "n", "difference", "95 % interval", "verdict"]
    table = _markdown(heads, cells, 3) if cells else "No differences.\n\n"
    return table + _list(comparison.caveats)


def to_latex(comparison: Comparison) -> str:
    """A ``table*`` in booktabs style: methods in rows, data sets side by side.

    The best of each column is bold; of three or more methods the second is underlined.
    It wants ``\\usepackage{booktabs}``.
    """
    metrics, rows = comparison.metrics, comparison.rows
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells = _cells(comparison, _marks(r"\textbf{{{}}}", r"\underline{{{}}}"))
    found = {
        (row["dataset"], row["method"]): cell[3:] for row, cell in zip(rows, cells, strict=True)
    }
    counts = {row["dataset"]: row["n"] for row in rows}
    k = len(metrics)
    heads = [rf"\multicolumn{{{k}}}{{c}}{{{latex_escape(d)} ($n={counts[d]}$)}}" for d in datasets]
    rules = [rf"\cmidrule(lr){{{2 + i * k}-{1 + (i + 1) * k}}}" for i in range(len(datasets))]
    arrows = {key: r"$\downarrow$" if key in LOWER_IS_BETTER else r"$\uparrow$" for key in metrics}
    columns = [f"{latex_escape(key)} {arrows[key]}" for key in metrics] * len(datasets)
    body = []
    for method in methods:
        values = [found.get((dataset, method), ["-"] * k) for dataset in datasets]
        body.append([latex_escape(method), *[value for group in values for value in group]])
    notes = [f"{latex_escape(note)}." for note in comparison.notes]
    legend = r"\textbf{bold}: best as printed"
    if 2 in comparison.ranks.values():
        legend += r"; \underline{underlined}: second"
    lines = [
        "% \\usepackage{booktabs}",
        r"\begin{table*}[t]",
        r"\centering",
        rf"\begin{{tabular}}{{l{'r' * (k * len(datasets))}}}",
        r"\toprule",
        " & ".join(["", *heads]) + r" \\",
        " ".join(rules),
        " & ".join(["Method", *columns]) + r" \\",
        r"\midrule",
        *[" & ".join(row) + r" \\" for row in body],
        r"\bottomrule",
        r"\end{tabular}",
        rf"\par\smallskip\raggedright\footnotesize {legend}.",
        *notes,
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def to_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """The rows in full precision; NaN is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if row[key] != row[key] else row[key] for key in columns])
    return text.getvalue()


def write_comparison(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Writes compare.md, .tex and .csv and differences.md and .csv; old ones keep a dated name."""
    columns = ["dataset", "method", "source", "file", "n", *comparison.metrics]
    texts = {
        "compare.md": to_markdown(comparison),
        "compare.tex": to_latex(comparison),
        "compare.csv": to_csv(comparison.rows, columns),
        "differences.md": differences_to_markdown(comparison),
        "differences.csv": to_csv(comparison.differences, [*_DIFFERENCE, "verdict"]),
    }
    for name, text in texts.items():
        with replacing(Path(folder) / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [Path(folder) / name for name in texts]


def print_comparison(comparison: Comparison, *, console: Console | None = None) -> None:
    """Prints the table and the differences."""
    bold = _marks("[bold]{}[/bold]", "{}")
    heads = ["data set", "method", "n", *map(escape, _headings(comparison))]
    cells = [[*map(escape, row[:2]), *row[2:]] for row in _cells(comparison, bold, str)]
    _print(heads, cells, 2, comparison.notes, console)
    if comparison.differences:
        cells = []
        for row in comparison.differences:
            names = [escape(row[key]) for key in ("dataset", "method", "metric")]
            interval = escape(_interval(row))
            verdict = row["verdict"]
            verdict = verdict if verdict == "undecided" else f"[bold]{verdict}[/bold]"
            cells.append([*names, str(row["n"]), f"{row['difference']:+.4f}", interval, verdict])
        heads = ["data set", "method", "metric", "n", "difference", "95 % interval", "verdict"]
        _print(heads, cells, 3, comparison.caveats, console)


def _print(
    heads: Sequence[str],
    cells: Sequence[Sequence[str]],
    names: int,
    notes: Sequence[str],
    console: Console | None,
) -> None:
    table = Table()
    for index, head in enumerate(heads):
        justify = "left" if index < names or head == "verdict" else "right"
        table.add_column(head, justify=justify, no_wrap=True)
    for index, row in enumerate(cells):
        last = index + 1 == len(cells) or cells[index + 1][0] != row[0]
        table.add_row(*row, end_section=last)
    if console is None:
        console = Console()
        # In a log file rich assumes 80 columns and would cut figures to "0.7…".
        wide = console.options.update(width=10_000)
        console.width = max(console.width, console.measure(table, options=wide).maximum)
    console.print(table)
    for note in notes:
        console.print(note, style="dim", markup=False, highlight=False)


def _marks(first: str, second: str) -> dict[int | None, str]:
    return {1: first, 2: second, None: "{}"}


def _pipe(text: str) -> str:
    return text.replace("|", "\\|")


def _headings(comparison: Comparison) -> list[str]:
    return [f"{key} {'↓' if key in LOWER_IS_BETTER else '↑'}" for key in comparison.metrics]


def _cells(comparison: Comparison, marks: Mapping, name=_pipe) -> list[list[str]]:
    return [
        [name(row["dataset"]), name(row["method"]), str(row["n"])]
        + [
            marks[comparison.ranks.get((index, key))].format(format_value(row[key]))
            for key in comparison.metrics
        ]
        for index, row in enumerate(comparison.rows)
    ]


def _interval(row: Mapping[str, Any]) -> str:
    if math.isnan(row["low"]):
        return "-"
    return f"[{row['low']:+.4f}, {row['high']:+.4f}]"


def _markdown(heads: Sequence[str], cells: Sequence[Sequence[str]], names: int) -> str:
    aligned = [" :--- "] * names + [" ---: "] * (len(heads) - names)
    rows = ["| " + " | ".join(row) + " |" for row in (heads, *cells)]
    return "\n".join([rows[0], f"|{'|'.join(aligned)}|", *rows[1:]]) + "\n\n"


def _list(notes: Sequence[str]) -> str:
    return "".join(f"- {note}\n" for note in notes)

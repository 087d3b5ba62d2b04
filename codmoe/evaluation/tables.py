"""Results as rows, on the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from codmoe.evaluation.conventions import AGGREGATE_KEYS, CONVENTIONS, LOWER_IS_BETTER
from codmoe.files import replacing
from codmoe.messages import suggest

DEFAULT_METRICS = ("IoU", "Dice", "Sm", "wFm", "meanEm", "meanFm", "MAE", "mIoU", "mDice")
_UNRANKED = "oracle"
_ORACLE_NOTE = "oracle: best expert of each image by the ground truth, a bound and not ranked"


def result_rows(
    table: Mapping[str, Mapping[str, Mapping[str, Any]]],
    metrics: Sequence[str] | None = None,
    *,
    datasets: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """The rows of a results table, one per data set and source.

    Args:
        table: ``CODMetric.table``.
        metrics: Columns, of ``AGGREGATE_KEYS``; None takes those of ``DEFAULT_METRICS`` there are.
        datasets: Data sets in this order; None takes all.
        sources: Sources in this order; None takes all.

    Returns:
        Dictionaries with ``dataset``, ``source``, ``n`` and one value per metric.

    Raises:
        ValueError: A metric, data set or source is not in the table.
    """
    rows = []
    for dataset in _chosen("data set", datasets, table):
        for source in _chosen("source", sources, table[dataset]):
            values = table[dataset][source]
            present = [key for key in AGGREGATE_KEYS if key in values and key != "n"]
            wanted = metrics or [key for key in DEFAULT_METRICS if key in present]
            columns = _chosen("metric", wanted, present)
            row = {"dataset": dataset, "source": source, "n": values["n"]}
            rows.append(row | {key: values[key] for key in columns})
    return rows


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with the conventions below it.

    Of several sources on one data set the best of each column is bold; the oracle is not ranked,
    since it reads the ground truth and would always win.
    """
    metrics = _metrics(rows)
    best = best_cells(rows, metrics)
    lines = [
        "| " + " | ".join(["data set", "source", "n", *metrics]) + " |",
        "|" + "|".join([" :--- ", " :--- ", *[" ---: "] * (len(metrics) + 1)]) + "|",
    ]
    for index, row in enumerate(rows):
        cells = [
            f"**{format_value(row[key])}**" if (index, key) in best else format_value(row[key])
            for key in metrics
        ]
        lines.append(
            "| " + " | ".join([row["dataset"], row["source"], str(row["n"]), *cells]) + " |"
        )
    return "\n".join([*lines, "", *[f"- {note}" for note in table_notes(rows, metrics)]]) + "\n"


def print_table(
    rows: Sequence[Mapping[str, Any]], *, title: str | None = None, console: Console | None = None
) -> None:
    """Prints the table and its conventions; the best of each column is bold, as in Markdown."""
    metrics = _metrics(rows)
    best = best_cells(rows, metrics)
    table = Table(title=title, title_justify="left")
    table.add_column("data set", no_wrap=True)
    table.add_column("source", no_wrap=True)
    for key in ("n", *metrics):
        table.add_column(key, justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        cells = [
            f"[bold]{format_value(row[key])}[/bold]"
            if (index, key) in best
            else format_value(row[key])
            for key in metrics
        ]
        last = index + 1 == len(rows) or rows[index + 1]["dataset"] != row["dataset"]
        names = escape(row["dataset"]), escape(row["source"])
        table.add_row(*names, str(row["n"]), *cells, end_section=last)
    if console is None:
        console = Console()
        # In a log file rich assumes 80 columns and would cut figures to "0.7…".
        wide = console.options.update(width=10_000)
        console.width = max(console.width, console.measure(table, options=wide).maximum)
    console.print(table)
    for note in table_notes(rows, metrics):
        console.print(note, style="dim", markup=False, highlight=False)


def save_json(path: str | os.PathLike, payload: Any) -> Path:
    """Writes ``payload`` as JSON, whole or not at all.

    A file that is already there is kept as ``<stem>.<YYYYmmdd-HHMMSS><suffix>``. Arrays and tensors
    become lists, paths strings, and NaN and infinities null, which JSON has no number for.

    Returns:
        ``path``.
    """
    path = Path(path)
    with replacing(path) as temporary:
        text = json.dumps(_plain(payload), indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def format_value(value: float) -> str:
    """Four decimals, or a dash where there is no number."""
    return f"{value:.4f}" if math.isfinite(value) else "-"


def _chosen(kind: str, wanted: Sequence[str] | None, there: Sequence[str]) -> list[str]:
    wanted = list(there) if wanted is None else list(wanted)
    for name in wanted:
        if name not in there:
            raise ValueError(f"The results have no {kind} {name!r}; {suggest(name, there)}")
    return wanted


def _metrics(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        raise ValueError("There are no results to show: the table has no rows.")
    columns = [key for key in rows[0] if key not in ("dataset", "source", "n")]
    if any(list(row)[3:] != columns for row in rows):
        raise ValueError("The rows do not have the same columns; name them with `metrics=`.")
    return columns


def best_cells(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> set[tuple[int, str]]:
    """Row number and metric of each data set's best values; the oracle is not ranked."""
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row["source"] != _UNRANKED:
            groups.setdefault(row["dataset"], []).append(index)
    best = set()
    for key in metrics:
        pick = min if key in LOWER_IS_BETTER else max
        for group in groups.values():
            # Compared as printed, so that equal figures are bold together.
            values = {i: round(rows[i][key], 4) for i in group if math.isfinite(rows[i][key])}
            if len(group) > 1 and values:
                top = pick(values.values())
                best |= {(i, key) for i, value in values.items() if value == top}
    return best


def table_notes(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[str]:
    """One line for each group of columns that share a convention."""
    groups: dict[str, list[str]] = {}
    for key in metrics:
        own, _, shared = CONVENTIONS.get(key, "").partition("; ")
        groups.setdefault(shared or own, []).append(f"{key} ({own})" if shared else key)
    notes = [f"{', '.join(keys)}: {convention}" for convention, keys in groups.items()]
    return notes + ([_ORACLE_NOTE] if any(row["source"] == _UNRANKED for row in rows) else [])


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, os.PathLike) else value


_NOTE = (
    "mean IoU of the images of each bin; bold: the best expert there (equal to four decimals: all "
    "of them), whatever the number of images; definitions: codmoe/evaluation/attributes.py"
)


def breakdown_to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of the rows of :func:`breakdown`."""
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

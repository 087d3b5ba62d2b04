"""Results as rows, and rows as tables for the terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from codmoe.console import Bold, TextTable, grouped
from codmoe.evaluation.conventions import AGGREGATE_KEYS, CONVENTIONS, LOWER_IS_BETTER, ORACLE
from codmoe.messages import suggest

DEFAULT_METRICS = (
    *("IoU", "Dice", "Sm", "wFm", "meanEm", "meanFm", "MAE", "mIoU", "mDice"),
    *("CM", "CCM", "MSIoU", "meanMSIoU", "SIMAE", "meanSIFm", "HCE"),  # where they were asked for
)
Ranks = dict[tuple[int, str], int]
_ORACLE_NOTE = "oracle: best expert of each image by the ground truth, a bound and not ranked"
_BREAKDOWN_NOTE = (
    "mean IoU of the images of each bin; bold: the best expert there (equal to four decimals: all "
    "of them), whatever the number of images; definitions: codmoe/evaluation/attributes.py"
)


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
    for dataset in chosen("data set", datasets, table):
        for source in chosen("source", sources, table[dataset]):
            values = table[dataset][source]
            present = [key for key in AGGREGATE_KEYS if key in values and key != "n"]
            wanted = metrics or [key for key in DEFAULT_METRICS if key in present]
            columns = chosen("metric", wanted, present)
            row = {"dataset": dataset, "source": source, "n": values["n"]}
            rows.append(row | {key: values[key] for key in columns})
    return rows


def result_table(
    rows: Sequence[Mapping[str, Any]],
    title: str | None = None,
    trained_on: Mapping[str, int] | None = None,
) -> TextTable:
    """The rows of :func:`result_rows` with the conventions below them.

    Of several sources on one data set the best of each column is bold; the oracle is not ranked,
    since it reads the ground truth and would always win. ``trained_on`` tells how many images of
    each data set the weights were trained on; a line says so.

    Raises:
        ValueError: There are no rows, or their columns differ.
    """
    if not rows:
        raise ValueError("There are no results to show: the table has no rows.")
    metrics = list(rows[0])[3:]
    if any(list(row)[3:] != metrics for row in rows):
        raise ValueError("The rows do not have the same columns; name them with `metrics=`.")
    best = ranks(rows, metrics)
    cells = [
        [row["dataset"], row["source"], str(row["n"])]
        + [best_in_bold(row[key], best.get((index, key))) for key in metrics]
        for index, row in enumerate(rows)
    ]
    heads = ["data set", "source", "n", *metrics]
    notes = trained_on_notes(trained_on, rows) + table_notes(rows, metrics)
    return TextTable(heads, grouped(cells), (0, 1), title, notes)


def breakdown_table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> TextTable:
    """The rows of :func:`codmoe.evaluation.attributes.breakdown`, the best expert of each bold.

    Raises:
        ValueError: There are no rows.
    """
    if not rows:
        raise ValueError("There is no breakdown to show: it has no rows.")
    sources = list(rows[0]["IoU"])
    cells = [
        [row["attribute"], row["bin"], str(row["n"])]
        + [best_in_bold(row["IoU"][source], source in row["best"]) for source in sources]
        + [" = ".join(row["best"]) or "-"]
        for row in rows
    ]
    heads = ["attribute", "bin", "n", *sources, "best expert"]
    return TextTable(heads, grouped(cells), (0, 1, -1), title, [_BREAKDOWN_NOTE])


def format_value(value: float) -> str:
    """Four decimals, or a dash where there is no number."""
    return f"{value:.4f}" if math.isfinite(value) else "-"


def best_in_bold(value: float, rank: int | None) -> str:
    """:func:`format_value`, bold if ``rank`` is 1 (or True)."""
    return Bold(format_value(value)) if rank == 1 else format_value(value)


def chosen(kind: str, wanted: Iterable[str] | None, there: Iterable[str]) -> list[str]:
    """``wanted`` as a list, or all that is ``there`` for None.

    Raises:
        ValueError: Something wanted is not there; ``kind`` says what it would be.
    """
    there = list(there)
    wanted = list(dict.fromkeys(there if wanted is None else wanted))
    for name in wanted:
        if name not in there:
            raise ValueError(f"The results have no {kind} {name!r}; {suggest(name, there)}")
    return wanted


def ranks(rows: Sequence[Mapping[str, Any]], metrics: Iterable[str]) -> Ranks:
    """Places of the rows on each data set by each metric, ``{(row number, metric): 1 or 2}``.

    Values are compared as printed, so that equal figures are marked alike. The oracle is not
    ranked, a lone figure is the best of nothing, and of two the second is merely the other.
    """
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row["source"] != ORACLE:
            groups.setdefault(row["dataset"], []).append(index)
    found: Ranks = {}
    for key in metrics:
        for group in groups.values():
            values = {i: round(rows[i][key], 4) for i in group if math.isfinite(rows[i][key])}
            if len(values) > 1:
                order = sorted(set(values.values()), reverse=key not in LOWER_IS_BETTER)
                order = order[: 2 if len(values) > 2 else 1]
                found |= {(i, key): order.index(v) + 1 for i, v in values.items() if v in order}
    return found


def table_notes(rows: Sequence[Mapping[str, Any]], metrics: Iterable[str]) -> list[str]:
    """One line for each group of columns that share a convention, and one about the oracle."""
    notes = convention_notes({key: CONVENTIONS.get(key, "") for key in metrics})
    return notes + oracle_notes(row["source"] for row in rows)


def convention_notes(conventions: Mapping[str, str]) -> list[str]:
    """The conventions of some metrics, what several of them share said once."""
    groups: dict[str, list[str]] = {}
    for key, convention in conventions.items():
        own, _, shared = convention.partition("; ")
        groups.setdefault(shared or own, []).append(f"{key} ({own})" if shared else key)
    return [f"{', '.join(keys)}: {convention}" for convention, keys in groups.items()]


def trained_on_notes(
    trained_on: Mapping[str, int] | None, rows: Iterable[Mapping[str, Any]]
) -> list[str]:
    """A line for each data set of which images are among those that the weights were trained on."""
    total = {row["dataset"]: row["n"] for row in rows}
    return [
        f"{name}: the weights were TRAINED ON {count:,} of these {total[name]:,} images, so these "
        "figures are no test; take them out (--held-out of own data, exclude of a data set)"
        for name, count in (trained_on or {}).items()
        if count and name in total
    ]


def oracle_notes(sources: Iterable[str]) -> list[str]:
    """The line that a table with an oracle among its sources needs."""
    return [_ORACLE_NOTE] if ORACLE in sources else []

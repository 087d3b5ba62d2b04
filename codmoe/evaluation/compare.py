"""Several methods side by side, and how sure their differences are."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from codmoe.evaluation.attributes import listed
from codmoe.evaluation.bootstrap import paired_intervals
from codmoe.evaluation.conventions import LOWER_IS_BETTER
from codmoe.evaluation.result_files import ORACLE, Method
from codmoe.evaluation.tables import DEFAULT_METRICS, format_value
from codmoe.files import replacing
from codmoe.messages import suggest

FEW = 30
_NOT_A_MEAN = (
    "a maximum over thresholds of the mean curve, or pooled over pixels: a number of the whole "
    "data set and not the mean of numbers of its images, so drawing from a table of per-image "
    "values cannot give its interval"
)
_NO_MEAN = "its values per image do not average to its number for the data set"
_ABSENT = "a result file does not have it"


@dataclass
class Comparison:
    """What :func:`compare` finds.

    Args:
        metrics: The columns.
        rows: One per data set and method: ``dataset``, ``method``, ``source``, ``file``, ``n`` and
            a value per metric (NaN where the file has none).
        ranks: ``{(index of the row, metric): 1 or 2}``, best of the data set and, of
            three or more methods, second best.
        baseline: Name of the method that ``differences`` are against.
        differences: One per data set, other method and metric: ``dataset``, ``method``,
            ``baseline``, ``metric``, ``n``, ``difference``, ``low``, ``high``, and ``verdict``:
            ``"better"``, ``"worse"`` (the interval excludes zero) or ``"undecided"``.
        notes: Conventions of the columns, one line per convention.
        caveats: How to read the differences, and which metrics have none.
        curves: ``{method: {dataset: curves}}`` of the files that have them.
        without_curves: ``"method on data set"`` of those that have none.
    """

    metrics: list[str]
    rows: list[dict[str, Any]]
    ranks: dict[tuple[int, str], int]
    baseline: str
    differences: list[dict[str, Any]]
    notes: list[str]
    caveats: list[str]
    curves: dict[str, dict[str, dict[str, list[float]]]]
    without_curves: list[str]


def compare(
    methods: Sequence[Method],
    *,
    metrics: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    baseline: str | None = None,
    samples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compares methods on the data sets they share.

    Args:
        methods: Of :func:`load_methods`; names must differ.
        metrics: Columns; None takes those of ``DEFAULT_METRICS`` there are.
        datasets: Data sets in this order; None takes all.
        baseline: Method that the others are subtracted from; None takes the first.
        samples: Draws of the bootstrap.
        seed: Of the draws.

    Raises:
        ValueError: A metric, data set or baseline is unknown, or two methods were not scored on the
            same images of a data set.
    """
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise ValueError(f"Methods need names of their own, but they are {', '.join(names)}.")
    known = list(dict.fromkeys(dataset for method in methods for dataset in method.rows))
    datasets = _chosen("data set", datasets, known)
    for dataset in datasets:
        _check_images(dataset, [method for method in methods if dataset in method.rows])
    there = list(
        dict.fromkeys(
            key
            for method in methods
            for dataset in datasets
            for key, value in method.rows.get(dataset, {}).items()
            if isinstance(value, (int, float)) and key != "n"
        )
    )
    if metrics is None:
        metrics = [key for key in DEFAULT_METRICS if key in there] or there
    metrics = _chosen("metric", metrics, there)
    reference = methods[names.index(_chosen("baseline", [baseline or names[0]], names)[0])]
    rows = [_row(method, dataset, metrics) for dataset in datasets for method in methods]
    rows = [row for row in rows if row["n"]]
    differences, without = [], {}
    # {(reason, metric): data sets}
    for dataset in datasets:
        for method in methods:
            if method is not reference and dataset in method.rows and dataset in reference.rows:
                found, reasons = _differences(method, reference, dataset, metrics, samples, seed)
                differences += found
                for key, reason in reasons.items():
                    without.setdefault((reason, key), {})[dataset] = None
    caveats = _caveats(differences, without, reference.name, samples, seed)
    absent = [dataset for dataset in datasets if dataset not in reference.rows]
    if absent and len(methods) > 1:
        caveats.append(
            f"no differences on {', '.join(absent)}: {reference.name} has no result there"
        )
    pairs = [(m, d) for d in datasets for m in methods if d in m.rows]
    curves: dict[str, dict] = {}
    for method, dataset in pairs:
        if "curves" in method.rows[dataset]:
            curves.setdefault(method.name, {})[dataset] = method.rows[dataset]["curves"]
    return Comparison(
        metrics=metrics,
        rows=rows,
        ranks=_ranks(rows, metrics),
        baseline=reference.name,
        differences=differences,
        notes=_notes(methods, metrics),
        caveats=caveats,
        curves=curves,
        without_curves=[f"{m.name} on {d}" for m, d in pairs if "curves" not in m.rows[d]],
    )


def _chosen(kind: str, wanted: Sequence[str] | None, there: Sequence[str]) -> list[str]:
    wanted = list(dict.fromkeys(there if wanted is None else wanted))
    for name in wanted:
        if name not in there:
            raise ValueError(f"The results have no {kind} {name!r}; {suggest(name, there)}")
    return wanted


def _check_images(dataset: str, methods: Sequence[Method]) -> None:
    first = methods[0].rows[dataset]["images"]
    for other in methods[1:]:
        images = other.rows[dataset]["images"]
        faults = [
            f"{listed(stems)} of {method.name!r} only"
            for method, stems in (
                (methods[0], [stem for stem in first if stem not in images]),
                (other, [stem for stem in images if stem not in first]),
            )
            if stems
        ]
        if faults:
            raise ValueError(
                f"{methods[0].name!r} and {other.name!r} were not scored on the same images of "
                f"{dataset}: {'; '.join(faults)}. Score both on one set; numbers over different "
                "images do not compare."
            )


def _row(method: Method, dataset: str, metrics: Sequence[str]) -> dict[str, Any]:
    values = method.rows.get(dataset, {})
    row = dict(dataset=dataset, method=method.name, source=method.source, file=str(method.path))
    return row | {"n": values.get("n", 0)} | {key: values.get(key, math.nan) for key in metrics}


def _ranks(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict:
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        # The oracle reads the ground truth and would always win.
        if row["source"] != ORACLE:
            groups.setdefault(row["dataset"], []).append(index)
    ranks = {}
    for key in metrics:
        for group in groups.values():
            # Compared as printed, so that equal figures are marked alike.
            values = {i: round(rows[i][key], 4) for i in group if math.isfinite(rows[i][key])}
            if len(values) > 1:
                order = sorted(set(values.values()), reverse=key not in LOWER_IS_BETTER)
                # Of two, the second is merely the other.
                order = order[: 2 if len(values) > 2 else 1]
                ranks |= {(i, key): order.index(v) + 1 for i, v in values.items() if v in order}
    return ranks


def _differences(
    method: Method,
    baseline: Method,
    dataset: str,
    metrics: Sequence[str],
    samples: int,
    seed: int,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    pair = [source.rows[dataset] for source in (method, baseline)]
    stems = list(pair[1]["images"])
    keys, columns, without = [], [], {}
    for key in metrics:
        values = [
            np.array([row["images"][stem].get(key, math.nan) for stem in stems], np.float64)
            for row in pair
        ]
        if any(not math.isfinite(row.get(key, math.nan)) for row in pair):
            without[key] = _ABSENT
        elif any(not np.isfinite(column).any() for column in values):
            without[key] = _NOT_A_MEAN
        elif any(
            abs(np.nanmean(column) - row[key]) > 1e-5
            for column, row in zip(values, pair, strict=True)
        ):
            without[key] = _NO_MEAN
        else:
            keys.append(key)
            columns.append(values)
    if not keys:
        return [], without
    ours, theirs = (np.stack(side, axis=1) for side in zip(*columns, strict=True))
    # One seed for every pair and metric: all are read on the same draws of images.
    intervals = paired_intervals(ours, theirs, samples=samples, seed=seed)
    found = []
    for key, interval in zip(keys, intervals, strict=True):
        rising = (interval.difference > 0) != (key in LOWER_IS_BETTER)
        verdict = ("better" if rising else "worse") if interval.excludes_zero else "undecided"
        row = dict(dataset=dataset, method=method.name, baseline=baseline.name, metric=key)
        row |= dict(n=interval.n, difference=interval.difference)
        found.append(row | dict(low=interval.low, high=interval.high, verdict=verdict))
    return found, without


def _notes(methods: Sequence[Method], metrics: Sequence[str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    differing = []
    for key in metrics:
        said: dict[str, list[str]] = {}
        for method in methods:
            said.setdefault(method.conventions.get(key, ""), []).append(method.name)
        texts = [text for text in said if text]
        if len(texts) > 1:
            each = "; ".join(f"{', '.join(said[text])}: “{text}”" for text in texts)
            differing.append(
                f"{key}: the files state different conventions, compare with care: {each}"
            )
            continue
        own, _, shared = (texts[0] if texts else "").partition("; ")
        if not texts:
            shared, own = "convention not stated in the files", ""
        groups.setdefault(shared or own, []).append(f"{key} ({own})" if shared and own else key)
    notes = differing + [f"{', '.join(keys)}: {text}" for text, keys in groups.items()]
    if any(method.source == ORACLE for method in methods):
        notes.append("oracle: best expert of each image by the ground truth, a bound, not ranked")
    return notes


def _caveats(
    differences: Sequence[Mapping[str, Any]],
    without: Mapping[tuple[str, str], Mapping[str, None]],
    baseline: str,
    samples: int,
    seed: int,
) -> list[str]:
    notes = []
    if differences:
        decided = sum(row["verdict"] != "undecided" for row in differences)
        notes += [
            f"method minus {baseline}, mean over images; 95 % percentile interval of {samples} "
            f"paired bootstrap draws of images, seed {seed}; better or worse: the interval "
            f"excludes zero ({decided} of {len(differences)})",
            "the intervals cover the choice of test images, not another training seed, and are not "
            f"corrected for {len(differences)} comparisons",
        ]
        few = sorted({row["dataset"] for row in differences if row["n"] < FEW})
        if few:
            notes.append(
                f"fewer than {FEW} images ({', '.join(few)}): percentile intervals are too narrow"
            )
    reasons: dict[str, list[str]] = {}
    for (reason, key), datasets in without.items():
        reasons.setdefault(reason, []).append(f"{key} ({', '.join(datasets)})")
    return notes + [f"no interval for {', '.join(keys)}: {text}" for text, keys in reasons.items()]


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

"""Reads result files, puts methods side by side and says how sure their differences are."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console

from codmoe.console import Bold, TextTable, grouped, markdown_text
from codmoe.evaluation.conventions import COMBINED, LOWER_IS_BETTER, MIXTURE
from codmoe.evaluation.intervals import FEW, UNSEEN, paired_intervals, run_interval
from codmoe.evaluation.tables import (
    DEFAULT_METRICS,
    Ranks,
    chosen,
    convention_notes,
    format_value,
    oracle_notes,
    ranks,
)
from codmoe.files import save_text
from codmoe.messages import listed, printable, suggest
from codmoe.registry import fits, value_faults

ALL = "all"
_OF_NO_IMAGE = (
    "a maximum over thresholds of the mean curve, or pooled over pixels: a number of the whole "
    "data set; or a result file whose values per image were left out"
)
_NO_MEAN = "its values per image do not average to its number for the data set"
_ABSENT = "a result file does not have it"


@dataclass
class Method:
    """One source of one result file.

    Args:
        name: What tables call it.
        source: Its name in the file: ``"mixture"``, an expert, ``"oracle"``, a published method.
        path: The file.
        rows: ``{dataset: ROW}``; a row has its numbers, ``images`` ({stem: {metric: value}}) and,
            unless an older version wrote it, ``curves``.
        conventions: ``{metric: text}`` of the file.
        runs: The runs (seeds) that this is the mean of, if there are several.
    """

    name: str
    source: str
    path: Path
    rows: dict[str, dict[str, Any]]
    conventions: dict[str, str] = field(default_factory=dict)
    runs: Sequence[Method] = ()


def load_methods(
    paths: Sequence[str | os.PathLike],
    *,
    names: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
) -> list[Method]:
    """The methods of some result files, in their order.

    Args:
        paths: JSON files.
        names: One per file; by default the stem of its checkpoint, or the method it names, or the
            file's stem, made unique. Files of equal names are runs (seeds) of one method. Of
            several sources of a file each adds ``/<source>``.
        sources: Sources to take from each file; ``"all"`` takes every one, None the mixture. A file
            of one method that is no mixture (saved maps) is taken whatever this says.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is no result file or lacks a source; names do not fit the files; files of
            one name are the same file or have different sources.
    """
    if not paths:
        raise ValueError("There is no result file to compare; name at least one.")
    if names is not None and len(names) != len(paths):
        raise ValueError(
            f"{len(names)} name(s) for {len(paths)} file(s): {', '.join(names)}; give each file "
            "one name, and runs (seeds) of one method the same."
        )
    methods: list[Method] = []
    runs: dict[str, dict[Path, list[str]]] = {}  # {name: {file: sources}}
    files = [Path(path) for path in paths]
    loaded = [_read(path) for path in files]
    bases = list(names) if names else _unique([base for base, _, _ in loaded], files)
    for path, base, (_, table, conventions) in zip(files, bases, loaded, strict=True):
        taken = _sources(path, table, sources)
        _check_run(base, path, taken, runs.setdefault(base, {}))
        for source in taken:
            rows = {dataset: found[source] for dataset, found in table.items() if source in found}
            name = base if len(taken) == 1 else f"{base}/{source}"
            if any(m.name == name and m.path not in runs[base] for m in methods):
                raise ValueError(f"Two methods would be called {name!r}; name the files apart.")
            methods.append(Method(name, source, path, rows, conventions))
    return methods


def _check_run(name: str, path: Path, taken: list[str], before: dict[Path, list[str]]) -> None:
    """Raises if ``path`` is no further run beside those ``before``, to which it is added."""
    if any(path.resolve() == other.resolve() for other in before):
        raise ValueError(f"{path} is given twice as a run of {name!r}; give each run once.")
    for other, sources in before.items():
        maps = len(taken) == len(sources) == 1 and not {*taken, *sources} & {*COMBINED}
        if taken != sources and not maps:
            raise ValueError(
                f"Runs of {name!r} have different sources: {', '.join(sources)} in {other}, "
                f"{', '.join(taken)} in {path}; name one that each has with --sources, or give "
                "the files names of their own."
            )
    before[path] = taken


def _read(path: Path) -> tuple[str, dict[str, dict[str, dict]], dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"The result file {path} does not exist; make it with --json of codmoe test or "
            "codmoe eval."
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no JSON file ({error}); give what --json of codmoe test or "
            "codmoe eval wrote"
        ) from None
    fault = (
        f"{path} is no result file: it has neither a `table` ({{data set: {{source: row}}}}) nor a "
        "row with `images`; give what codmoe test or codmoe eval wrote."
    )
    if not isinstance(data, Mapping):
        raise ValueError(fault)
    if "table" in data:
        table = data["table"]
        checkpoint = data.get("checkpoint")
        base = str(data.get("method") or (Path(checkpoint).stem if checkpoint else path.stem))
    elif "images" in data:
        base = str(data.get("method") or path.stem)
        table = {str(data.get("dataset") or "data"): {base: data}}
    else:
        raise ValueError(fault)
    if not isinstance(table, Mapping) or not table:
        raise ValueError(fault)
    if not all(isinstance(rows, Mapping) and rows for rows in table.values()):
        raise ValueError(fault)
    kinds = {source for rows in table.values() for source in rows}
    if "checkpoint" not in data and len(kinds) == 1:
        base = kinds.pop()
    cleaned = {
        dataset: {source: _checked(path, dataset, source, row) for source, row in rows.items()}
        for dataset, rows in table.items()
    }
    conventions = data.get("conventions") or {}
    if not fits(conventions, dict[str, str]):
        raise ValueError(fault)
    return base, cleaned, conventions


def _checked(path: Path, dataset: str, source: str, row: Mapping[str, Any]) -> dict[str, Any]:
    where = f"{path}: {source!r} on {dataset!r}"
    images = row.get("images") if isinstance(row, Mapping) else None
    if not images:
        raise ValueError(
            f"{where} has no values per image (`images`), so nothing can be paired; write the file "
            "again with codmoe test or codmoe eval."
        )
    parts: dict[str, Any] = dict(images=dict[str, dict[str, float | None]])
    parts["curves"] = dict[str, list[float | None]] | None
    for fault in value_faults({k: row[k] for k in parts if k in row}, parts, where):
        raise ValueError(f"{fault}; give what codmoe test or codmoe eval wrote")
    numbers = {key: _number(value) for key, value in row.items() if _is_number(value)}
    if numbers.get("n", len(images)) != len(images):
        raise ValueError(f"{where} says n = {row['n']} and lists {len(images)} images.")
    cleaned: dict[str, Any] = {**numbers, "n": len(images)}
    cleaned["images"] = {
        stem: {key: _number(value) for key, value in values.items()}
        for stem, values in images.items()
    }
    if row.get("curves"):
        curves = row["curves"]
        cleaned["curves"] = {key: [_number(v) for v in values] for key, values in curves.items()}
    return cleaned


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _number(value: float | None) -> float:
    # JSON has no NaN; `save_json` writes null for it.
    return math.nan if value is None else value


def _sources(
    path: Path, table: Mapping[str, Mapping[str, Any]], wanted: Sequence[str] | None
) -> list[str]:
    known = list(dict.fromkeys(source for rows in table.values() for source in rows))
    if len(known) == 1 and known[0] != MIXTURE:
        return known
    taken = []
    for source in wanted or [MIXTURE]:
        if source != ALL and source not in known:
            raise ValueError(f"{path} has no source {source!r}; {suggest(source, [*known, ALL])}")
        taken += known if source == ALL else [source]
    return list(dict.fromkeys(taken))


def _unique(bases: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Names told apart by what tells their files apart: file stem, then folder, then number."""
    names = list(bases)
    for detail in ("{0.stem}", "{0.parent.name}/{0.stem}", "{1}"):
        counts = Counter(names)
        names = [
            name if counts[name] == 1 else f"{base} ({detail.format(path, index + 1)})"
            for index, (name, base, path) in enumerate(zip(names, bases, paths, strict=True))
        ]
    return names


@dataclass
class Comparison:
    """Result of :func:`compare`.

    Args:
        metrics: The columns.
        rows: One per data set and method: ``dataset``, ``method``, ``source``, ``file``, ``n`` and
            a value per metric (NaN where the file has none). If any method has several runs,
            values are means over runs, and a row has ``runs``, how many, and ``"<metric> sd"``,
            their sample standard deviation (NaN of one run).
        ranks: ``{(index of the row, metric): 1 or 2}``, best of the data set and, of
            three or more methods, second best.
        baseline: Name of the method that ``differences`` are against.
        differences: One per data set, other method and metric: ``dataset``, ``method``,
            ``baseline``, ``metric``, ``n``, ``difference``, ``low``, ``high``, and ``verdict``:
            ``"better"``, ``"worse"`` (the interval excludes zero) or ``"undecided"``. If any method
            has several runs there is also the interval over runs, ``runs_low``, ``runs_high``, and
            a verdict needs both.
        notes: Conventions of the columns, one line per convention.
        caveats: How to read the differences, and which metrics have none.
        curves: ``{method: {dataset: curves}}`` of the files that have them.
        without_curves: ``"method on data set"`` of those that have none, or a run that has none.
    """

    metrics: list[str]
    rows: list[dict[str, Any]]
    ranks: Ranks
    baseline: str
    differences: list[dict[str, Any]]
    notes: list[str]
    caveats: list[str]
    curves: dict[str, dict[str, dict[str, list[float]]]]
    without_curves: list[str]

    @property
    def several(self) -> bool:
        """Whether a method has several runs."""
        return any("runs" in row for row in self.rows)

    @property
    def intervals(self) -> dict[str, str]:
        """What differences have intervals over, ``{prefix of their keys: title}``."""
        if self.several:
            return {"": "95 % over images", "runs_": "95 % over runs"}
        return {"": "95 % interval"}


def compare(
    methods: Sequence[Method],
    *,
    metrics: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    baseline: str | None = None,
) -> Comparison:
    """Compares methods on the data sets they share.

    Args:
        methods: Of :func:`load_methods`; those of one name are runs (seeds) of one method.
        metrics: Columns; None takes those of ``DEFAULT_METRICS`` there are.
        datasets: Data sets in this order; None takes all.
        baseline: Method that the others are subtracted from; None takes the first.

    Raises:
        ValueError: A metric, data set or baseline is unknown, two methods were not scored on the
            same images of a data set, or runs of one method differ in data sets or conventions.
    """
    known = list(dict.fromkeys(dataset for method in methods for dataset in method.rows))
    datasets = chosen("data set", datasets, known)
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
    metrics = chosen("metric", metrics, there)
    by_name: dict[str, list[Method]] = {}
    for method in methods:
        by_name.setdefault(method.name, []).append(method)
    methods = [_averaged(runs, datasets, metrics) for runs in by_name.values()]
    several = any(method.runs for method in methods)
    names = list(by_name)
    reference = methods[names.index(chosen("baseline", [baseline or names[0]], names)[0])]
    rows = [_row(method, dataset, metrics, several) for dataset in datasets for method in methods]
    rows = [row for row in rows if row["n"]]
    differences: list[dict[str, Any]] = []
    without: dict[tuple[str, str], dict[str, None]] = {}  # {(reason, metric): data sets}
    for dataset in datasets:
        for method in methods:
            if method is not reference and dataset in method.rows and dataset in reference.rows:
                found, reasons = _differences(method, reference, dataset, metrics, several)
                differences += found
                for key, reason in reasons.items():
                    without.setdefault((reason, key), {})[dataset] = None
    caveats = _caveats(differences, without, reference.name, several)
    absent = [dataset for dataset in datasets if dataset not in reference.rows]
    if absent and len(methods) > 1:
        caveats.append(
            f"no differences on {', '.join(absent)}: {reference.name} has no result there (sets "
            "are matched by name; codmoe eval --datasets gives them one)"
        )
    notes = _notes(methods, metrics)
    if several:
        counts = ", ".join(f"{method.name} {len(method.runs) or 1}" for method in methods)
        notes.insert(0, f"mean ± sample standard deviation over runs (how many: {counts})")
    pairs = [(m, d) for d in datasets for m in methods if d in m.rows]
    curves: dict[str, dict] = {}
    for method, dataset in pairs:
        if "curves" in method.rows[dataset]:
            curves.setdefault(method.name, {})[dataset] = method.rows[dataset]["curves"]
    return Comparison(
        metrics=metrics,
        rows=rows,
        ranks=ranks(rows, metrics),
        baseline=reference.name,
        differences=differences,
        notes=notes,
        caveats=caveats,
        curves=curves,
        without_curves=[f"{m.name} on {d}" for m, d in pairs if "curves" not in m.rows[d]],
    )


def _averaged(runs: Sequence[Method], datasets: Sequence[str], metrics: Sequence[str]) -> Method:
    """The runs of one method as one method, whose numbers, of each image, too, are their means."""
    first = runs[0]
    if len(runs) == 1:
        return first
    rows: dict[str, dict[str, Any]] = {}
    for dataset in datasets:
        found = [run.rows[dataset] for run in runs if dataset in run.rows]
        if 0 < len(found) < len(runs):
            lacking = listed([str(run.path) for run in runs if dataset not in run.rows])
            raise ValueError(
                f"{lacking} has no result on {dataset}, but other runs of {first.name!r} have; "
                "score every run on the same data sets, or choose with --datasets those they share."
            )
        if found:
            rows[dataset] = _mean_row(found, metrics)
    for key in metrics:
        said = {run.conventions[key]: run.path for run in runs if run.conventions.get(key)}
        if len(said) > 1:
            each = "; ".join(f"{path}: “{text}”" for text, path in said.items())
            raise ValueError(
                f"Runs of {first.name!r} state different conventions of {key} and have no mean: "
                f"{each}. Score them with one version and the same options."
            )
    conventions = {key: text for run in runs for key, text in run.conventions.items() if text}
    return Method(first.name, first.source, first.path, rows, conventions, runs)


def _mean_row(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, Any]:
    def mean(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {key: fmean(value.get(key, math.nan) for value in values) for key in metrics}

    stems = rows[0]["images"]
    row: dict[str, Any] = {"n": len(stems), "runs": len(rows), **mean(rows)}
    for key in metrics:
        spread = np.std([values.get(key, math.nan) for values in rows], ddof=1)
        row[f"{key} sd"] = float(spread)
    row["images"] = {stem: mean([values["images"][stem] for values in rows]) for stem in stems}
    curves = [values.get("curves", {}) for values in rows]
    kinds = [(c.get("threshold"), {key: len(c[key]) for key in c}) for c in curves]
    if curves[0] and all(kind == kinds[0] for kind in kinds):
        row["curves"] = {key: np.mean([c[key] for c in curves], 0).tolist() for key in curves[0]}
    return row


def _check_images(dataset: str, methods: Sequence[Method]) -> None:
    count = Counter(method.name for method in methods)
    called = [repr(m.name) + (f" ({m.path})" if count[m.name] > 1 else "") for m in methods]
    first = methods[0].rows[dataset]["images"]
    for other, name in zip(methods[1:], called[1:], strict=True):
        images = other.rows[dataset]["images"]
        faults = [
            f"{len(stems)} image(s) ({listed(stems)}) of {method} only"
            for method, stems in (
                (called[0], [stem for stem in first if stem not in images]),
                (name, [stem for stem in images if stem not in first]),
            )
            if stems
        ]
        if faults:
            raise ValueError(
                f"{called[0]} and {name} were not scored on the same images of "
                f"{dataset}: {'; '.join(faults)}. Score both on one set (codmoe test --held-out "
                "leaves out what was trained on); numbers over different images do not compare."
            )


def _row(method: Method, dataset: str, metrics: Sequence[str], several: bool) -> dict[str, Any]:
    values = method.rows.get(dataset, {})
    files = ", ".join(str(run.path) for run in method.runs or [method])
    row: dict[str, Any] = dict(
        dataset=dataset, method=method.name, source=method.source, file=files
    )
    row |= {"n": values.get("n", 0)} | {key: values.get(key, math.nan) for key in metrics}
    if several:
        row["runs"] = values.get("runs", 1)
        row |= {f"{key} sd": values.get(f"{key} sd", math.nan) for key in metrics}
    return row


def _differences(
    method: Method,
    baseline: Method,
    dataset: str,
    metrics: Sequence[str],
    several: bool,
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
            without[key] = _OF_NO_IMAGE
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
    intervals = paired_intervals(ours, theirs)
    found = []
    for key, interval in zip(keys, intervals, strict=True):
        rising = (interval.difference > 0) != (key in LOWER_IS_BETTER)
        decided = interval.excludes_zero
        row: dict[str, Any] = dict(dataset=dataset, method=method.name, baseline=baseline.name)
        row |= {"metric": key, **asdict(interval)}
        if several:
            sides = ([run.rows[dataset][key] for run in m.runs or [m]] for m in (method, baseline))
            over_runs = run_interval(*sides)
            row |= {"runs_low": over_runs.low, "runs_high": over_runs.high}
            decided = decided and over_runs.excludes_zero
        verdict = ("better" if rising else "worse") if decided else "undecided"
        found.append({**row, "verdict": verdict})
    return found, without


def _notes(methods: Sequence[Method], metrics: Sequence[str]) -> list[str]:
    differing, agreed = [], {}
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
        else:
            agreed[key] = texts[0] if texts else "convention not stated in the files"
    sources = [method.source for method in methods]
    return differing + convention_notes(agreed) + oracle_notes(sources)


def _caveats(
    differences: Sequence[Mapping[str, Any]],
    without: Mapping[tuple[str, str], Mapping[str, None]],
    baseline: str,
    several: bool,
) -> list[str]:
    notes: list[str] = []
    decided = sum(row["verdict"] != "undecided" for row in differences)
    if differences and several:
        notes += [
            f"method minus {baseline}, of means over runs; better or worse: both 95 % intervals "
            f"exclude zero ({decided} of {len(differences)})",
            "over images: paired differences of each image's means over these runs (Student's t, "
            "also corrected for skewness); what other images would give with these runs",
            "over runs: Student's t of the runs paired in the order given, Welch's where one "
            "method has more, and none where either has a single run, so that nothing is decided; "
            "what other training seeds would give on these images",
            "neither interval covers other images and other seeds at once, and they are not "
            f"corrected for {len(differences)} comparisons",
        ]
    elif differences:
        notes += [
            f"method minus {baseline}, mean over images; 95 % interval of the paired differences "
            "(Student's t, also corrected for skewness); better or worse: the interval excludes "
            f"zero ({decided} of {len(differences)})",
            "the intervals cover the choice of test images, not another training seed, and are not "
            f"corrected for {len(differences)} comparisons",
        ]
    if differences:
        few = sorted({row["dataset"] for row in differences if row["n"] < FEW})
        if few:
            notes.append(f"{', '.join(few)}: {UNSEEN}")
    reasons: dict[str, list[str]] = {}
    for (reason, key), datasets in without.items():
        reasons.setdefault(reason, []).append(f"{key} ({', '.join(datasets)})")
    return notes + [f"no interval for {', '.join(keys)}: {text}" for text, keys in reasons.items()]


_DIFFERENCE = ("dataset", "method", "baseline", "metric", "n", "difference")
_CAPITALS = {"Gamma", "Delta", "Theta", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega"}
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{"<": "$<$", ">": "$>$", "|": "$|$", "≥": r"$\geq$", "≤": r"$\leq$"},
    **{"²": "$^2$", "·": r"$\cdot$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "∞": r"$\infty$"},
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
    return "".join(_LATEX.get(c) or _greek(c) for c in printable(" ".join(text.split())))


def _greek(character: str) -> str:
    name = unicodedata.name(character, "").lower()
    found = re.fullmatch(r"greek (small|capital) letter (\w+)", name)
    if not found:
        return character
    letter = found[2] if found[1] == "small" else found[2].capitalize()
    # Capitals that look like Latin ones have no command.
    return rf"\ensuremath{{\{letter}}}" if found[1] == "small" or letter in _CAPITALS else letter[0]


def comparison_table(comparison: Comparison) -> TextTable:
    """The table with its conventions; the best of each data set is bold."""
    counts = ["n", "runs"] if comparison.several else ["n"]
    cells = []
    for i, row in enumerate(comparison.rows):
        values = {key: _value(row, key) for key in comparison.metrics}
        best = [Bold(v) if comparison.ranks.get((i, k)) == 1 else v for k, v in values.items()]
        cells.append([row["dataset"], row["method"], *(str(row[key]) for key in counts), *best])
    arrows = [f"{key} {'↓' if key in LOWER_IS_BETTER else '↑'}" for key in comparison.metrics]
    notes = ["bold: best of the data set as printed", *comparison.notes]
    heads = ["data set", "method", *counts, *arrows]
    return TextTable(heads, grouped(cells), words=(0, 1), notes=notes)


def _value(row: Mapping[str, Any], key: str) -> str:
    spread = row.get(f"{key} sd", math.nan)
    return format_value(row[key]) + ("" if math.isnan(spread) else f" ± {spread:.4f}")


def _ends(row: Mapping[str, Any], over: str) -> str:
    low, high = row[f"{over}low"], row[f"{over}high"]
    return "-" if math.isnan(low) else f"[{low:+.4f}, {high:+.4f}]"


def difference_table(comparison: Comparison) -> TextTable:
    """Differences to the baseline with their intervals; those that exclude zero are bold."""
    cells = []
    for row in comparison.differences:
        names = [row[key] for key in ("dataset", "method", "metric")]
        text = f"{row['difference']:+.4f}"
        text = text if row["verdict"] == "undecided" else Bold(text)
        ends = [_ends(row, over) for over in comparison.intervals]
        cells.append([*names, str(row["n"]), text, *ends, row["verdict"]])
    heads = ["data set", "method", "metric", "n", "difference"]
    heads += [*comparison.intervals.values(), "verdict"]
    return TextTable(heads, grouped(cells), words=(0, 1, 2, -1), notes=comparison.caveats)


def to_latex(comparison: Comparison) -> str:
    """One ``table*`` in booktabs style for each data set, methods in rows.

    The best of each column is bold; of three or more methods the second is underlined. A table that
    is wider than the page is shrunk to it. It wants ``booktabs`` and ``graphicx``.
    """
    metrics = comparison.metrics
    marks = {1: r"\textbf{{{}}}", 2: r"\underline{{{}}}", None: "{}"}
    bodies: dict[tuple[str, int], list[str]] = {}
    for i, row in enumerate(comparison.rows):
        values = {key: _value(row, key).replace("±", r"$\pm$") for key in metrics}
        cells = [marks[comparison.ranks.get((i, k))].format(v) for k, v in values.items()]
        # In braces: a line's end or a rule takes a [ or * that comes next for its argument.
        name = f"{{{latex_escape(row['method'])}}}"
        body = bodies.setdefault((row["dataset"], row["n"]), [])
        body.append(" & ".join([name, *cells]) + r" \\")
    legend = r"\textbf{bold}: best as printed"
    if 2 in comparison.ranks.values():
        legend += r"; \underline{underlined}: second"
    return _latex_tables(bodies, metrics, legend, comparison.notes)


def differences_to_latex(comparison: Comparison) -> str:
    """Like :func:`to_latex`, the differences to the baseline with their intervals below them; those
    that exclude zero are bold. Without any, a comment says why.
    """
    found = {(row["dataset"], row["method"], row["metric"]): row for row in comparison.differences}
    metrics = [k for k in comparison.metrics if any(metric == k for *_, metric in found)]
    bodies: dict[tuple[str, int], list[str]] = {}
    below = [r"\scriptsize over images", r"\scriptsize over runs"] if comparison.several else [""]
    sizes = {(row["dataset"], row["method"]): row["n"] for row in comparison.rows}
    for dataset, method in dict.fromkeys(names[:2] for names in found):
        n = sizes[dataset, method]
        rows = [found.get((dataset, method, key)) for key in metrics]
        cells = [_latex_difference(row, n, comparison.intervals) for row in rows]
        lines = zip([f"{{{latex_escape(method)}}}", *below], *cells, strict=True)
        bodies.setdefault((dataset, n), []).extend(" & ".join(line) + r" \\" for line in lines)
    legend = rf"Differences to {{{latex_escape(comparison.baseline)}}}; \textbf{{bold}}: "
    legend += "both intervals exclude zero" if comparison.several else "the interval excludes zero"
    if not bodies:
        return "".join(f"% {latex_escape(n)}\n" for n in ("No differences.", *comparison.caveats))
    return _latex_tables(bodies, metrics, legend, comparison.caveats)


def _latex_difference(row: Mapping[str, Any] | None, n: int, intervals: Iterable[str]) -> list[str]:
    """A difference, and its intervals; with the number of images, if it is not ``n``."""
    if row is None:
        return ["-", *("" for _ in intervals)]
    text = f"{row['difference']:+.4f}"
    text = f"${text}$" if row["verdict"] == "undecided" else rf"$\mathbf{{{text}}}$"
    lines = [text]
    for over in intervals:
        ends, fewer = _ends(row, over), "" if row["n"] == n or over else rf"\ n={row['n']}"
        lines.append(ends if ends == "-" else rf"{{\scriptsize ${ends}{fewer}$}}")
    return lines


def _latex_tables(
    bodies: Mapping[tuple[str, int], Sequence[str]],
    metrics: Sequence[str],
    legend: str,
    notes: Sequence[str],
) -> str:
    """A table for each data set and number of images, of rows that are LaTeX."""
    arrows = {key: r"$\downarrow$" if key in LOWER_IS_BETTER else r"$\uparrow$" for key in metrics}
    heads = " & ".join(["Method", *(f"{latex_escape(key)} {arrows[key]}" for key in metrics)])
    below = " ".join(f"{latex_escape(note)}." for note in notes)
    lines = [r"% \usepackage{booktabs,graphicx}; names beyond Latin and Greek: with XeLaTeX"]
    for (dataset, n), body in bodies.items():
        lines += [
            r"\begin{table*}[t]",
            r"\centering\small\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{latex_escape(dataset)} ($n={n}$). {legend}.}}",
            r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * len(metrics)}}}",
            r"\toprule",
            heads + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            rf"\par\smallskip\raggedright\footnotesize {below}",
            r"\end{table*}",
        ]
    return "\n".join(lines) + "\n"


def to_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """The rows in full precision; NaN is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row[key]) for key in columns])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        value = printable(value)
        return f"'{value}" if value[:1] in tuple("=+-@") else value  # no formula of a spreadsheet
    return "" if value != value else value


def write_comparison(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Writes compare and differences, each as .md, .tex and .csv; old ones keep a dated name."""
    columns = ["dataset", "method", "source", "file", "n", *comparison.metrics]
    ends = [f"{over}{end}" for over in comparison.intervals for end in ("low", "high")]
    if comparison.several:
        columns += ["runs", *(f"{key} sd" for key in comparison.metrics)]
    differences = "No differences.\n\n" + "".join(
        f"- {markdown_text(note)}\n" for note in comparison.caveats
    )
    if comparison.differences:
        differences = difference_table(comparison).markdown()
    texts = {
        "compare.md": comparison_table(comparison).markdown(),
        "compare.tex": to_latex(comparison),
        "compare.csv": to_csv(comparison.rows, columns),
        "differences.md": differences,
        "differences.tex": differences_to_latex(comparison),
        "differences.csv": to_csv(comparison.differences, [*_DIFFERENCE, *ends, "verdict"]),
    }
    return [save_text(Path(folder) / name, text) for name, text in texts.items()]


def print_comparison(comparison: Comparison, *, console: Console | None = None) -> None:
    """Prints the table and the differences, or why there are none."""
    comparison_table(comparison).print(console)
    if comparison.differences:
        difference_table(comparison).print(console)
        return
    for caveat in comparison.caveats:
        (console or Console()).print(printable(caveat), markup=False, highlight=False)

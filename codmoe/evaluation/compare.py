"""Several methods side by side, and how sure their differences are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from codmoe.evaluation.attributes import listed
from codmoe.evaluation.bootstrap import paired_intervals
from codmoe.evaluation.measures import LOWER_IS_BETTER
from codmoe.evaluation.result_files import ORACLE, Method
from codmoe.evaluation.tables import DEFAULT_METRICS
from codmoe.registry import suggest

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
        methods: Of :func:`~codmoe.evaluation.result_files.load_methods`; names must differ.
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

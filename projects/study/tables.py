"""The tables of a study: does the mixture beat its experts, and by more than chance?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from codmoe.console import TextTable
from codmoe.evaluation.bootstrap import Interval, bootstrap_means, paired_intervals
from codmoe.evaluation.conventions import LOWER_IS_BETTER
from projects.study.results import COMBINED, METRICS, experts_of

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""``{row: {seed: result}}`` of one data set, rows without its name."""

SINGLES = ("sinet", "pranet", "zoomnet", "ujsc")
COMPARED = ("mDice", "mIoU", "IoU")
# Method and baseline, each a row or "row/source"; "best expert" is found among the row's own.
DIFFERENCES = (
    ("stage3", "stage3/best expert"),
    ("stage3", "best separate expert"),
    ("stage3", "fpn"),
    ("stage3", "fpn_long"),
    ("stage3", "fpn4"),
    ("stage3", "stage3/uniform"),
    ("stage3", "router_top2"),
    ("stage3", "joint"),
    ("joint", "warm"),
    ("router_top2", "joint/best expert"),
    ("router_top2", "joint"),
    ("router_top2", "static"),
    ("router_top4", "static"),
    ("router_pixel", "router_top4"),
    ("router_top1", "router_top2"),
    *(
        ("router_top2", f"router_no_{part}")
        for part in (
            *("texture", "edge", "context", "frequency"),
            *("distill", "balance", "z", "temperature"),
        )
    ),
    ("fpn4", "fpn_long"),
    ("joint_mixture", "joint"),
    ("router_mixture", "router_top2"),
    ("stage3_mixture", "router_mixture"),
    ("stage3_mixture", "stage3"),
    ("stage3_mixture", "stage3_mixture/best expert"),
    ("stage3_mixture", "best separate expert"),
    ("stage3_mixture", "fpn"),
    ("stage3_mixture", "fpn4"),
    ("joint", "joint_cold"),
    ("refit", "joint"),
    ("fpn", "fpn_frozen"),
    ("joint", "joint_frozen"),
    ("stage3", "stage3_no_expert_loss"),
    ("stage3", "stage3_top2"),
    ("stage3", "stage3_sparse"),
    ("stage3_sparse", "stage3_sparse/best expert"),
    ("stage3_no_expert_loss", "stage3_no_expert_loss/best expert"),
    ("joint", "joint_zoomnet_structure"),
    ("stage3_lite2", "stage3_lite2/best expert"),
    ("stage3_lite2", "stage3_lite2/uniform"),
)


def by_dataset(results: Results) -> dict[str, dict[str, Mapping[int, Mapping[str, Any]]]]:
    """``{row: ...}`` of a folder → ``{"polyp": {"fpn": ...}, "mix": ...}``."""
    found: dict[str, dict] = {}
    for row, seeds in results.items():
        dataset, _, name = row.partition("_")
        found.setdefault(dataset, {})[name] = seeds
    return found


def image_values(result: Mapping[str, Any], source: str, metric: str) -> dict[tuple, float]:
    """``{(test set, stem): value}`` of one run; NaN where there is none."""
    return {
        (name, stem): math.nan if value is None else value
        for name, columns in result["images"].items()
        for stem, value in zip(columns["stems"], columns[source][metric], strict=True)
    }


def mean_over_seeds(
    seeds: Mapping[int, Mapping[str, Any]], source: str, metric: str, wanted: Iterable[int]
) -> dict[tuple, float]:
    """Each image's mean over the runs of several seeds.

    Raises:
        ValueError: The runs were tested on different images.
    """
    runs = [image_values(seeds[seed], source, metric) for seed in wanted]
    if any(run.keys() != runs[0].keys() for run in runs):
        raise ValueError("runs of one row were tested on different images; test them again")
    return {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}


def overall(result: Mapping[str, Any], source: str, metric: str, test_set: str | None) -> float:
    """Mean over all test images, or over those of one set, or with ``"domains"`` the mean of the
    sets' means."""
    values = image_values(result, source, metric)
    if test_set == "domains":
        return float(np.mean([overall(result, source, metric, name) for name in result["images"]]))
    chosen = [v for (name, _), v in values.items() if test_set in (None, name)]
    return float(np.nanmean(chosen))


def spread(values: Sequence[float]) -> str:
    """Mean, and with several seeds their standard deviation (n - 1)."""
    mean = f"{np.mean(values):.4f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.4f}"


def summary_table(results: Results, order: Sequence[str]) -> str:
    """Every row's mixture on all test images; the best of each column is bold."""
    cells, means = [], []
    for row in order:
        seeds = results[row]
        columns = {m: [overall(r, "mixture", m, None) for r in seeds.values()] for m in METRICS}
        domains = [overall(r, "mixture", "mDice", "domains") for r in seeds.values()]
        means.append([*(np.mean(v) for v in columns.values()), np.mean(domains)])
        texts = [*map(spread, columns.values()), spread(domains)]
        cells.append([row, str(len(seeds)), *texts])
    for index, metric in enumerate([*METRICS, "mDice"]):
        column = [round(float(row[index]), 4) for row in means]
        best = min(column) if metric in LOWER_IS_BETTER else max(column)
        for texts, value in zip(cells, column, strict=True):
            if len(column) > 1 and value == best:
                texts[index + 2] = f"**{texts[index + 2]}**"
    return markdown(["row", "seeds", *METRICS, "mDice, mean of the sets"], cells)


def set_table(results: Results, order: Sequence[str]) -> str:
    """mDice / mIoU of every row on each test set by itself, as papers report them."""
    names = list(next(iter(results[order[0]].values()))["images"])
    cells = []
    for row in order:
        texts = [
            " / ".join(
                spread([overall(r, "mixture", m, name) for r in results[row].values()])
                for m in ("mDice", "mIoU")
            )
            for name in names
        ]
        cells.append([row, *texts])
    return markdown(["row", *names], cells)


def best_source(seeds: Mapping[int, Mapping[str, Any]], sources: Sequence[str], metric: str) -> str:
    """The source with the best mean over all images and seeds."""
    return max(
        sources,
        key=lambda s: np.mean([overall(r, s, metric, None) for r in seeds.values()]),
    )


def _baseline(results: Results, name: str, metric: str) -> tuple[str, str] | None:
    """Row and source of a side of a comparison; None where the study does not have it."""
    if name == "best separate expert":
        there = [row for row in SINGLES if row in results]
        if len(there) < len(SINGLES):
            return None
        return max(
            there,
            key=lambda row: np.mean(
                [overall(r, "mixture", metric, None) for r in results[row].values()]
            ),
        ), "mixture"
    row, _, source = name.partition("/")
    if row not in results:
        return None
    if source == "best expert":
        experts = experts_of(next(iter(results[row].values())))
        return (row, best_source(results[row], experts, metric)) if experts else None
    return row, source or "mixture"


def difference(
    results: Results,
    method: str,
    baseline: str,
    metric: str,
    *,
    by_set: bool = False,
    samples: int = 10_000,
) -> tuple[Interval, str, int] | None:
    """Method minus baseline: the interval, what the baseline was, and the number of seeds.

    Each image's value is its mean over the seeds that both have (all seeds of each, if they have
    none in common); images are drawn, in all test sets together. ``by_set`` draws them in each
    test set by itself and takes the mean of the sets' means.
    """
    ours_of, theirs_of = (_baseline(results, name, metric) for name in (method, baseline))
    if ours_of is None or theirs_of is None:
        return None
    (row, source), (other, other_source) = ours_of, theirs_of
    common = sorted(set(results[row]) & set(results[other]))
    ours = mean_over_seeds(results[row], source, metric, common or results[row])
    theirs = mean_over_seeds(results[other], other_source, metric, common or results[other])
    if ours.keys() != theirs.keys():
        raise ValueError(f"{row} and {other} were tested on different images; test them again")
    if by_set:
        interval = _interval_by_set({key: ours[key] - theirs[key] for key in ours}, samples)
    else:
        columns = [np.array([[values[key]] for key in ours]) for values in (ours, theirs)]
        (interval,) = paired_intervals(*columns, samples=samples)
    told = other if other_source == "mixture" else f"{other}/{other_source}"
    return interval, told, len(common)


def _interval_by_set(differences: Mapping[tuple, float], samples: int) -> Interval:
    names = dict.fromkeys(name for name, _ in differences)
    sets = [np.array([[d] for (n, _), d in differences.items() if n == name]) for name in names]
    # A seed for each set: with one, sets of equal size would be drawn alike.
    drawn = [bootstrap_means(v, samples=samples, seed=i)[:, 0] for i, v in enumerate(sets)]
    low, high = np.nanpercentile(np.mean(drawn, axis=0), (2.5, 97.5))
    mean = float(np.mean([np.nanmean(values) for values in sets]))
    return Interval(mean, float(low), float(high), len(differences))


def difference_table(results: Results, *, samples: int = 10_000) -> str:
    """All comparisons the study has the rows for; those whose interval excludes 0 are bold."""
    cells = []
    for method, baseline in DIFFERENCES:
        texts, told, seeds = [], "", 0
        for metric, by_set in (*((m, False) for m in COMPARED), ("mDice", True)):
            found = difference(results, method, baseline, metric, by_set=by_set, samples=samples)
            if found is None:
                break
            interval, name, seeds = found
            texts.append(_interval(interval))
            told = told or name
        else:
            plain = baseline in (told, f"{told}/mixture")
            label = baseline if plain else f"{baseline} ({told.rpartition('/')[2]})"
            cells.append([f"{method} − {label}", str(seeds), *texts])
    return markdown(["difference", "common seeds", *COMPARED, "mDice, mean of the sets"], cells)


def _interval(interval: Interval) -> str:
    text = f"{interval.difference:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
    return f"**{text}**" if interval.excludes_zero else text


def gap_closed(result: Mapping[str, Any], metric: str = "IoU") -> float:
    """(mixture − best expert) / (oracle − best expert); NaN if the oracle is no better.

    In IoU, by which the oracle chooses. The mixture may exceed 1: it may mix maps.
    """
    best = max(overall(result, name, metric, None) for name in experts_of(result))
    room = overall(result, "oracle", metric, None) - best
    return (overall(result, "mixture", metric, None) - best) / room if room > 1e-9 else math.nan


def expert_table(results: Results, order: Sequence[str]) -> str:
    """IoU of each expert, of their mixtures and of the oracle, and the share of the gap closed."""
    rows = [row for row in order if experts_of(next(iter(results[row].values())))]
    names = list(dict.fromkeys(n for row in rows for n in _experts(results[row]) if n in SINGLES))
    columns = [*names, "uniform", "mixture", "oracle"]
    cells = []
    for row in rows:
        runs = results[row].values()
        there = _experts(results[row])
        if not set(there) & set(names):
            continue  # other heads (fpn4)
        known = {*there, *COMBINED}
        texts = [
            spread([overall(r, c, "IoU", None) for r in runs]) if c in known else "-"
            for c in columns
        ]
        closed = [gap_closed(r) for r in runs]
        share = "-" if any(map(math.isnan, closed)) else f"{100 * np.mean(closed):.0f} %"
        cells.append([row, *texts, share])
    return markdown(["row", *columns, "gap closed"], cells)


def _experts(seeds: Mapping[int, Mapping[str, Any]]) -> Sequence[str]:
    return experts_of(next(iter(seeds.values())))


def markdown(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left; a line that says so where it is empty."""
    if not cells:
        return "(no row of the study is there for this table)\n"
    return TextTable(headers, cells).markdown()

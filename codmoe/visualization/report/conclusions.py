"""Gains of the ensemble with intervals over images, and sentences on what limits them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from codmoe.evaluation.diversity import MEANING, diversity_told
from codmoe.evaluation.intervals import FEW, UNSEEN, Interval, paired_intervals
from codmoe.evaluation.measures import best_expert
from codmoe.evaluation.tables import format_value, trained_on_notes
from codmoe.visualization.report.data import RunRecord, number

METRICS = ("IoU", "Dice", "Sm", "wFm", "meanEm", "MAE")
# Below this share of its ceiling the mutual information is that of a router with one answer.
BLIND = 0.01
Row = Mapping[str, Any]


@dataclass
class Gain:
    """The ensemble minus something simpler on one data set.

    Args:
        label: What it is held against.
        expert: Name, where that is a single expert.
        intervals: By metric; empty without values for each image.
    """

    label: str
    expert: str
    intervals: dict[str, Interval]

    @property
    def iou(self) -> Interval | None:
        """The difference in IoU, if it is known."""
        return self.intervals.get("IoU")


def ensemble_gains(run: RunRecord) -> dict[str, dict[str, Gain]]:
    """The ensemble's gains on each data set over each baseline that the run has.

    The best expert is that with the highest IoU on the test images themselves.

    Returns:
        By data set and baseline: ``"expert"``, ``"expert_after"`` (stage 3), ``"uniform"``,
        ``"uniform_after"`` and ``"router"``.
    """
    gains: dict[str, dict[str, Gain]] = {}
    for dataset, rows in run.table.items():
        after, experts = run.after(dataset), run.experts(dataset)
        baselines = (
            ("expert", "best expert of stage 1 ({})", rows, _best(rows, experts)),
            ("expert_after", "best expert after stage 3 ({})", after, _best(after, experts)),
            ("uniform", "uniform mixture of stage 1", rows, "uniform"),
            ("uniform_after", "uniform mixture after stage 3", after, "uniform"),
            ("router", "router, stage 2", rows, "router"),
        )
        gains[dataset] = {
            key: Gain(label.format(name), name, _difference(rows["ensemble"], part[name]))
            for key, label, part, name in baselines
            if name in part and "ensemble" in rows
        }
    return gains


def _best(rows: Mapping[str, Row], names: list[str]) -> str:
    """The expert with the highest IoU; empty if none has one."""
    ious = {name: number(rows[name].get("IoU")) for name in names if name in rows}
    ious = {name: value for name, value in ious.items() if math.isfinite(value)}
    return best_expert(ious) if ious else ""


def _difference(method: Row, baseline: Row) -> dict[str, Interval]:
    """Paired intervals of method minus baseline over the images of both; empty without images."""
    a, b = method.get("images") or {}, baseline.get("images") or {}
    if not a or set(a) != set(b):
        return {}
    first, second = next(iter(a.values())), next(iter(b.values()))
    keys = [key for key in METRICS if key in first and key in second]
    if not keys:
        return {}
    values = [
        np.array([[number(images[stem].get(key)) for key in keys] for stem in a])
        for images in (a, b)
    ]
    return dict(zip(keys, paired_intervals(*values), strict=True))


def told(found: Interval) -> str:
    """A difference in points, with its interval."""
    if not math.isfinite(found.low):
        return f"{100 * found.difference:+.1f} points"
    return (
        f"{100 * found.difference:+.1f} points, 95 % interval over images "
        f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    )


def outcome(run: RunRecord, gains: Mapping[str, Mapping[str, Gain]]) -> Iterator[str]:
    """The outcome in one sentence for each data set, and before it which sets are no test."""
    sets = [dict(row, dataset=name) for name, held in run.table.items() for row in held.values()]
    yield from trained_on_notes(run.payload.get("trained_on"), sets)
    for dataset, rows in run.table.items():
        over = gains[dataset]
        if "expert" not in over:
            continue
        name, ensemble = over["expert"].expert, rows["ensemble"]
        line = (
            f"{dataset}, {ensemble['n']:,} images: the ensemble has IoU "
            f"{format_value(number(ensemble.get('IoU')))}, the best single expert of stage 1 "
            f"({name}) {format_value(number(rows[name].get('IoU')))}"
        )
        line += f": {told(found)}." if (found := over["expert"].iou) else "."
        # Stage 3 trains the experts too: what routing adds is seen against those same experts.
        if "uniform_after" in over and (found := over["uniform_after"].iou):
            line += f" Over the uniform mixture of its own experts: {told(found)}."
        yield line


def findings(run: RunRecord, gains: Mapping[str, Mapping[str, Gain]]) -> Iterator[str]:
    """One sentence for each thing that limits what the run shows."""
    seeds = {o["seed"] for s in run.stages if (o := s.training.opening)}
    yield (
        f"One training with one seed{f' ({seeds.pop()})' if len(seeds) == 1 else ''}: how much "
        "another seed would differ is not known."
    )
    for stage in run.stages:
        done = stage.finished
        if not done:
            yield f"{stage.title} has no finished.json: it may not have run to its end."
        elif done.get("best_epoch") and done["best_epoch"] == done.get("epochs"):
            yield f"{stage.title}: the last epoch was the best, so longer training may give more."
        before, after = (
            (stage.experts.get(key) or {}).get("diversity") or {} for key in ("before", "after")
        )
        if "disagreement_over_error" in after:
            line = f"After {stage.title}, on the validation images, {diversity_told(after)}"
            if "disagreement_over_error" in before:
                line += f"; before it, {diversity_told(before)}"
            yield f"{line}. {MEANING}."
    for key, title in (("router", "stage 2"), ("ensemble", "stage 3")):
        yield from _routing_findings(run, key, title)
    for dataset, rows in run.table.items():
        ensemble = rows.get("ensemble")
        if ensemble and ensemble["n"] < FEW:
            yield f"{dataset} has {ensemble['n']} test images, {UNSEEN}."
        claims = (
            ("expert", "the ensemble is better than the best expert of stage 1 ({})"),
            ("uniform_after", "the router's weights are better than equal weights for the same "
             "experts"),
        )  # fmt: skip
        for key, claim in claims:
            gain = gains[dataset].get(key)
            if gain and gain.iou and not gain.iou.low > 0:
                shown = claim.format(gain.expert)
                yield f"{dataset}: that {shown} is not shown ({told(gain.iou)})."


def _routing_findings(run: RunRecord, key: str, title: str) -> Iterator[str]:
    numbers = (run.payload.get("routing") or {}).get(key) or {}
    experts = [name for name in run.expert_names if f"chosen_{name}" in numbers]
    information = number(numbers.get("mutual_information"))
    ceiling = math.log(len(experts)) if len(experts) > 1 else math.nan
    if information < BLIND * ceiling:
        yield (
            f"{title}: the router's probabilities are nearly the same for every image (mutual "
            f"information {information:.2g} of at most {ceiling:.2f} nats)."
        )
    if number(numbers.get("top1_max_share")) > 0.95:
        yield f"{title}: one expert is the first choice of more than 95 % of the images."
    rare = [name for name in experts if number(numbers[f"chosen_{name}"]) < 0.01]
    if rare:
        yield f"{title}: chosen for fewer than 1 % of the images: {', '.join(rare)}."

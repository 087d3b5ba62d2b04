"""What the ensemble gains over each simpler thing, with paired bootstrap intervals over images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from codmoe.evaluation.bootstrap import Interval, paired_intervals
from codmoe.evaluation.conventions import LOWER_IS_BETTER
from codmoe.evaluation.tables import format_value
from codmoe.visualization.report.data import RunRecord, number
from codmoe.visualization.report.markup import Markup, heading, notes, paragraph, table, text

METRICS = ("IoU", "Dice", "Sm", "wFm", "meanEm", "MAE")
Row = Mapping[str, Any]


def best_expert(rows: Mapping[str, Row], names: Sequence[str]) -> str | None:
    """The expert with the highest IoU on the test images themselves."""
    ious = {name: number(rows[name].get("IoU")) for name in names if name in rows}
    ious = {name: value for name, value in ious.items() if math.isfinite(value)}
    return max(ious, key=ious.__getitem__) if ious else None


def baselines(run: RunRecord, dataset: str) -> dict[str, Row]:
    """What the ensemble is held against on a data set, by what the page calls it."""
    rows, experts = run.table[dataset], run.experts(dataset)
    after = (run.payload.get("ensemble_experts") or {}).get(dataset) or {}
    found = {}
    for label, part, name in (
        ("best expert of stage 1", rows, best_expert(rows, experts)),
        ("best expert after stage 3", after, best_expert(after, experts)),
    ):
        if name:
            found[f"{label} ({name})"] = part[name]
    for label, part, name in (
        ("uniform mixture of stage 1", rows, "uniform"),
        ("uniform mixture after stage 3", after, "uniform"),
        ("router, stage 2", rows, "router"),
    ):
        if name in part:
            found[label] = part[name]
    return found


def difference(method: Row, baseline: Row, metrics: Sequence[str]) -> dict[str, Interval]:
    """Paired intervals of method minus baseline over the images of both; empty without images."""
    a, b = method.get("images") or {}, baseline.get("images") or {}
    if not a or set(a) != set(b):
        return {}
    first = next(iter(a.values()))
    keys = [key for key in metrics if key in first and key in next(iter(b.values()))]
    values = [
        np.array([[number(images[stem].get(key)) for key in keys] for stem in a])
        for images in (a, b)
    ]
    if not keys:
        return {}
    return dict(zip(keys, paired_intervals(*values), strict=True))


def key_lines(run: RunRecord) -> Markup:
    """The outcome in one sentence for each data set."""
    lines = []
    for dataset, rows in run.table.items():
        name = best_expert(rows, run.experts(dataset))
        ensemble = rows.get("ensemble")
        if not (name and ensemble):
            continue
        line = (
            f"{dataset}, {ensemble['n']:,} images: the ensemble has IoU "
            f"{format_value(number(ensemble.get('IoU')))}, the best single expert of stage 1 "
            f"({name}) {format_value(number(rows[name].get('IoU')))}"
        )
        found = difference(ensemble, rows[name], ["IoU"]).get("IoU")
        line += f": {told(found)}." if found else "."
        # Stage 3 trains the experts too: what routing adds is seen against those same experts.
        after = (run.payload.get("ensemble_experts") or {}).get(dataset, {}).get("uniform") or {}
        found = difference(ensemble, after, ["IoU"]).get("IoU")
        line += f" Over the uniform mixture of its own experts: {told(found)}." if found else ""
        lines.append(f'<p class="key">{text(line)}</p>')
    return Markup("".join(lines))


def told(found: Interval) -> str:
    """A difference in points, with its interval."""
    if not math.isfinite(found.low):
        return f"{100 * found.difference:+.1f} points"
    return (
        f"{100 * found.difference:+.1f} points, 95 % interval over images "
        f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    )


def difference_section(run: RunRecord) -> Markup:
    """A table per data set: against what, and by how much in each metric."""
    parts = []
    for dataset, rows in run.table.items():
        if "ensemble" not in rows:
            continue
        found = {
            label: difference(rows["ensemble"], row, METRICS)
            for label, row in baselines(run, dataset).items()
        }
        found = {label: each for label, each in found.items() if each}
        if not found:
            continue
        keys = [key for key in METRICS if all(key in each for each in found.values())]
        n = next(iter(found.values()))[keys[0]].n
        body = [[label, *[_cell(key, each[key]) for key in keys]] for label, each in found.items()]
        parts += [heading(f"{dataset} (n = {n:,})"), table(["ensemble minus", *keys], body)]
    if not parts:
        return Markup()
    lead = paragraph("Differences in points (1 point = 0.01), with 95 % intervals below them.")
    hints = [
        "Paired bootstrap, 10,000 draws of the test images; shaded where the interval does not "
        "hold zero (orange: the ensemble is worse). It speaks of the choice of test images, not of "
        "what another training seed would give.",
        "The best expert is chosen on these very test images, which favours it.",
        "All experts train on in stage 3: only rows “after stage 3” tell what "
        "routing adds to the same experts.",
        "MAE: lower is better.",
    ]
    return Markup(lead + "".join(parts) + notes(hints))


def _cell(key: str, found: Interval) -> Markup:
    if not math.isfinite(found.difference):
        return Markup('<td class="num">-</td>')
    worse = (found.difference > 0) if key in LOWER_IS_BETTER else (found.difference < 0)
    kind = "num" + (" sure" + (" worse" if worse else "") if found.excludes_zero else "")
    value = f"{100 * found.difference:+.2f}"
    if math.isfinite(found.low):
        ends = f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
        value += f'<br><span class="soft">{ends}</span>'
    return Markup(f'<td class="{kind}">{value}</td>')

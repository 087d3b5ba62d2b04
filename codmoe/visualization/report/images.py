"""Which expert is good at which images, and whom the router sends there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from codmoe.evaluation.attributes import breakdown
from codmoe.visualization.report.data import RunRecord, StageRecord, number
from codmoe.visualization.report.markup import Markup, heading, notes, paragraph, table, text

FEW = 10
# Differences of this size have the full colour: 0.05 of IoU, 0.3 of a weight.
_IOU_SPAN, _SHARE_SPAN = 0.05, 0.30


def attribute_section(run: RunRecord) -> Markup:
    """Expert × attribute for each data set, first of the last stage, the one before folded away."""
    parts = []
    for dataset in run.table:
        shown = [body for stage in reversed(run.stages) if (body := _of_stage(stage, dataset, run))]
        if shown:
            parts += [heading(dataset), shown[0]]
        parts += [
            Markup(f"<details><summary>the same after stage 2</summary>{body}</details>")
            for body in shown[1:]
        ]
    if not parts:
        return Markup()
    hints = [
        "IoU: blue where the expert is above the mean of the experts on these images, orange where "
        f"below, full at {_IOU_SPAN:.2f}; bold: the best expert. Grey rows have fewer than {FEW} "
        "images and say little.",
        "weight: mean over the images; blue where the expert gets more than on all images, full at "
        f"{_SHARE_SPAN:.1f}. A router that uses what the experts are good at is blue in both "
        "tables at the same places.",
        "definitions: codmoe/evaluation/attributes.py",
    ]
    return Markup("".join(parts) + notes(hints))


def _of_stage(stage: StageRecord, dataset: str, run: RunRecord) -> str:
    rows = (stage.result.get("breakdown") or {}).get(dataset) or []
    shares = share_rows(stage.result, dataset)
    parts = []
    experts = [n for n in run.expert_names if rows and n in rows[0].get("IoU", {})]
    if experts:
        parts += [paragraph(f"IoU after {stage.title}"), _iou_table(rows, experts)]
    if shares:
        parts += [paragraph(f"weight in the mixture after {stage.title}"), _share_table(shares)]
    return "".join(parts)


def share_rows(result: Mapping[str, Any], dataset: str) -> list[dict[str, Any]]:
    """Mean weight of each expert on the images of each bin of each attribute.

    Args:
        result: JSON of a test.
        dataset: Name of the data set.

    Returns:
        Rows ``attribute``, ``bin``, ``n``, ``share`` ({expert: weight}), the first over all images;
        empty where the result has no weights or no attributes.
    """
    weights = (result.get("routing_weights") or {}).get(dataset) or {}
    attributes = (result.get("attributes") or {}).get(dataset) or {}
    if not weights or not set(weights) <= set(attributes):
        return []
    names = list(next(iter(weights.values())))
    by_expert = {name: {stem: w[name] for stem, w in weights.items()} for name in names}
    overall = {name: sum(each.values()) / len(each) for name, each in by_expert.items()}
    rows = [dict(attribute="all", bin="", n=len(weights), share=overall)]
    for row in breakdown(by_expert, attributes):
        rows.append(dict(attribute=row["attribute"], bin=row["bin"], n=row["n"], share=row["IoU"]))
    return rows


def _iou_table(rows: Sequence[Mapping[str, Any]], experts: Sequence[str]) -> Markup:
    others = [name for name in ("uniform", "mixture", "oracle") if name in rows[0]["IoU"]]
    body = []
    for row, first in _with_first(rows):
        ious = [number(row["IoU"].get(name)) for name in experts]
        finite = [value for value in ious if math.isfinite(value)]
        mean = sum(finite) / len(finite) if finite else math.nan
        cells = [
            _shaded(value, (value - mean) / _IOU_SPAN, name in row.get("best", ()), row["n"])
            for name, value in zip(experts, ious, strict=True)
        ]
        cells += [_shaded(number(row["IoU"][name]), 0, False, row["n"]) for name in others]
        body.append([*_names(row, first), *cells])
    others = ["the mixture" if name == "mixture" else name for name in others]
    return table(["attribute", "images", "n", *experts, *others], body, left=2)


def _share_table(rows: Sequence[Mapping[str, Any]]) -> Markup:
    overall, body = rows[0]["share"], []
    for row, first in _with_first(rows):
        cells = [
            _shaded(value, (value - overall[name]) / _SHARE_SPAN, False, row["n"])
            for name, value in row["share"].items()
        ]
        body.append([*_names(row, first), *cells])
    return table(["attribute", "images", "n", *overall], body, left=2)


def _with_first(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], bool]]:
    """Each row, and whether it is the first of its attribute."""
    before = [None, *[row["attribute"] for row in rows]]
    return [(row, row["attribute"] != last) for row, last in zip(rows, before, strict=False)]


def _names(row: Mapping[str, Any], first: bool) -> list[Any]:
    few = " few" if row["n"] < FEW else ""
    name = row["attribute"].replace("_", " ") if first else ""
    return [
        name,
        Markup(f'<td class="{few.strip()}">{text(row["bin"])}</td>'),
        Markup(f'<td class="num{few}">{row["n"]}</td>'),
    ]


def _shaded(value: float, strength: float, bold: bool, n: int) -> Markup:
    """A figure on blue (more) or orange (less); ``strength`` from -1 to 1 gives how much."""
    if not math.isfinite(value):
        return Markup('<td class="num">-</td>')
    shown = f"<strong>{value:.3f}</strong>" if bold else f"{value:.3f}"
    if n < FEW:
        return Markup(f'<td class="num few">{shown}</td>')
    strength = max(-1.0, min(1.0, strength)) if math.isfinite(strength) else 0.0
    tone = "more" if strength > 0 else "less"
    style = f"background: rgba(var(--{tone}), {0.6 * abs(strength):.2f})"
    return Markup(f'<td class="num" style="{style}">{shown}</td>')

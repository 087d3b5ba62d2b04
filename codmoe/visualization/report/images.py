"""Figures and small pictures of all test images, as the page's own script reads them."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codmoe.evaluation.attributes import binned
from codmoe.evaluation.conventions import CONVENTIONS, LOWER_IS_BETTER, MIXTURE
from codmoe.visualization.report.conclusions import METRICS
from codmoe.visualization.report.data import RunRecord, number

PICTURES_MB = 12
"""What all pictures of a page may take; as text in the page they take a third more."""


def image_data(run: RunRecord) -> dict[str, Any]:
    """All images of the last stage's test, column by column; empty where it was not tested.

    Returns:
        ``measures``, those of which ``lower`` is better, their ``conventions``, the ``experts``,
        and ``datasets``: each with ``name``, ``stems``, ``values[source][measure]``,
        ``weights[expert]``, ``attributes[name]`` (bins, and the number of each image's bin),
        ``panels`` of the pictures and ``pictures`` (base64, None where an image has none).
    """
    table = {name: rows for name, rows in (run.ensemble.get("table") or {}).items() if rows}
    sets = [_dataset(run, name, rows) for name, rows in table.items() if _stems(rows)]
    if not sets:
        return {}
    first = {measure: None for measure in METRICS if measure in sets[0]["values"][MIXTURE]}
    shown = first | {m: None for each in sets for v in each["values"].values() for m in v}
    _add_pictures(run, sets)
    return dict(
        measures=list(shown),
        lower=[measure for measure in shown if measure in LOWER_IS_BETTER],
        conventions={measure: CONVENTIONS.get(measure, "") for measure in shown},
        experts=run.expert_names,
        datasets=sets,
    )


def _stems(rows: Mapping[str, Any]) -> list[str]:
    return list((rows.get(MIXTURE) or {}).get("images") or {})


def _dataset(run: RunRecord, name: str, rows: Mapping[str, Any]) -> dict[str, Any]:
    stems = _stems(rows)
    values = {
        source: {key: _column(images, stems, key) for key in next(iter(images.values()))}
        for source, row in rows.items()
        if (images := row.get("images")) and set(images) >= set(stems)
    }
    weights = (run.ensemble.get("routing_weights") or {}).get(name) or {}
    attributes = (run.ensemble.get("attributes") or {}).get(name) or {}
    return dict(
        name=name,
        stems=stems,
        values=values,
        weights={e: _column(weights, stems, e) for e in run.expert_names if weights},
        attributes=binned(stems, attributes) if set(attributes) >= set(stems) else {},
    )


def _column(images: Mapping[str, Mapping[str, Any]], stems: Sequence[str], key: str) -> list:
    column = (number(images.get(stem, {}).get(key)) for stem in stems)
    return [round(value, 4) if math.isfinite(value) else None for value in column]


def _add_pictures(run: RunRecord, sets: Sequence[dict[str, Any]]) -> None:
    """As many as :data:`PICTURES_MB` hold, spread evenly over the IoU, the ends among them."""
    told = run.ensemble.get("pictures") or {}
    folder = run.folder / str(told.get("folder", ""))
    paths: dict[tuple[int, int], Path] = {}
    for number_, each in enumerate(sets):
        files = (told.get("files") or {}).get(each["name"]) or {}
        each.update(panels=told.get("panels") or [], pictures=[None] * len(each["stems"]))
        ious = [iou or 0 for iou in each["values"][MIXTURE].get("IoU") or each["stems"]]
        for i in sorted(range(len(ious)), key=ious.__getitem__):
            path = folder / Path(str(files.get(each["stems"][i], ""))).name
            if path.is_file() and path.suffix == ".webp":
                paths[number_, i] = path
    places = list(paths)
    size = sum(path.stat().st_size for path in paths.values())
    count = min(len(places), int(len(places) * PICTURES_MB * 2**20 / max(size, 1)))
    for place in np.unique(np.linspace(0, len(places) - 1, count).round().astype(int)):
        number_, i = places[place]
        content = paths[number_, i].read_bytes()
        sets[number_]["pictures"][i] = base64.b64encode(content).decode()

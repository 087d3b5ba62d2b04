"""Pictures of the images that a model gets best, middling and worst, after a test run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log

from codmoe.engine.hooks import bare_model
from codmoe.engine.result_hooks import grid_row
from codmoe.evaluation.cod_metric import unique_stems
from codmoe.visualization.grid import save_grid

DPI = 120


def pick(ious: Mapping[str, float], count: int = 2) -> list[tuple[str, str]]:
    """The images with the highest, the middle and the lowest IoU.

    Args:
        ious: ``{stem: IoU}``.
        count: Images of each rank; fewer where there are fewer than three times as many.

    Returns:
        Pairs of rank (``"best"``, ``"median"``, ``"worst"``) and stem, from the best down; no stem
        appears twice.
    """
    ordered = sorted(ious, key=lambda stem: -ious[stem])
    if len(ordered) < 3:
        return list(zip(("best", "worst"), ordered, strict=False))
    count = min(count, len(ordered) // 3)
    middle = (len(ordered) - count) // 2
    parts = dict(
        best=ordered[:count],
        median=ordered[middle : middle + count],
        worst=ordered[-count:],
    )
    return [(rank, stem) for rank, stems in parts.items() for stem in stems]


@torch.no_grad()
def save_extremes(
    runner: Any, table: Mapping[str, Mapping[str, Any]], folder: Path, count: int = 2
) -> dict[str, dict[str, Any]]:
    """Runs the chosen images once more and draws one grid per data set.

    Which images these are is known only when all are scored, and the maps of all of them would not
    fit in memory. One process does it: the model takes part in no communication here.

    Args:
        runner: Has tested ``table``, with ``model.evaluate_all_experts=True``.
        table: ``CODMetric.table``.
        folder: Where ``<data set>.png`` goes; an earlier picture is kept under a dated name.
        count: Images of each rank.

    Returns:
        ``{data set: {"file": name in folder, "images": [{"rank", "stem", "IoU"}]}}``.
    """
    dataset, collate = runner.test_dataloader.dataset, runner.test_dataloader.collate_fn
    places = _places(dataset)
    model, found = bare_model(runner), {}
    model.eval()
    for name, rows in table.items():
        ious = {stem: image["IoU"] for stem, image in rows["mixture"]["images"].items()}
        chosen = pick(ious, count)
        if any((name, stem) not in places for _, stem in chosen):
            print_log(f"{name}: its images are not found again; no pictures of best and worst")
            continue
        drawn, names = [], []
        for rank, stem in chosen:
            batch = collate([dataset[places[name, stem]]])
            (sample,) = model.test_step(batch)
            names = sample.routing["expert_names"]
            drawn.append(grid_row(batch["inputs"][0], sample, f"{rank}: {stem}"))
        path = save_grid(drawn, folder / f"{name}.png", expert_names=names, dpi=DPI)
        images = [dict(rank=rank, stem=stem, IoU=ious[stem]) for rank, stem in chosen]
        found[name] = dict(file=path.name, images=images)
    return found


def _places(dataset: Any) -> dict[tuple[str, str], int]:
    """Index of each image by the names under which metrics keep it."""
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    by_name: dict[str, list[int]] = {}
    for index, info in enumerate(infos):
        by_name.setdefault(str(info.get("dataset") or "data"), []).append(index)
    return {
        (name, stem): index
        for name, indices in by_name.items()
        for stem, index in zip(unique_stems([infos[i] for i in indices]), indices, strict=True)
    }

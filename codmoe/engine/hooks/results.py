"""Hooks of a test run that write what people look at: prediction maps and a picture grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info, is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import print_log
from PIL import Image
from torch import Tensor

from codmoe.engine.hooks.progress import bare_model
from codmoe.evaluation.cod_metric import unique_stems
from codmoe.files import replacing
from codmoe.registry import HOOKS
from codmoe.structures import CODDataSample
from codmoe.visualization.grid import GridRow, save_grid


@HOOKS.register_module()
class TestProgressHook(LoggerHook):
    """mmengine's log lines with the time left; the result itself is printed as a table."""

    __test__ = False  # pytest takes the name for a test

    def after_test_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        """Nothing."""


@HOOKS.register_module()
class SaveMapsHook(Hook):
    """Writes each prediction as ``<directory>/<dataset>/<stem>.png``, 8 bit, original resolution,
    round(255·p) without normalisation.

    Raises:
        ValueError: The folder holds files already.
    """

    def __init__(self, directory: str):
        self.directory = Path(directory)
        self.seen = 0
        if self.directory.exists() and any(self.directory.iterdir()):
            raise ValueError(f"--out {directory} is not empty; give a new folder for the maps")

    def after_test_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        rank, world_size = get_dist_info()
        count = len(runner.test_dataloader.dataset)
        for sample in outputs or ():
            index = self.seen * world_size + rank
            self.seen += 1
            if index >= count:  # with several processes the sampler repeats images at the end
                continue
            path = self.directory / sample.dataset / f"{sample.stem}.png"
            values = (sample.pred_prob.cpu().numpy() * 255).round().astype(np.uint8)
            with replacing(path) as temporary:
                Image.fromarray(values).save(temporary)


@HOOKS.register_module()
class GridHook(Hook):
    """Writes a picture grid of the first images of a test run: image, truth, each expert, mixture
    and weights. Needs ``model.evaluate_all_experts=True``.

    Args:
        path: Picture file.
        rows: Number of images.
    """

    def __init__(self, path: str, rows: int = 8):
        self.path = Path(path)
        self.count = rows
        self.rows: list[GridRow] = []
        self.names: list[str] = []

    def after_test_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        for image, sample in zip(data_batch["inputs"], outputs or (), strict=True):
            if len(self.rows) == self.count:
                return
            self.names = sample.routing["expert_names"]
            self.rows.append(grid_row(image, sample, sample.stem))

    def after_test(self, runner) -> None:
        if self.rows and is_main_process():
            save_grid(self.rows, self.path, expert_names=self.names)


def grid_row(image: Tensor, sample: CODDataSample, title: str) -> GridRow:
    """One predicted image as a row of a picture grid.

    Args:
        image: The network's input, (3, h, w) uint8.
        sample: What the model made of it, with the maps of all experts.
        title: Written above the image.
    """
    routing = sample.routing
    chosen = [routing["expert_names"][i] for i in routing["indices"].tolist()]
    # The network's input, not the file: what the picture shows is what the model saw.
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    height, width = sample.gt_mask.shape
    return GridRow(
        image=np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)),
        gt=sample.gt_mask,
        expert_probs={name: prob.cpu() for name, prob in sample.expert_probs.items()},
        mixture=sample.pred_prob.cpu(),
        weights=dict(zip(chosen, routing["weights"].tolist(), strict=True)),
        title=title,
    )


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

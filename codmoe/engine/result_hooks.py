"""Hooks of a test run that write what people look at: prediction maps and a picture grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mmengine.dist import get_dist_info, is_main_process
from mmengine.hooks import Hook, LoggerHook
from PIL import Image
from torch import Tensor

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

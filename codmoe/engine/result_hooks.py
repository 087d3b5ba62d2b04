"""Hooks of a test run that write what people look at: prediction maps and a picture grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mmengine.dist import get_dist_info, is_main_process
from mmengine.hooks import Hook, LoggerHook
from PIL import Image

from codmoe.files import replacing
from codmoe.registry import HOOKS
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
            routing = sample.routing
            self.names = routing["expert_names"]
            chosen = [self.names[i] for i in routing["indices"].tolist()]
            self.rows.append(
                GridRow(
                    image=self._at_size(image, sample.gt_mask.shape),
                    gt=sample.gt_mask,
                    expert_probs={n: p.cpu() for n, p in sample.expert_probs.items()},
                    mixture=sample.pred_prob.cpu(),
                    weights=dict(zip(chosen, routing["weights"].tolist(), strict=True)),
                    title=sample.stem,
                )
            )

    def after_test(self, runner) -> None:
        if self.rows and is_main_process():
            save_grid(self.rows, self.path, expert_names=self.names)

    @staticmethod
    def _at_size(image, size) -> np.ndarray:
        # The network's input, not the file: what the picture shows is what the model saw.
        picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))

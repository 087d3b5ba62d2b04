"""Tests a checkpoint: every data set of the config in one pass, as a table, JSON and markdown."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dist import get_dist_info, is_main_process
from mmengine.hooks import Hook, LoggerHook
from PIL import Image
from torch import Tensor

from codmoe import __version__
from codmoe.compiled.prepared import attach_prepared
from codmoe.console import markdown_text
from codmoe.datasets.reading import orientation_of, write_map
from codmoe.datasets.recognition import marks_of, read
from codmoe.engine.checkpoints import TRAINED_ON, load_parts, meta_of
from codmoe.engine.config import (
    dicts_in,
    metrics_of,
    require_sections,
    size_of,
    sources_of,
    tta_faults,
)
from codmoe.engine.ddp import bare_model
from codmoe.engine.hooks.progress import duration
from codmoe.engine.launch import no_benchmark
from codmoe.engine.runner import CODRunner
from codmoe.evaluation.attributes import AttributeMetric, breakdown
from codmoe.evaluation.cod_metric import CODMetric, by_dataset, unique_stems
from codmoe.evaluation.conventions import CONVENTIONS, MIXTURE
from codmoe.evaluation.cost import measure_cost
from codmoe.evaluation.routing_metric import RoutingMetric
from codmoe.evaluation.tables import breakdown_table, result_rows, result_table
from codmoe.files import check_writable, replacing, save_json, save_text
from codmoe.messages import warn
from codmoe.models.build import skip_pretrained
from codmoe.models.tta import AugmentedMoE
from codmoe.registry import HOOKS
from codmoe.structures import CODDataSample
from codmoe.visualization.grid import GridRow, check_picture, save_grid


def test(
    cfg: Config,
    checkpoint: str,
    *,
    experts: bool = False,
    json_file: str | None = None,
    out_dir: str | None = None,
    grid: str | None = None,
    grid_rows: int = 8,
    pictures: str | None = None,
    cost: bool = False,
    compile: bool | str | Mapping[str, Any] = False,
) -> dict[str, Any]:
    """Run the config's test data sets.

    ``cfg.tta``, arguments of :class:`AugmentedMoE` such as ``dict(flip=True, scales=(0.75, 1,
    1.25))``, has every image seen several times.

    Args:
        cfg: As ``engine.launch.prepare`` returns it.
        checkpoint: Weights file.
        experts: Also score each expert alone, their uniform mixture and the per-image oracle, and
            break all of them down by attributes of the images.
        json_file: Where the result goes; ``<work_dir>/test.json`` by default. A markdown table of
            the same name is written beside it, and one of the breakdown as ``..._attributes.md``.
        out_dir: New folder for the prediction maps.
        grid: Picture file for a grid of the first ``grid_rows`` images.
        grid_rows: Number of images in it.
        pictures: Folder for a small picture of every image, which the report shows.
        cost: Also measure parameters, operations and time of each source.
        compile: Prepare the model for speed; see :class:`Inferencer`.

    Returns:
        The payload of the JSON file: ``table[dataset][source]``, ``routing``,
        ``routing_by_dataset``, ``conventions``, what was run,
        ``routing_weights[dataset][stem]`` ({expert: weight}) and, with experts,
        ``attributes[dataset][stem]`` and ``breakdown[dataset]``; ``trained_on[dataset]``, how many
        of its images the weights were trained on (None of weights that do not know); with pictures,
        their files; with cost, that of each source. Empty except on the first process.
    """
    require_sections(cfg, "model", "test_dataloader", "test_evaluator")
    if grid:
        check_picture(grid)
    for written_last in filter(None, (json_file, grid)):
        check_writable(written_last)
    _set_sources(cfg, maps=experts or bool(grid or pictures), attributes=experts)
    hooks = list(cfg.get("custom_hooks") or [])
    if out_dir:
        hooks.append(dict(type="SaveMapsHook", directory=out_dir))
    if grid:
        hooks.append(dict(type="GridHook", path=grid, rows=grid_rows))
    if pictures:
        hooks.append(dict(type="PicturesHook", directory=pictures))
    cfg.custom_hooks = hooks
    runner = test_runner(cfg, checkpoint)
    prepared = None
    if compile is not False:
        size = cfg.test_dataloader.get("batch_size")
        prepared = attach_prepared(bare_model(runner), compile, size)
    if cfg.get("tta"):
        _augment(runner, cfg.tta)
    started = time.time()
    scalars = runner.test()
    if not is_main_process():
        return {}
    metrics = runner.test_evaluator.metrics
    table = next((m.table for m in metrics if isinstance(m, CODMetric)), {})
    if prepared is not None:
        print(prepared.report)
    payload: dict[str, Any] = dict(
        config=str(cfg.get("config_file")),
        checkpoint=str(checkpoint),
        seconds=round(time.time() - started, 1),
        engine=prepared and prepared.report.splitlines(),
        tta=cfg.get("tta"),
        versions=dict(codmoe=__version__, torch=torch.__version__),
        conventions=CONVENTIONS,
        routing={k: v for k, v in scalars.items() if "/" not in k and _is_routing(k)},
        routing_by_dataset=_routing_by_dataset(metrics),
        trained_on=_trained_on(runner.test_dataloader.dataset, checkpoint),
        table=table,
        routing_weights=next((m.weights() for m in metrics if isinstance(m, RoutingMetric)), {}),
    )
    attributes = next((m.table for m in metrics if isinstance(m, AttributeMetric)), {})
    breakdowns = {name: _breakdown(table[name], attributes[name]) for name in attributes}
    if breakdowns:
        payload |= dict(attributes=attributes, breakdown=breakdowns)
    shown = result_table(result_rows(table), f"{checkpoint}", payload["trained_on"])
    shown.print()
    by_attribute = {
        name: breakdown_table(rows, f"{name}: IoU by attribute")
        for name, rows in breakdowns.items()
    }
    for each in by_attribute.values():
        each.print()
    path = Path(json_file or Path(cfg.work_dir) / "test.json")
    if pictures:
        hook = next(hook for hook in runner.hooks if isinstance(hook, PicturesHook))
        payload["pictures"] = hook.told(runner.test_dataloader.dataset, path.parent)
    if cost:
        try:
            payload["cost"] = _cost(runner, payload["routing_weights"])
        except Exception as error:  # nor to its cost
            warn(f"no cost ({type(error).__name__}: {error})")
    save_json(path, payload)
    save_text(path.with_suffix(".md"), shown.markdown())
    if by_attribute:
        text = "\n".join(
            f"## {markdown_text(name)}\n\n{each.markdown()}" for name, each in by_attribute.items()
        )
        save_text(path.with_name(f"{path.stem}_attributes.md"), text)
    written = dict(json=path, maps=out_dir, grid=grid, pictures=pictures)
    for what, file in written.items():
        if file:
            print(f"{what}: {file}")
    return payload


TRAINING_HOOKS = (
    *("average_buffers", "best", "ema", "experts_after", "familiarity", "finite_loss"),
    *("frozen_cache",),
    *("progress", "router_watch", "warmup"),
)
TRAINING_KEYS = (
    *("compile", "init_from", "optim_wrapper", "param_scheduler", "train_cfg"),
    *("train_dataloader", "val_cfg", "val_dataloader", "val_evaluator"),
)


def test_runner(cfg: Config, checkpoint: str) -> CODRunner:
    """A Runner with the weights of ``checkpoint`` in its model, ready to ``test()``.

    Raises:
        FileNotFoundError, ValueError: The checkpoint is missing or does not fit.
    """
    hooks = {k: v for k, v in (cfg.get("default_hooks") or {}).items() if k not in TRAINING_HOOKS}
    for key in TRAINING_KEYS:
        cfg.pop(key, None)
    logger = dict(type="TestProgressHook", interval=5)
    cfg.default_hooks = dict(hooks, checkpoint=None, param_scheduler=None, logger=logger)
    skip_pretrained(cfg.model)  # the weights come from the checkpoint: nothing to download
    no_benchmark(cfg)
    cfg.setdefault("test_cfg", dict())
    runner = CODRunner.from_cfg(cfg)
    load_parts(bare_model(runner), checkpoint)
    return runner


def _augment(runner: CODRunner, options: Mapping[str, Any]) -> None:
    """Has the model see several copies of each image, and the pipelines make the largest of them.

    Raises:
        ValueError: The pipelines resize to several sizes, or an option is wrong.
    """
    if faults := tta_faults(runner.cfg):
        raise ValueError("; ".join(faults))
    views = AugmentedMoE(bare_model(runner), size_of(runner.cfg), **options)
    for node in dicts_in(runner._test_dataloader):
        if node.get("type") == "Resize":
            node["scale"] = views.input_size


def _trained_on(dataset: Any, checkpoint: str) -> dict[str, int] | None:
    seen = read(meta_of(checkpoint).get(TRAINED_ON))
    if not seen:
        return None
    return dict(Counter(name for name, mark in marks_of(dataset) if mark in seen))


def _is_routing(key: str) -> bool:
    starts = ("share_", "chosen_", "IoU_", "mutual_", "top1_", "regret")
    return key.startswith(starts) and not key.endswith("_pooled")


def _routing_by_dataset(metrics: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Shares, mutual information and the rest on each data set by itself."""
    records = next((m.records for m in metrics if isinstance(m, RoutingMetric)), [])
    found = {}
    for name, own_records in by_dataset(records).items():
        # A metric of its own: this one's records are of all data sets.
        own = RoutingMetric().compute_metrics(own_records)
        found[name] = {k: v for k, v in own.items() if _is_routing(k)}
    return found


def _cost(runner: CODRunner, weights: Mapping[str, Mapping[str, Mapping]]) -> dict[str, Any]:
    """As :func:`measure_cost` gives it, at the size of the first test image."""
    routes = Counter(
        tuple(name for name, weight in image.items() if weight > 0)
        for images in weights.values()
        for image in images.values()
    )
    if not routes:
        raise ValueError("test_evaluator has no RoutingMetric, which says whom the router chose")
    height, width = runner.test_dataloader.dataset[0]["inputs"].shape[-2:]
    return measure_cost(bare_model(runner), (height, width), routes)


def _breakdown(rows: Mapping[str, Mapping[str, Any]], attributes: Mapping[str, Any]) -> list[dict]:
    ious = {
        source: {stem: image["IoU"] for stem, image in row["images"].items()}
        for source, row in rows.items()
    }
    return breakdown(ious, attributes)


def _set_sources(cfg: Config, maps: bool, attributes: bool) -> None:
    """Has every expert's map made and scored, and attributes gathered, in all test evaluators."""
    evaluators = metrics_of(cfg, "test")
    cfg.model.evaluate_all_experts = maps or any(map(sources_of, evaluators))
    for evaluator in evaluators:
        if isinstance(evaluator, dict) and evaluator.get("type") == "CODMetric" and maps:
            evaluator["sources"] = "all"
    cfg.test_evaluator = evaluators + ([dict(type="AttributeMetric")] if attributes else [])


@HOOKS.register_module()
class TestProgressHook(LoggerHook):
    """A line each few batches with the time left; the result itself is printed as a table."""

    __test__ = False  # pytest takes the name for a test

    def after_test_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.every_n_inner_iters(batch_idx, self.interval):
            left = runner.message_hub.get_info("eta", 0.0)
            batches = f"batch {batch_idx + 1}/{len(runner.test_dataloader)}"
            runner.logger.info(f"test  {batches}  left {duration(left)}")

    def after_test_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        """Nothing."""


@HOOKS.register_module()
class SaveMapsHook(Hook):
    """Writes each prediction as ``<directory>/<dataset>/<stem>.png``, 8 bit, original resolution,
    round(255·p) without normalisation.

    Args:
        directory: Is made; must hold nothing.

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
            values = (sample.pred_prob.cpu().numpy() * 255).round()
            write_map(path, values, orientation_of(sample.get("img_path")))


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


SIDE = 160
"""Longer side in pixels of the pictures for the report."""
QUALITY = 55


@HOOKS.register_module()
class PicturesHook(Hook):
    """Writes a small picture of every test image for the report, ``<directory>/<index>.webp``: the
    panels ``image``, ``truth``, ``mixture`` and each expert's map side by side, at most
    :data:`SIDE` pixels high and wide each. Needs ``model.evaluate_all_experts=True``.

    Args:
        directory: Folder of these pictures alone; is made.

    Raises:
        ValueError: The folder holds files that are no such pictures.
    """

    def __init__(self, directory: str):
        self.directory = Path(directory)
        self.seen = 0
        self.panels: list[str] = []
        self.failed = ""
        others = self.directory.iterdir() if self.directory.is_dir() else ()
        if any(not re.fullmatch(r"\d+\.webp", path.name) for path in others):
            raise ValueError(f"--pictures {directory} holds other files; give a new folder")

    def after_test_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        rank, world_size = get_dist_info()
        for image, sample in zip(data_batch["inputs"], outputs or (), strict=True):
            index = self.seen * world_size + rank
            self.seen += 1
            if self.failed or index >= len(runner.test_dataloader.dataset):
                continue
            self.panels = ["image", "truth", MIXTURE, *sample.expert_probs]
            try:
                with replacing(self.directory / f"{index}.webp", keep=False) as path:
                    panels(image, sample).save(path, quality=QUALITY, method=4)
            except OSError as error:  # a long test must not lose its figures to a picture
                self.failed = str(error)
                runner.logger.warning(f"no more pictures in {self.directory} ({error})")

    def told(self, dataset: Any, start: Path) -> dict[str, Any]:
        """What the result says of them: ``folder``, relative to ``start``, ``panels``, and
        ``files[dataset][stem]``."""
        files: dict[str, dict[str, str]] = {}
        for (name, stem), index in _places(dataset).items():
            files.setdefault(name, {})[stem] = f"{index}.webp"
        folder = os.path.relpath(self.directory, start)
        return dict(folder=folder, panels=self.panels, files=files)


def panels(image: Tensor, sample: CODDataSample) -> Image.Image:
    """The network's input, the truth and all maps of one image side by side, small."""
    height, width = sample.gt_mask.shape
    scale = SIDE / max(height, width, SIDE)
    size = max(round(height * scale), 1), max(round(width * scale), 1)
    maps = torch.stack(
        [
            torch.as_tensor(map_, device=sample.pred_prob.device, dtype=torch.float32)
            for map_ in (sample.gt_mask, sample.pred_prob, *sample.expert_probs.values())
        ]
    )
    small = F.interpolate(maps[None], size, mode="area")[0]
    grey = (small * 255).round().byte().cpu()[:, None].expand(-1, 3, -1, -1)
    picture = F.interpolate(image[None].float().cpu(), size, mode="bilinear", antialias=True)
    strip = torch.cat([picture.round().byte(), grey]).permute(2, 0, 3, 1)
    return Image.fromarray(strip.reshape(size[0], -1, 3).numpy())


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

"""The cache of frozen parts: they run once for each image and view, not in every epoch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop

from codmoe.datasets.views import FixedViews
from codmoe.engine.config import dicts_in
from codmoe.engine.ddp import bare_model
from codmoe.machine import available_memory
from codmoe.models.frozen_cache import GB, FrozenCache
from codmoe.registry import HOOKS

OFF = "or set default_hooks=dict(frozen_cache=None)"


@HOOKS.register_module()
class FrozenCacheHook(Hook):
    """Keeps pyramids and experts' maps of the training and validation images of this process.

    For a stage in which backbone and experts are frozen. The engine wraps the training set in
    :class:`FixedViews`, so that epoch ``e`` shows view ``e mod views``; once
    all views were seen the frozen parts do not run any more. With several processes each keeps the
    images that come to it, and computes those that come for the first time.

    Args:
        views: Augmented versions of each training image; 1 takes the images as validation does,
            without augmentation.
        limit_gb: Most memory a process may use, in GB; of host memory no more than its share of
            half of what is free when training starts, and the log says so.
        dtype: ``"float16"``, or ``"float32"`` for twice the memory and no rounding.
        device: ``"cpu"``, or ``"cuda"`` where the device has the memory to spare.
    """

    # After what measures at the end of training, which may use it still.
    priority = "VERY_LOW"

    def __init__(
        self,
        views: int = 4,
        limit_gb: float = 8.0,
        dtype: str = "float16",
        device: str = "cpu",
    ):
        self.views = views
        self.cache = FrozenCache(limit_gb, dtype, device)
        self._handle = None

    def before_train(self, runner) -> None:
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError(
                "default_hooks.frozen_cache shows one view an epoch and needs "
                f"train_cfg.type='EpochBasedTrainLoop'; take that, {OFF}"
            )
        self._leave_room(runner)
        model = bare_model(runner)
        model.run_state.frozen_cache = self.cache
        self._handle = model.register_load_state_dict_post_hook(lambda *_: self.cache.clear())

    def _leave_room(self, runner) -> None:
        """Data loading needs memory too, and a process that runs out of it is killed unheard."""
        free = available_memory() if self.cache.device == "cpu" else None
        # torchrun says how many are on this machine; at the worst all are.
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", get_world_size()))
        if free is None:
            return
        share = free / 2 / processes / GB
        if share < self.cache.limit_gb:
            runner.logger.warning(
                f"frozen cache: limit_gb={self.cache.limit_gb:g} for each of {processes} "
                f"process(es), but {free / GB:.1f} GB of host memory are free: it will take at "
                f"most {share:.2g} GB in each"
            )
            self.cache.limit_gb = share

    def before_train_epoch(self, runner) -> None:
        views = views_of(runner.train_dataloader.dataset)
        if views is not None:
            views.set_epoch(runner.epoch)
            # A view that no later epoch shows would take memory for nothing.
            self.cache.filling = runner.epoch + views.views < runner.max_epochs

    def before_val_epoch(self, runner) -> None:
        self.cache.filling = True

    def after_train_epoch(self, runner) -> None:
        cache = self.cache
        if cache.misses:
            sets = [runner.train_dataloader.dataset]
            if getattr(runner, "_val_loop", None) is not None:
                sets.append(runner.val_dataloader.dataset)
            found = [view for view in map(views_of, sets) if view is not None]
            runner.logger.info(
                f"{cache.summary(sum(len(v) * v.views for v in found))}; backbone and experts ran "
                f"on {cache.misses:,} of {cache.hits + cache.misses:,} images since the last epoch",
                extra=dict(terminal=False),
            )
        if cache.overflows:
            runner.logger.warning(
                "frozen cache: backbone and experts left the range of half precision; "
                f"{cache.overflows:,} images were computed again in float32. Without the cache "
                "they would be NaN: give later stages amp='bf16' or amp=False"
            )
        cache.hits = cache.misses = cache.overflows = 0

    def after_train(self, runner) -> None:
        bare_model(runner).run_state.frozen_cache = None
        if self._handle is not None:
            self._handle.remove()
        self.cache.clear()


def views_of(dataset: Any) -> FixedViews | None:
    """The :class:`FixedViews` among the wrappers of a dataset, or None."""
    while dataset is not None and not isinstance(dataset, FixedViews):
        dataset = getattr(dataset, "dataset", None)
    return dataset


def settle_frozen_cache(cfg: Config) -> None:
    """Give the data sets of a config with a FrozenCacheHook keys by which results are kept.

    Raises:
        ValueError: Something that is to be kept changes in this stage.
    """
    model, views = cfg.model, cfg.default_hooks.frozen_cache.get("views", 4)
    missing = {"backbone", "experts"} - set(model.get("frozen") or ())
    if missing:
        raise ValueError(
            f"default_hooks.frozen_cache keeps what does not learn, but model.frozen="
            f"{tuple(model.get('frozen') or ())} leaves out {sorted(missing)}; freeze them, {OFF}"
        )
    if model.get("train_dispatch", "sparse") != "dense" or model.get("expert_loss_weight", 0):
        raise ValueError(
            "default_hooks.frozen_cache keeps every expert's map and no expert's loss: it needs "
            f"model.train_dispatch='dense' and model.expert_loss_weight=0; set these, {OFF}"
        )
    loader = cfg.train_dataloader
    if _kind(loader) == "FixedViews":  # the config that an earlier run left
        return
    seed = (cfg.get("randomness") or {}).get("seed") or 0
    if views == 1:
        _plain_images(cfg)
    loader.dataset = dict(type="FixedViews", dataset=loader.dataset, views=views, seed=seed)
    if cfg.get("val_dataloader"):
        val = cfg.val_dataloader
        val.dataset = dict(type="FixedViews", dataset=val.dataset, views=1, part="val")


def _kind(loader: Mapping[str, Any]) -> str:
    dataset = loader["dataset"]
    if dataset.get("type") == "TolerantDataset":
        dataset = dataset["dataset"]
    return dataset.get("type", "")


def _plain_images(cfg: Config) -> None:
    """Give the training set the validation's pipeline, without the original ground truth."""
    nodes = dicts_in((cfg.get("val_dataloader") or {}).get("dataset"))
    pipelines = [node["pipeline"] for node in nodes if "pipeline" in node]
    if not pipelines:
        raise ValueError(
            "default_hooks.frozen_cache.views=1 takes the images as validation does, but "
            "val_dataloader has no pipeline; give one, or more views"
        )
    plain = [dict(step) for step in pipelines[0]]
    for step in plain:
        step.pop("keep_original", None)
    for node in dicts_in(cfg.train_dataloader.dataset):
        if "pipeline" in node:
            node["pipeline"] = plain

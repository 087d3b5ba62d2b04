"""The largest batch that a GPU takes in training: tried before the Runner is built."""

from __future__ import annotations

import copy
import gc
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_reduce, get_world_size, init_dist, is_distributed, is_main_process
from mmengine.logging import MMLogger, print_log
from mmengine.optim import build_optim_wrapper

from codmoe.compiled.speed import compile_options, set_fast_norm, set_memory_format
from codmoe.datasets.collate import stack_collate
from codmoe.datasets.streams import drawn_from
from codmoe.engine.runner import uncached
from codmoe.files import save_json
from codmoe.messages import hushed
from codmoe.models.build import skip_pretrained
from codmoe.registry import DATASETS, MODELS

SHARE = 0.9
"""Share of the free memory that a batch may take: cuDNN, NCCL and fragments need the rest."""
RECORD = "auto_batch.json"


def settle_batch(cfg: Config, *, resume: bool) -> None:
    """Set ``train_dataloader.batch_size``, of each process, to the largest that trains.

    The learning rate stays; what the usual rules would make of it is said.

    Args:
        cfg: As :func:`codmoe.engine.launch.settle` leaves it.
        resume: Take the size with which the run began.

    Raises:
        ValueError: There is no GPU, parts are compiled for fixed sizes, not one image
            fits, or a run that goes on began without.
    """
    loader, record = cfg.train_dataloader, Path(cfg.work_dir) / RECORD
    if resume:
        if not record.is_file():
            raise ValueError(
                f"--auto-batch: the run in {cfg.work_dir} began without it; leave it out, so that "
                "the run goes on with its own batch"
            )
        loader.batch_size = json.loads(record.read_text())["batch_size"]
        return
    if not torch.cuda.is_available():
        raise ValueError(
            "--auto-batch tries batches on a GPU, and there is none here; set "
            f"train_dataloader.batch_size instead (now {loader.batch_size})"
        )
    if compile_options(cfg.get("compile")):
        raise ValueError(
            "--auto-batch with compile, which is made for one size and keeps the memory of each "
            "that was tried; set train_dataloader.batch_size"
        )
    if cfg.get("launcher", "none") != "none" and not is_distributed():
        init_dist(cfg.launcher, **cfg.env_cfg.get("dist_cfg", {}))
    trial = BatchTrial(cfg, "cuda", SHARE * torch.cuda.mem_get_info()[0])
    most = max(trial.images // get_world_size(), 1)
    found = largest(trial.fits, min(loader.batch_size, most), most)
    smallest = torch.tensor(found, device="cuda")
    all_reduce(smallest, op="min")
    before, loader.batch_size = loader.batch_size, int(smallest)
    trial.close()
    if not loader.batch_size:
        raise ValueError(
            "--auto-batch: not one image fits the GPU; take smaller images, "
            "model.expert_execution='checkpoint' or model.checkpoint_backbone='all'"
        )
    if is_main_process():
        tried = {str(size): gib for size, gib in sorted(trial.tried.items())}
        save_json(record, dict(batch_size=loader.batch_size, configured=before, gib=tried))
        print_log(
            f"auto-batch: {loader.batch_size} images on each process in place of {before}, "
            f"{trial.tried.get(loader.batch_size) or math.nan:.1f} GiB of "
            f"{trial.limit / SHARE / 2**30:.1f} that are free; "
            + rate_advice(cfg.optim_wrapper.optimizer.get("lr"), loader.batch_size / before),
            "current",
        )


def largest(fits: Callable[[int], bool], start: int, most: int) -> int:
    """The largest number up to ``most`` that fits, to a sixteenth; 0 if not even 1 does. All below
    one that fits do, too.
    """
    low, high, size = 0, most + 1, start
    while high - low > max(low // 16, 1):
        if fits(size):
            low = size
        else:
            high = size
        # Doubled until one does not fit, which is found out in the time of a few steps.
        size = min(2 * low, most) if high > most else (low + high) // 2
    return low


def rate_advice(rate: float | None, factor: float) -> str:
    """What the rules of scaling would make of a rate for a batch ``factor`` times as large."""
    if rate is None or factor == 1:
        return "the learning rate stays"
    root, linear = rate * math.sqrt(factor), rate * factor
    return (
        f"the learning rate stays {rate:.3g}: for Adam with {factor:.3g} times the images a step "
        f"the square-root rule says optim_wrapper.optimizer.lr={root:.2g}, the linear rule of SGD "
        f"{linear:.2g}"
    )


class BatchTrial:
    """Training steps of a model of its own on copies of one sample, as a config trains.

    Args:
        cfg: The settled config, which stays as it is.
        device: Where to train.
        limit: Bytes that a step may take there.

    Attributes:
        tried: GiB by number of images; None where memory was not enough.
        images: Number of training images.
    """

    def __init__(self, cfg: Config, device: str, limit: float):
        cfg, hooks = copy.deepcopy(cfg), cfg.get("default_hooks") or {}
        cache = hooks.get("frozen_cache") or {}
        self.limit = limit - (
            cache.get("limit_gb", 8.0) * 1e9 if cache.get("device") == device else 0
        )
        self.tried: dict[int, float | None] = {}
        with drawn_from(0):
            dataset = DATASETS.build(uncached(cfg.train_dataloader.dataset))
            self.sample = dataset[0]
        self.images = len(dataset)
        torch.backends.cudnn.benchmark = bool(cfg.env_cfg.get("cudnn_benchmark"))
        skip_pretrained(cfg.model)
        if cfg.get("data_preprocessor"):
            cfg.model.setdefault("data_preprocessor", cfg.data_preprocessor)
        set_fast_norm(cfg.get("fast_norm", False))
        self.model = MODELS.build(cfg.model).to(device).train()
        set_fast_norm(False)
        set_memory_format(self.model, cfg.get("memory_format"))
        # Averaged weights and DDP's buffers are a copy of the parameters each.
        copies = bool(hooks.get("ema")) + (get_world_size() > 1)
        self.kept = [copy.deepcopy(self.model) for _ in range(copies)]
        # While gradients of one batch wait, the next has its activations.
        counts = min(cfg.optim_wrapper.get("accumulative_counts") or 1, 2)
        cfg.optim_wrapper.accumulative_counts = counts
        if cfg.optim_wrapper.get("loss_scale") == "dynamic":
            # The search for a scale skips the first steps, and so the optimiser's memory.
            cfg.optim_wrapper.loss_scale = 1.0
        with hushed(MMLogger.get_current_instance()):
            self.optimizer = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.steps = 2 * counts
        scaler = getattr(self.optimizer, "loss_scaler", None)
        self.model.run_state.scale_loss = scaler.scale if scaler is not None else None

    def fits(self, size: int) -> bool:
        """Whether training steps of so many images stay within the limit."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self.tried[size] = None
        try:
            batch: dict[str, Any] = stack_collate([self.sample] * size)
            for _ in range(self.steps):
                self.model.train_step(copy.copy(batch), optim_wrapper=self.optimizer)
            peak = self.peak()
        except RuntimeError as error:  # out of memory, also as cuDNN and 32-bit indices say it
            if size == 1 and not isinstance(error, torch.OutOfMemoryError):
                raise
            return False
        finally:
            self.optimizer.zero_grad()
            gc.collect()
        self.tried[size] = round(peak / 2**30, 2)
        return peak <= self.limit

    @staticmethod
    def peak() -> int:
        """The most bytes that torch has held since the trial began."""
        return torch.cuda.max_memory_reserved()

    def close(self) -> None:
        """Give the memory back."""
        del self.model, self.optimizer, self.kept
        gc.collect()
        torch.cuda.empty_cache()
        torch.backends.cudnn.benchmark = False

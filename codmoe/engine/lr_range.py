"""The learning-rate range test: some steps under a rate that rises, and a suggestion.

Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017. The suggestion is where
the smoothed loss falls steepest over the logarithm of the rate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook

from codmoe.engine.ddp import bare_model
from codmoe.engine.launch import build_runner, settle, stop_workers
from codmoe.engine.sources import load_sources
from codmoe.files import save_json
from codmoe.visualization.curves import save_lr_range

LOWEST, HIGHEST = 1e-7, 1.0
SMOOTHING = 0.9
"""Share of the past in the smoothed loss."""
DIVERGED = 2.0
"""The test ends where the smoothed loss is so many times the lowest one."""


class _Ended(Exception):
    """The test is over, in the midst of an epoch."""


class LRRangeHook(Hook):
    """Raises the rate of all parameter groups exponentially; ends where the loss diverges.

    Args:
        steps: Steps of the optimiser from the lowest to the highest rate.
    """

    priority = "LOWEST"

    def __init__(self, steps: int):
        self.steps = steps
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._group: list[torch.Tensor] = []

    def before_train(self, runner) -> None:
        base = runner.optim_wrapper.optimizer.defaults["lr"]
        self._shares = [group["lr"] / base for group in runner.optim_wrapper.param_groups]

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        self._rate = LOWEST * (HIGHEST / LOWEST) ** (len(self.rates) / max(self.steps - 1, 1))
        for group, share in zip(runner.optim_wrapper.param_groups, self._shares, strict=True):
            group["lr"] = share * self._rate

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs: dict[str, Any] | None = None
    ) -> None:
        self._group.append((outputs or {})["loss"].detach())
        if runner.optim_wrapper.is_waiting():
            return
        loss = torch.stack(self._group).mean()
        all_reduce(loss, op="mean")  # all processes end after the same step
        self._group = []
        self.rates.append(self._rate)
        self.losses.append(float(loss))
        past = smooth(self.losses)
        if len(past) % max(self.steps // 10, 1) == 0:
            step = f"step {len(past)}/{self.steps}"
            runner.logger.info(f"lr range  {step}  lr {self._rate:.1e}  loss {past[-1]:.4g}")
        diverged = not math.isfinite(self.losses[-1]) or past[-1] > DIVERGED * min(past)
        if diverged or len(past) == self.steps:
            raise _Ended


@dataclass(frozen=True)
class RangeResult:
    """The rising rates of a test, the loss under each, as it is and smoothed, and the rate where
    the smoothed loss falls steepest: None where it falls no more than it varies.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None


def lr_range(cfg: Config, steps: int = 100) -> RangeResult:
    """Test the learning rates of a stage, from the weights with which it starts.

    Nothing of a training in the work dir is touched: log, curve and figures go into
    ``<work_dir>/lr_range``.

    Args:
        cfg: As ``engine.launch.prepare`` returns it; it stays as it is.
        steps: Steps of the optimiser.

    Raises:
        FileNotFoundError, ValueError: As a training would.
    """
    cfg = copy.deepcopy(cfg)
    folder, hooks = Path(cfg.work_dir) / "lr_range", cfg.get("default_hooks") or {}
    cfg.work_dir = str(folder)
    batches = steps * (cfg.optim_wrapper.get("accumulative_counts") or 1)
    cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=batches)  # more than enough
    cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None, param_scheduler=None)
    cfg.update(resume=False, visualizer=None)
    kept = ("timer", "sampler_seed", "progress")
    cfg.default_hooks = {name: hooks[name] for name in kept if name in hooks}
    cfg.default_hooks.update(logger=None, checkpoint=None, param_scheduler=None)
    plan = settle(cfg)
    runner = build_runner(plan)
    hook = LRRangeHook(steps)
    runner.register_hook(hook)
    for line in load_sources(bare_model(runner), plan.sources) if plan.sources else ():
        runner.logger.info(line)
    try:
        runner.train()
    except _Ended:
        pass
    finally:
        stop_workers(runner)
    result = judge(hook.rates, hook.losses)
    if is_main_process():
        _report(result, folder, runner.optim_wrapper.optimizer.defaults["lr"], runner.logger)
    return result


def _report(result: RangeResult, folder: Path, configured: float, logger) -> None:
    save_json(folder / "lr_range.json", asdict(result))
    marks = dict(suggested=result.suggestion, configured=configured)
    picture = save_lr_range(
        result.rates,
        result.losses,
        result.smoothed,
        folder / "lr_range.png",
        {name: rate for name, rate in marks.items() if rate},
    )
    said = "no suggestion: the loss falls no more than it varies; try more steps, --lr-range 300"
    if result.suggestion:
        said = f"suggestion: --cfg-options optim_wrapper.optimizer.lr={result.suggestion:.1e}"
    logger.info(
        f"{said} (configured: {configured:.1e})\n  curve    {picture}", extra=dict(emphasis=True)
    )


def judge(rates: Sequence[float], losses: Sequence[float]) -> RangeResult:
    """Smooth the losses and find where they fall steepest, before their lowest point.

    Under the rates of the first quarter nothing is learnt: how far losses differ there is noise,
    and a fall that is no larger suggests nothing.
    """
    smoothed = smooth(losses)
    begin = max(len(losses) // 4, 2)
    later = [value for value in smoothed[begin:] if math.isfinite(value)]
    suggestion = None
    if later:
        end = later.index(min(later)) + 1
        fall = np.mean(losses[:begin]) - later[end - 1]
        if end > 2 and fall > np.std(losses[:begin]):
            slope = np.gradient(np.array(later[:end]), np.log(rates[begin : begin + end]))
            suggestion = float(rates[begin + int(slope.argmin())])
    return RangeResult(list(rates), list(losses), smoothed, suggestion)


def smooth(losses: Sequence[float]) -> list[float]:
    """The running mean, without its bias towards zero at the beginning."""
    mean, smoothed = 0.0, []
    for number, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed.append(mean / (1 - SMOOTHING**number))
    return smoothed

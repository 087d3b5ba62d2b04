"""Lines of progress: one a log interval and one a validation, with the time that is left."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import mmengine.hooks
from mmengine.dist import master_only
from mmengine.runner import BaseLoop, EpochBasedTrainLoop
from mmengine.visualization import LocalVisBackend

from codmoe.engine.ddp import bare_model
from codmoe.engine.hooks.training import BestWeightsHook
from codmoe.engine.terminal import WIDTH
from codmoe.registry import HOOKS

CHAIN = "CODMOE_CHAIN"
"""Environment variable by which a stage knows its place among others: a :class:`Chain` as text."""


@dataclass(frozen=True)
class Chain:
    """A stage's place among those that ``run_stages`` trains.

    Args:
        stage: Which it is, from 1.
        stages: How many there are.
        later: Work that follows it, as a multiple of its own.
    """

    stage: int
    stages: int
    later: float

    @classmethod
    def of_environment(cls) -> Chain | None:
        """This process's; None for a stage that runs by itself."""
        told = os.environ.get(CHAIN, "").split()
        return cls(int(told[0]), int(told[1]), float(told[2])) if len(told) == 3 else None

    def __str__(self) -> str:
        return f"{self.stage} {self.stages} {self.later:.6g}"


@HOOKS.register_module()
class LoggerHook(mmengine.hooks.LoggerHook):
    """mmengine's, with lines for people: of at most 140 characters on the terminal.

    All scalars still go to mmengine's backends (``vis_data/scalars.json``, TensorBoard) and into
    the report. The time that is left counts pauses between epochs (validation, checkpoints) as long
    as they were so far, and the stages to come at this stage's pace.
    """

    def before_train(self, runner) -> None:
        self.chain = Chain.of_environment()
        self._pauses: list[float] = []
        self._paused: float | None = None

    def before_train_epoch(self, runner) -> None:
        if self._paused is not None:
            self._pauses.append(time.monotonic() - self._paused)

    def after_train_epoch(self, runner) -> None:
        self._paused = time.monotonic()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        steps = len(runner.train_dataloader)
        # A resumed run may begin in the midst of an epoch, where batch_idx begins at 0.
        step = runner.iter + 1 - runner.epoch * steps if _by_epoch(runner) else batch_idx + 1
        last = step == steps and (not self.ignore_last or steps <= self.interval)
        if not (step % self.interval == 0 or last):
            return
        found, _ = runner.log_processor.get_log_after_iter(runner, batch_idx, "train")
        iou = self._iou(runner)
        figures = [
            f"epoch {_of(runner.epoch + 1, runner.max_epochs)}" if _by_epoch(runner) else "",
            f"step {_of(*((step, steps) if _by_epoch(runner) else _steps(runner, 1)))}",
            f"loss {found['loss']:<5.4g}" if "loss" in found else "",
            "" if iou is None else f"IoU {iou:.3f}",
            f"lr {found.get('base_lr', found.get('lr', 0.0)):.1e}",
            f"{found['memory'] / 1024:.1f} GiB" if "memory" in found else "",
            self._left(runner),
        ]
        runner.logger.info(self._line(runner, figures))
        self._record(runner, "train", found, runner.iter + 1, runner.iter + 1)

    def _iou(self, runner) -> float | None:
        """Of the mixture in training; where none is made, the mean of the experts'."""
        known = runner.message_hub.log_scalars
        keys = [f"train/IoU_{name}" for name in getattr(bare_model(runner), "expert_names", ())]
        keys = ["train/IoU_mixture"] if "train/IoU_mixture" in known else keys
        window = runner.log_processor.window_size
        found = [float(known[key].mean(window)) for key in keys if key in known]
        return sum(found) / len(found) if found else None

    def _left(self, runner) -> str:
        known = runner.message_hub.log_scalars
        if "train/time" not in known:
            return ""
        step = float(known["train/time"].mean(runner.log_processor.window_size))
        pause = sum(self._pauses) / max(len(self._pauses), 1)
        here = step * (runner.max_iters - runner.iter - 1)
        here += pause * (runner.max_epochs - runner.epoch)
        if self.chain is None or not self.chain.later:
            return f"left {duration(here)}"
        whole = step * runner.max_iters + pause * runner.max_epochs
        return f"left {duration(here)}, all {duration(here + self.chain.later * whole)}"

    def before_val(self, runner) -> None:
        self._began = time.monotonic()

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Nothing: a validation is one line."""

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        if not isinstance(runner._train_loop, BaseLoop):  # a validation outside training
            super().after_val_epoch(runner, metrics)
            return
        found, told = metrics or {}, runner.message_hub.get_info
        best = best_hook(runner)
        key = best.monitor if best else "IoU"
        shown = [name for name in dict.fromkeys((key, "IoU", "Dice", "MAE")) if name in found]
        figures = [f"{name} {float(found[name]):.4f}" for name in shown]
        score, epoch = told("codmoe_best"), told("codmoe_best_epoch")
        is_best = score is not None and (score, epoch) == (found.get(key), runner.epoch)
        if is_best:
            figures[0] += " best so far"
        elif score is not None:
            after = f" after epoch {epoch}" if _by_epoch(runner) else ""
            figures[:1] = [*figures[:1], f"best {score:.4f}{after}"]
        if "IoU_oracle" in found:
            figures.append(f"oracle {float(found['IoU_oracle']):.4f}")
        place = f"epoch {_of(runner.epoch, runner.max_epochs)}"
        place = place if _by_epoch(runner) else f"step {_of(*_steps(runner))}"
        took = duration(time.monotonic() - self._began)
        line = self._line(runner, [place, "validation", *figures, f"took {took}"])
        runner.logger.info(line, extra=dict(emphasis=is_best))
        scalars, _ = runner.log_processor.get_log_after_epoch(
            runner, len(runner.val_dataloader), "val"
        )
        step = runner.epoch if self.log_metric_by_epoch else runner.iter
        self._record(runner, "val", scalars, step, runner.iter)

    @master_only
    def _record(self, runner, part: str, scalars: dict, step: int, iteration: int) -> None:
        """Gives scalars to the backends: to mmengine's own, whose file the report reads, under
        their plain names; to others apart by training and validation, over one axis.
        """
        for backend in runner.visualizer._vis_backends.values():
            if isinstance(backend, LocalVisBackend):
                backend.add_scalars(scalars, step=step, file_path=self.json_log_path)
            else:
                apart = {f"{part}/{key}": value for key, value in scalars.items()}
                backend.add_scalars({**apart, "iter": iteration}, step=iteration)

    def _line(self, runner, figures: list[str]) -> str:
        """The figures, after as much of the stage's name as there is room for."""
        rest = "  ".join(filter(None, figures))
        place = f"{self.chain.stage}/{self.chain.stages} " if self.chain else ""
        room = WIDTH - len(f"00:00:00 {place}  {rest}")
        name = stage_name(runner)
        name = name if len(name) <= room else f"{name[: max(room - 1, 0)]}…"
        return f"{place}{name}  {rest}"


def best_hook(runner) -> BestWeightsHook | None:
    """The hook that keeps a run's best weights."""
    return next((hook for hook in runner.hooks if isinstance(hook, BestWeightsHook)), None)


def stage_name(runner) -> str:
    """The name under which a run keeps its best weights; else that of its config."""
    best = best_hook(runner)
    return best.name if best else runner.experiment_name.partition(f"_{runner.timestamp}")[0]


def duration(seconds: float) -> str:
    """``"0:42"``, ``"3:05"``, ``"27:03:05"``."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _by_epoch(runner) -> bool:
    return isinstance(runner.train_loop, EpochBasedTrainLoop)


def _steps(runner, more: int = 0) -> tuple[int, int]:
    return runner.iter + more, runner.max_iters


def _of(number: int, most: int) -> str:
    return f"{number:>{len(str(most))}}/{most}"

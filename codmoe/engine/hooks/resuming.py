"""Hooks by which a run that was cut off, and resumed, ends as if it had not been."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from pathlib import Path

import mmengine.hooks
import numpy as np
from mmengine.dist import get_rank, is_main_process
from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.logging import MessageHub
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop

from codmoe.datasets.streams import STEP, VALIDATION, seed_streams
from codmoe.engine.ddp import bare_model
from codmoe.messages import suggest
from codmoe.registry import HOOKS
from codmoe.trust import not_finite

VALIDATED, EPOCH_STEPS = "codmoe_validated", "codmoe_epoch_steps"
"""What a checkpoint says of its run: the last validated iteration, and the steps of an epoch."""
WAY_OUT = (
    "train with amp=False or amp='bf16' if it is fp16 that overflows, or lower "
    "optim_wrapper.optimizer.lr, and go on from a checkpoint before it"
)


class ResumableHook(Hook):
    """Makes up what an interruption cut off, and seeds each step by its place in training.

    mmengine writes a training checkpoint before it validates. So what lies in a checkpoint (best
    score, state of early stopping, log) has not seen that validation, whether or not it took place
    before the interruption: a resumed run begins with it.

    What the main process draws in a step (router noise, dropout) follows from seed, iteration and
    rank; in a validation likewise. Every Runner of this package has this hook; it is not
    configured.
    """

    # After all others: at the end of before_train the run stands, before a step nobody draws more.
    priority = "LOWEST"

    def before_train(self, runner) -> None:
        runner.message_hub.update_info(EPOCH_STEPS, len(runner.train_dataloader))
        if runner.iter and runner._val_loop is not None and self._is_owed(runner):
            runner.logger.info(f"validation after {_place(runner)} is made up")
            runner.val_loop.run()

    @staticmethod
    def _is_owed(runner) -> bool:
        loop = runner.train_loop
        if runner.message_hub.get_info(VALIDATED) == runner.iter:
            return False
        if isinstance(loop, EpochBasedTrainLoop):
            done, last = loop.epoch, loop.max_epochs
            if loop.iter != done * len(loop.dataloader):  # in the midst of an epoch
                return False
        elif isinstance(loop, IterBasedTrainLoop):
            done, last = loop.iter, loop.max_iters
        else:
            return False
        loop._decide_current_val_interval()
        return done >= loop.val_begin and (done % loop.val_interval == 0 or done == last)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        self._seed(runner, STEP)

    def before_val_epoch(self, runner) -> None:
        if isinstance(runner._train_loop, BaseLoop):  # and not a validation outside training
            check_weights(runner, runner.iter)
            self._seed(runner, VALIDATION)

    @staticmethod
    def _seed(runner, what: int) -> None:
        seed_streams(runner.seed, what, runner.iter, get_rank(), model=bare_model(runner))

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        if isinstance(runner._train_loop, BaseLoop):
            runner.message_hub.update_info(VALIDATED, runner.iter)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint["seconds"] = time.time() - runner.began
        stopping = [
            dict(best_score=float(hook.best_score), wait_count=hook.wait_count)
            for hook in _stopping(runner)
        ]
        if stopping:
            checkpoint["early_stopping"] = stopping

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if runner._resume:
            runner.began -= checkpoint.get("seconds", 0.0)
            for hook, state in zip(
                _stopping(runner), checkpoint.get("early_stopping", ()), strict=False
            ):
                vars(hook).update(state)


def _stopping(runner) -> Iterator[EarlyStoppingHook]:
    return (hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook))


def _place(runner) -> str:
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        return f"epoch {runner.epoch}"
    return f"iteration {runner.iter}"


@HOOKS.register_module()
class CheckpointHook(mmengine.hooks.CheckpointHook):
    """mmengine's; never with weights that are not finite, and the old one goes after the new one
    is there.
    """

    def before_train(self, runner) -> None:
        known = inspect.signature(runner.save_checkpoint).parameters
        for key in self.args.keys() - known:  # else told where the first epoch ends
            raise ValueError(f"default_hooks.checkpoint: no key {key!r}; {suggest(key, known)}")
        for key in ("interval", "max_keep_ckpts"):
            if not isinstance(value := getattr(self, key), int):
                raise ValueError(f"default_hooks.checkpoint.{key}={value!r} is no whole number")
        super().before_train(runner)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        check_weights(runner, meta["iter"])
        old = None
        if 0 < self.max_keep_ckpts == len(self.keep_ckpt_ids) and self.keep_ckpt_ids[-1] != step:
            # mmengine removes before it writes: of one that is kept, a kill in between leaves none.
            old = self.keep_ckpt_ids.popleft()
        super()._save_checkpoint_with_step(runner, step, meta)
        if old is not None and is_main_process():
            (Path(self.out_dir) / self.filename_tmpl.format(old)).unlink(missing_ok=True)


def check_weights(runner, iteration: int) -> None:
    """Stops a training whose weights, or those that an EMAHook averages, hold NaN or infinity after
    so many steps.

    Raises:
        ValueError: The weights are not finite; says since which step, as losses and gradients tell.
    """
    models = [bare_model(runner), *(h.ema_model for h in runner.hooks if hasattr(h, "ema_model"))]
    state = {k: v for model in models for k, v in model.state_dict().items()}
    broken = not_finite(state)
    if broken:
        since = min(_since(runner.message_hub, k, iteration) for k in ("loss", "grad_norm"))
        raise ValueError(
            f"the weights became non-finite at iteration {since}: {len(broken)} of {len(state)} "
            f"tensors hold NaN or infinity, the first is {broken[0]}. They are not saved, and "
            f"earlier checkpoints stay; {WAY_OUT}"
        )


def _since(hub: MessageHub, key: str, iteration: int) -> int:
    """First of the iterations up to this one in which a scalar was no finite number each time."""
    if f"train/{key}" not in hub.log_scalars:
        return iteration
    finite = np.isfinite(hub.get_scalar(f"train/{key}").data[0])
    streak = int(np.argmin(np.append(~finite[::-1], False)))
    return iteration - max(streak - 1, 0)

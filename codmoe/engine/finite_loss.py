"""Ends a training whose loss or gradient is no number."""

from __future__ import annotations

import math
from typing import Any

import torch
from mmengine.hooks import Hook

from codmoe.registry import HOOKS

# Kept by the optimiser's wrapper where it clips.
_NORM = "train/grad_norm"


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops when the loss or the norm of the gradient is NaN or infinite each time it is looked at.

    A loss scaler, which mixed precision has in bf16, too, passes over such a step. So a forward
    pass that overflows every time, or a backward pass that does, would train nothing for hours, of
    which only ``loss: nan`` or ``grad_norm: nan`` in the log tells.

    Args:
        interval: Steps between two looks; each waits for the device once.
        patience: Looks in a row that may find no number.
    """

    priority = "LOW"

    def __init__(self, interval: int = 50, patience: int = 3):
        self.interval = interval
        self.patience = patience
        self.found = 0

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs: dict[str, Any] | None = None
    ) -> None:
        if not self.every_n_train_iters(runner, self.interval):
            return
        what, value = _no_number(runner, outputs or {})
        if not what:
            self.found = 0
            return
        self.found += 1
        runner.logger.warning(f"{what} is {value} at step {runner.iter + 1}")
        if self.found >= self.patience:
            raise ValueError(
                f"{what} was no number the last {self.found} times it was looked at, every "
                f"{self.interval} steps: nothing is learnt any more; train with amp=False or "
                "amp='bf16' if it is fp16 that overflows, or lower optim_wrapper.optimizer.lr, and "
                "go on from a checkpoint before it"
            )


def _no_number(runner, outputs: dict[str, Any]) -> tuple[str, float]:
    """Which of loss and gradient is no number, and what it is instead; ``""`` if both are."""
    loss = outputs.get("loss")
    if loss is not None and not bool(torch.isfinite(loss).all()):
        return "the loss", float(loss)
    hub = runner.message_hub
    if _NORM in hub.log_scalars:  # absent without clipping
        norm = float(hub.get_scalar(_NORM).current())
        if not math.isfinite(norm):
            return "the gradient's norm", norm
    return "", 0.0

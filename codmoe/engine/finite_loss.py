"""Ends a training whose loss is no number."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook

from codmoe.registry import HOOKS


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops when the loss is NaN or infinite each time it is looked at.

    In fp16 the loss scaler passes over such a step, and a forward pass that overflows every time
    would train nothing for hours, of which only ``loss: nan`` in the log tells.

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
        loss = (outputs or {}).get("loss")
        if loss is None or bool(torch.isfinite(loss).all()):
            self.found = 0
            return
        self.found += 1
        runner.logger.warning(f"the loss is {float(loss)} at step {runner.iter + 1}")
        if self.found >= self.patience:
            raise ValueError(
                f"the loss was no number the last {self.found} times it was looked at, every "
                f"{self.interval} steps: nothing is learnt any more; train with amp=False or "
                "amp='bf16' if it is fp16 that overflows, or lower optim_wrapper.optimizer.lr, and "
                "go on from a checkpoint before it"
            )

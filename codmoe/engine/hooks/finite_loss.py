"""Ends a training whose loss or gradient is no number."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub

from codmoe.registry import HOOKS

# Kept by the optimiser's wrapper where it clips.
_NORM = "train/grad_norm"
# A loss scaler that begins at 65,536 has found its scale long before.
_UPDATES = 30
_WAY_OUT = (
    "nothing is learnt any more; train with amp=False or amp='bf16' if it is fp16 that overflows, "
    "or lower optim_wrapper.optimizer.lr, and go on from a checkpoint before it"
)


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops when the loss is NaN or infinite each time it is looked at, or the norm of the gradient
    in each of the last 30 updates.

    A loss scaler, which mixed precision has in bf16, too, passes over such an update. So a forward
    pass that overflows every time, or a backward pass that does, would train nothing for hours, of
    which only ``loss: nan`` or ``grad_norm: nan`` in the log tells.

    Args:
        interval: Steps between two looks; each waits for the device once.
        patience: Looks in a row that may find a loss that is no number.
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
        self._look_at_gradient(runner.message_hub)
        loss = (outputs or {}).get("loss")
        if loss is None or bool(torch.isfinite(loss).all()):
            self.found = 0
            return
        self.found += 1
        runner.logger.warning(f"the loss is {float(loss)} at step {runner.iter + 1}")
        if self.found >= self.patience:
            times = f"the last {self.found} times it was looked at, every {self.interval} steps"
            raise ValueError(f"the loss was no number {times}: {_WAY_OUT}")

    def _look_at_gradient(self, hub: MessageHub) -> None:
        if _NORM not in hub.log_scalars:  # nothing is clipped
            return
        norms = hub.get_scalar(_NORM).data[0][-_UPDATES:]
        if len(norms) == _UPDATES and not np.isfinite(norms).any():
            raise ValueError(
                f"the gradient was no number in each of the last {_UPDATES} updates: {_WAY_OUT}"
            )

import logging
from types import SimpleNamespace

import pytest
import torch

from codmoe.engine.finite_loss import FiniteLossHook
from codmoe.engine.message_hub import DeferredMessageHub


def steps(hook, *losses, norms=None):
    hub = DeferredMessageHub("finite")
    runner = SimpleNamespace(logger=logging.getLogger("test"), message_hub=hub)
    for runner.iter, loss in enumerate(losses):
        if norms:
            hub.update_scalar("train/grad_norm", torch.tensor(norms[runner.iter]))
        hook.after_train_iter(runner, runner.iter, outputs=dict(loss=torch.tensor(loss)))


def test_a_loss_that_stays_nan_ends_the_training():
    nan = float("nan")
    with pytest.raises(ValueError, match=r"last 2 times.*every 3 steps.*amp=False"):
        steps(FiniteLossHook(interval=3, patience=2), 1.0, 1.0, nan, 1.0, 1.0, float("inf"))


def test_a_gradient_that_stays_nan_ends_it_though_the_loss_is_fine():
    nan = float("nan")
    with pytest.raises(ValueError, match=r"the gradient's norm was no number the last 2 times"):
        steps(FiniteLossHook(interval=2, patience=2), *[1.0] * 4, norms=[1.0, nan, 2.0, nan])
    steps(FiniteLossHook(interval=2, patience=2), *[1.0] * 4, norms=[nan, 1.0, nan, 2.0])


def test_single_overflows_do_not():
    # The loss scaler halves its scale and goes on.
    nan = float("nan")
    steps(FiniteLossHook(interval=1, patience=2), nan, 1.0, nan, 1.0)
    steps(FiniteLossHook(interval=3, patience=1), nan, nan, 1.0)

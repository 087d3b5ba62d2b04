import logging
from types import SimpleNamespace

import pytest
import torch

from codmoe.engine.finite_loss import FiniteLossHook


def steps(hook, *losses):
    runner = SimpleNamespace(logger=logging.getLogger("test"))
    for runner.iter, loss in enumerate(losses):
        hook.after_train_iter(runner, runner.iter, outputs=dict(loss=torch.tensor(loss)))


def test_a_loss_that_stays_nan_ends_the_training():
    nan = float("nan")
    with pytest.raises(ValueError, match=r"last 2 times.*every 3 steps.*amp=False"):
        steps(FiniteLossHook(interval=3, patience=2), 1.0, 1.0, nan, 1.0, 1.0, float("inf"))


def test_single_overflows_do_not():
    # The loss scaler halves its scale and goes on.
    nan = float("nan")
    steps(FiniteLossHook(interval=1, patience=2), nan, 1.0, nan, 1.0)
    steps(FiniteLossHook(interval=3, patience=1), nan, nan, 1.0)

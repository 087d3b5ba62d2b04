import itertools
import logging
from types import SimpleNamespace

import pytest
import torch

from codmoe.engine.hooks.training import FiniteLossHook
from codmoe.engine.runner import DeferredMessageHub


def steps(hook, *losses):
    hub = DeferredMessageHub("finite")
    runner = SimpleNamespace(logger=logging.getLogger("test"), message_hub=hub)
    for runner.iter, loss in enumerate(losses):
        hook.after_train_iter(runner, runner.iter, outputs=dict(loss=torch.tensor(loss)))


def test_a_loss_that_stays_nan_ends_the_training():
    nan = float("nan")
    with pytest.raises(ValueError, match=r"last 2 times.*every 3 steps.*amp=False"):
        steps(FiniteLossHook(interval=3, patience=2), 1.0, 1.0, nan, 1.0, 1.0, float("inf"))


def updates(hook, norms, accumulated=1, steps=200):
    """Steps of a fine loss, of which each ``accumulated``-th makes an update."""
    hub = DeferredMessageHub("finite")
    runner = SimpleNamespace(logger=logging.getLogger("test"), message_hub=hub)
    norms = iter(norms)
    for runner.iter in range(steps):
        if (runner.iter + 1) % accumulated == 0:
            hub.update_scalar("train/grad_norm", torch.tensor(next(norms)))
        hook.after_train_iter(runner, runner.iter, outputs=dict(loss=torch.tensor(1.0)))
    return next(norms, None)


@pytest.mark.parametrize("accumulated", [1, 5])
def test_a_gradient_that_stays_nan_ends_it_though_the_loss_is_fine(accumulated):
    norms = itertools.chain([1.0, float("inf"), 2.0], itertools.repeat(float("nan")))
    with pytest.raises(ValueError, match=r"in each of the last 30 updates.*amp=False"):
        updates(FiniteLossHook(interval=10), norms, accumulated)


@pytest.mark.parametrize("interval", [1, 50])
@pytest.mark.parametrize("accumulated", [1, 32, 128])
def test_a_search_for_the_loss_scale_does_not(interval, accumulated):
    inf = float("inf")
    norms = [*[inf] * 16, *[1.0, inf] * 200]
    assert updates(FiniteLossHook(interval), norms, accumulated) is not None


def test_single_overflows_do_not():
    # The loss scaler halves its scale and goes on.
    nan = float("nan")
    steps(FiniteLossHook(interval=1, patience=2), nan, 1.0, nan, 1.0)
    steps(FiniteLossHook(interval=3, patience=1), nan, nan, 1.0)

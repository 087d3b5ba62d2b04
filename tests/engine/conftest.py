"""Trainings that end in the middle, and heads of several."""

import pytest
from miniature import Interrupt
from toy_parts import leave_separate

from codmoe.engine.hooks.training import TrainingProgressHook


@pytest.fixture
def interrupt(monkeypatch):
    """``interrupt(iteration)``: the next training ends there, once, or that happens to it."""

    def end():
        raise Interrupt

    def at(iteration, what=end):
        real = TrainingProgressHook.before_train_iter

        def before(self, runner, batch_idx, data_batch=None):
            if runner.iter == iteration:
                monkeypatch.setattr(TrainingProgressHook, "before_train_iter", real)
                what()
            real(self, runner, batch_idx, data_batch)

        monkeypatch.setattr(TrainingProgressHook, "before_train_iter", before)

    return at


@pytest.fixture
def separate(tmp_path):
    """Files of experts that were each trained alone, by name."""
    return leave_separate(tmp_path)

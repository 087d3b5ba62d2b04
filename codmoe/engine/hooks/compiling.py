"""Has the parts that train compiled before the first step."""

from __future__ import annotations

import logging
import os
from functools import partial

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log

from codmoe.compiled.graphs import captured_anew
from codmoe.compiled.speed import compile_options, compiled_parts
from codmoe.compiled.train_compile import compile_beforehand, pieces_of
from codmoe.compiled.whole import GRAPHING_MODES
from codmoe.engine.ddp import bare_model
from codmoe.models.moe import ModelLevelMoE

STEPS, OFTEN = 20, 5
"""Steps after which is asked how often graphs were captured in them, and what is too often."""


class CompileHook(Hook):
    """Has the parts that ``compile`` names compiled side by side for the first batch, and again
    where an epoch begins with other parameters that learn. Warns where CUDA graphs do not last.

    Attributes:
        figures: What :func:`compile_beforehand` returned last.
    """

    priority = "VERY_LOW"  # after those that hold parameters

    def __init__(self) -> None:
        self.due = True
        self.learning: bytes | None = None
        self.figures: dict | None = None
        self.captured = 0
        self.warned = False

    def before_train_epoch(self, runner) -> None:
        self.due = True

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if compile_options(runner.cfg.get("compile")).get("mode") in GRAPHING_MODES:
            torch.compiler.cudagraph_mark_step_begin()  # results of the last step may go
        if not self.due:
            return
        self.due = False
        model = bare_model(runner)
        learning = bytes(p.requires_grad for p in model.parameters())
        learning += bytes(module.training for module in model.modules())
        if learning == self.learning:
            return
        self.learning = learning
        parts = compiled_parts(model)
        step = partial(forward_alone, model, data_batch, runner.optim_wrapper)
        pieces = pieces_of(parts, step, len(data_batch["inputs"]))
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        self.figures = compile_beforehand(parts, pieces, ranks)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.warned or (runner.iter + 1) % STEPS:
            return
        before, self.captured = self.captured, captured_anew()
        if before and self.captured - before > OFTEN:
            self.warned = True
            print_log(
                f"CUDA graphs were captured again in {self.captured - before} of {STEPS} steps, "
                "seconds each time; compile.mode=None does without them",
                logger="current",
                level=logging.WARNING,
            )


def forward_alone(model: ModelLevelMoE, data_batch: dict, optim_wrapper) -> None:
    """The forward pass of a training step, of which nothing is left: no random number is drawn, no
    statistics are moved.
    """
    cuda = next(model.parameters()).is_cuda
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    training = model.expert_training
    execution = training.execution
    # One after another they would have backward passes of their own.
    training.execution = "together" if execution == "sequential" else execution
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if cuda else []):
            data = model.data_preprocessor(data_batch, True)
            with optim_wrapper.optim_context(model):
                model._run_forward(data, mode="loss")
    finally:
        training.execution = execution
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)

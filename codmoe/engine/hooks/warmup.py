"""A heads-only warm-up: the pretrained part of the backbone waits until the heads are no longer
random.
"""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

from codmoe.engine.ddp import wrap_again
from codmoe.engine.hooks.progress import bare_model
from codmoe.registry import HOOKS


@HOOKS.register_module()
class BackboneWarmupHook(Hook):
    """For the first epochs ``backbone.body`` gets no gradient and stays in evaluation mode.

    Random heads send it large gradients that mean nothing. What is new in a backbone, as the
    pyramid of a plain ViT, learns from the start. The state follows from the epoch alone, so that a
    run resumes in the middle of it.

    DDP wraps the model anew when the body is held and when it is released: it would wait for the
    body's gradients for ever, or search the graph for what has none in every step to come.

    Args:
        epochs: Epochs without it; 0 for none.
    """

    def __init__(self, epochs: int = 1):
        if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 0:
            raise ValueError(
                f"default_hooks.warmup.epochs={epochs!r} must be a whole number, 0 or more"
            )
        self.epochs = epochs
        self._held: list[nn.Parameter] = []

    def before_train(self, runner) -> None:
        if self.epochs and not isinstance(runner.train_loop, EpochBasedTrainLoop):
            # mmengine's loop by iterations is one epoch without end: it would be held for ever.
            raise ValueError(
                f"default_hooks.warmup.epochs={self.epochs} counts epochs, and "
                f"{type(runner.train_loop).__name__} has none; set "
                "train_cfg.type='EpochBasedTrainLoop' or default_hooks.warmup=None"
            )

    def before_train_epoch(self, runner) -> None:
        body = _body(bare_model(runner))
        if runner.epoch >= self.epochs:
            if self._held:
                self._release()
                wrap_again(runner)
                runner.logger.info("warm-up is over: the backbone learns, too")
            return
        if body is None:
            raise ValueError(
                f"default_hooks.warmup: {type(bare_model(runner).backbone).__name__} has no 'body' "
                "for its pretrained part; set default_hooks.warmup=None"
            )
        held = [p for p in body.parameters() if p.requires_grad]
        for parameter in held:
            parameter.requires_grad_(False)
        self._held += held
        if held:
            wrap_again(runner)
            runner.logger.info(f"warm-up: backbone.body is held until epoch {self.epochs} is over")

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        # The training loop sets the whole model to training after before_train_epoch.
        if self._held:
            body = _body(bare_model(runner))
            if body.training:
                body.eval()

    def after_train(self, runner) -> None:
        self._release()

    def _release(self) -> None:
        for parameter in self._held:
            parameter.requires_grad_(True)
        self._held = []


def _body(model: nn.Module) -> nn.Module | None:
    return getattr(model.backbone, "body", None)

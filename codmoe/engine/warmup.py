"""A heads-only warm-up: the pretrained part of the backbone waits until the heads are no longer
random.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

from codmoe.engine.hooks import bare_model
from codmoe.registry import HOOKS


@HOOKS.register_module()
class BackboneWarmupHook(Hook):
    """For the first epochs ``backbone.body`` gets no gradient and stays in evaluation mode.

    Random heads send it large gradients that mean nothing. What is new in a backbone, as the
    pyramid of a plain ViT, learns from the start. The state follows from the epoch alone, so that a
    run resumes in the middle of it.

    With DDP, ``find_unused_parameters`` must be on, as it is by default: DDP without it waits for
    the gradients of the body for ever.

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


def holds_backbone(cfg: Mapping[str, Any]) -> bool:
    """Whether a config has a warm-up, in which the backbone's parameters are unused."""
    hooks = [*(cfg.get("default_hooks") or {}).values(), *(cfg.get("custom_hooks") or [])]
    ours = [hook for hook in hooks if hook and hook.get("type") == "BackboneWarmupHook"]
    return any(hook.get("epochs", 1) for hook in ours)


def check_warmup(cfg: Mapping[str, Any]) -> None:
    """Refuse DDP that counts on a gradient of every parameter, beside a warm-up.

    Raises:
        ValueError: ``model_wrapper_cfg`` says so.
    """
    if cfg.get("launcher", "none") == "none" or not holds_backbone(cfg):
        return
    wrapper = cfg.get("model_wrapper_cfg") or {}
    for key, wrong in (("find_unused_parameters", False), ("static_graph", True)):
        if wrapper.get(key) is wrong:
            raise ValueError(
                f"model_wrapper_cfg.{key}={wrong} with default_hooks.warmup: the backbone has no "
                "gradient in the warm-up; leave it out, or set default_hooks.warmup=None"
            )

"""Parameter groups of the optimiser, and its steps without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from mmengine import registry as root
from mmengine.optim import AmpOptimWrapper, DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn
from torch.optim import Optimizer


# In mmengine's own registry: the Runner looks there.
@root.OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MergedGroupsConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with one group for all parameters of equal settings.

    mmengine makes a group of every parameter, over a thousand of them, and an optimiser launches
    its kernels group by group. The result is the same; a checkpoint of one cannot be resumed with
    the other. The shipped configs have it; ``optim_wrapper.constructor =
    "DefaultOptimWrapperConstructor"`` is mmengine's.
    """

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = "", **kwargs
    ) -> None:
        """Fills ``params`` with the groups of ``module``; merged once the whole model is in."""
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:
            return
        merged: dict[tuple, dict[str, Any]] = {}
        for group in params:
            settings = tuple(sorted((k, v) for k, v in group.items() if k != "params"))
            if settings in merged:
                merged[settings]["params"] += group["params"]
            else:
                merged[settings] = dict(group, params=list(group["params"]))
        params[:] = merged.values()


class _GradientNorm:
    """Clips as mmengine does, and leaves the norm on the device for the log to fetch."""

    def _clip_grad(self) -> None:
        params = [p for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None]
        norm = self.clip_func(params, **self.clip_grad_kwargs) if params else None
        if norm is not None:  # clipping by value gives none
            self.message_hub.update_scalar(f"train/{self.grad_name}", norm)


@root.OPTIM_WRAPPERS.register_module()
class CODOptimWrapper(_GradientNorm, OptimWrapper):
    """mmengine's OptimWrapper, which the engine chooses for full precision."""


@root.OPTIM_WRAPPERS.register_module()
class CODAmpOptimWrapper(_GradientNorm, AmpOptimWrapper):
    """mmengine's AmpOptimWrapper, which the engine chooses for mixed precision."""


def lay_out_state(optimizer: Optimizer) -> None:
    """Give the state of every parameter its memory format, which a checkpoint need not share.

    A fused step reads parameter, gradient and state in the order they lie in memory and refuses
    those that differ.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                laid_out = torch.empty_like(parameter, dtype=value.dtype, device=value.device)
                state[key] = laid_out.copy_(value)

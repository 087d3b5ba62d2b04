"""Parameter groups of the optimiser."""

from __future__ import annotations

from typing import Any

from mmengine import registry as root
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn


# In mmengine's own registry: the Runner looks there.
@root.OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MergedGroupsConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with one group for all parameters of equal settings.

    mmengine makes a group of every parameter, over a thousand of them, and an optimiser launches
    its kernels group by group. The result is the same; a checkpoint of one cannot be resumed with
    the other. Config: ``optim_wrapper = dict(constructor="MergedGroupsConstructor")``.
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

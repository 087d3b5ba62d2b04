"""Copies of parts that only evaluate: batch norm folded, weights in one precision and layout."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from codmoe.models.layers import BatchNorm

PLAIN_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNorm)
"""Batch norms that only normalise; timm's, for one, has an activation inside."""


def fold_batch_norm(module: nn.Module) -> int:
    """Multiply batch norms into the convolutions before them, in place.

    Where it is sure that one follows the other: in mmcv's ``ConvModule``, and side by side in
    ``nn.Sequential``. Others stay as they are.

    Args:
        module: In evaluation mode.

    Returns:
        How many were folded.
    """
    folded = 0
    for parent in list(module.modules()):
        if isinstance(parent, ConvModule) and parent.with_norm:
            pairs = [("conv", parent.norm_name)] if parent.order[:2] == ("conv", "norm") else []
        elif isinstance(parent, nn.Sequential):
            names = list(parent._modules)
            pairs = list(pairwise(names))
        else:
            continue
        for conv_name, norm_name in pairs:
            conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
            if _foldable(conv, norm):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
                folded += 1
    return folded


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    return (
        type(conv) is nn.Conv2d
        and type(norm) in PLAIN_NORMS
        and norm.running_mean is not None
        and not conv._forward_hooks
        and not norm._forward_hooks
    )


def frozen_copy(
    part: nn.Module,
    *,
    dtype: torch.dtype,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> nn.Module:
    """A copy of a part that evaluates, without gradients, in ``dtype``, batch norm folded.

    Submodules with a method ``evaluation_form()`` are replaced by what it returns: a module that
    computes the same, faster. All that is done in float32, or float64 where the part has it, before
    rounding to ``dtype``.
    """
    with torch.inference_mode(False), torch.no_grad():
        copy = deepcopy(part).eval().requires_grad_(False)
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in copy.parameters()):
            copy.float()
        fold_batch_norm(copy)
        for parent in list(copy.modules()):
            for name, child in list(parent.named_children()):
                if hasattr(child, "evaluation_form"):
                    setattr(parent, name, child.evaluation_form())
        return copy.to(device=device, dtype=dtype).to(memory_format=memory_format)


def tensors_of(*modules: nn.Module) -> list[Tensor]:
    """Parameters and buffers of modules, in order."""
    return [t for m in modules for t in (*m.parameters(), *m.buffers())]


def overwrite(copy: nn.Module, newer: nn.Module) -> None:
    """Give ``copy`` the values of another copy of the same part; its tensors stay where they are,
    so that what was captured with them reads the new values.
    """
    with torch.no_grad():
        for old, new in zip(tensors_of(copy), tensors_of(newer), strict=True):
            old.copy_(new)


class ChangeWatch:
    """Tells whether tensors of modules were written since it last looked.

    By torch's version counter, and by the address of each module's first tensor: moving a module
    moves them all. What is written through ``.data`` counts as nothing, there as in autograd.
    """

    def __init__(self, *modules: nn.Module):
        self.tensors = [t for t in tensors_of(*modules) if not t.is_inference()]
        self.firsts = [tensors[0] for m in modules if (tensors := tensors_of(m))]
        self.seen = self._now()

    def _now(self) -> tuple[list[int], list[int]]:
        return [t._version for t in self.tensors], [t.data_ptr() for t in self.firsts]

    def changed(self) -> bool:
        """Whether anything was written since the last call that said so."""
        now = self._now()
        if now == self.seen:
            return False
        self.seen = now
        return True

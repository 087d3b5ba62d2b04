"""Activation checkpointing: computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


@contextmanager
def statistics_untouched(module: nn.Module) -> Iterator[None]:
    """What runs in here updates copies of the batch-norm statistics of ``module``, not its own.

    Copies, because batch norm without statistics would save other tensors for its backward pass
    than the first time, which torch's checkpointing refuses.
    """
    norms = [m for m in module.modules() if isinstance(m, _NormBase) and m.training]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        copies = {k: None if b is None else b.clone() for k, b in norm._buffers.items()}
        norm._buffers.update(copies)
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)


def checkpointed(function: Callable[..., Any], *args, module: nn.Module) -> Any:
    """``function(*args)`` without keeping its activations; they are computed again in the backward
    pass, with the same random numbers.

    Args:
        function: Runs ``module``; may return anything that holds tensors.
        *args: Passed on.
        module: Whose batch-norm statistics the second computation must leave alone.
    """

    def contexts():
        return nullcontext(), statistics_untouched(module)

    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)


def backbone_pass(backbone: nn.Module, images: Tensor) -> list[Tensor]:
    """The pyramid of images (N, 3, H, W), of whose activations little is kept.

    Block by block where timm's model offers that (PVT, Swin, ConvNeXt, ViT) and has no batch norm,
    whose statistics timm would update twice; otherwise the whole pass at once, which needs in the
    backward pass the memory that it saved in the forward pass, but for this pass alone.
    """
    if not torch.is_grad_enabled() or not any(p.requires_grad for p in backbone.parameters()):
        return backbone(images)
    switches = _block_switches(backbone)
    if not switches:
        return checkpointed(backbone, images, module=backbone)
    for module in switches:
        module.grad_checkpointing = True
    try:
        return backbone(images)
    finally:
        for module in switches:
            module.grad_checkpointing = False


def _block_switches(backbone: nn.Module) -> list[nn.Module]:
    """timm's modules that checkpoint their blocks when told to, the innermost ones."""
    if any(isinstance(module, _NormBase) for module in backbone.modules()):
        return []
    found = [m for m in backbone.modules() if getattr(m, "grad_checkpointing", None) is False]
    return [m for m in found if not any(inner in found for inner in m.modules() if inner is not m)]

"""One expert's forward and backward pass at once, so that its activations are gone before the next
expert begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FP16_SCALE = 2.0**10
"""Loss scale of the inner backward pass under fp16 autocast, where nobody gives the optimiser's."""


class _Carrier(torch.autograd.Function):
    """Zero, with gradients that are known already.

    Parameters and pyramid levels are its inputs, so that DDP, the loss scaler, clipping and
    gradient accumulation see an ordinary backward pass.
    """

    @staticmethod
    def forward(ctx, gradients: list[Tensor | None], scale: Tensor | None, total: Tensor, *inputs):
        ctx.gradients, ctx.scale = gradients, scale
        ctx.dtypes = [x.dtype for x in inputs]
        return torch.zeros_like(total)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "backward through a sequentially run expert a second time: its gradients were "
                "handed on in the first; use expert_execution='together' for retain_graph"
            )
        factor = grad_output if ctx.scale is None else grad_output / ctx.scale
        there = [i for i, g in enumerate(gradients) if g is not None]
        # Half-precision ones as float32: with the loss scale still in them they may be large.
        wide = [g.float() if g.dtype.itemsize < 4 else g for g in (gradients[i] for i in there)]
        for i, scaled in zip(there, torch._foreach_mul(wide, factor), strict=True):
            gradients[i] = scaled.to(ctx.dtypes[i])
        return None, None, None, *gradients


def forward_backward(
    run: Callable[[list[Tensor]], tuple[Any, dict[str, Tensor]]],
    levels: Sequence[Tensor],
    parameters: Sequence[Tensor],
    scale_loss: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Any, dict[str, Tensor]]:
    """Runs an expert forward and backward; nothing of its graph is left.

    Args:
        run: Levels → (output, named losses); gradients flow to levels and parameters alone.
        levels: Pyramid levels that the expert reads; ``run`` gets them cut from their graph.
        parameters: The expert's parameters.
        scale_loss: Multiplies a loss with the optimiser's loss scale (``GradScaler.scale``). The
            inner backward pass then has the same range as an ordinary one: what overflows reaches
            the scaler as inf or NaN, and it skips the step and lowers the scale of both. Without
            it, fp16 autocast takes ``FP16_SCALE``, other precisions none.

    Returns:
        What ``run`` returned; of the losses, the first carries the gradient of their sum, and the
        others none. Only their sum with equal weights may be minimised, as mmengine does.
    """
    leaves = [level.detach().requires_grad_(level.requires_grad) for level in levels]
    inputs = [(outer, inner) for outer, inner in zip(levels, leaves, strict=True)]
    inputs = [pair for pair in inputs if pair[0].requires_grad]
    inputs += [(p, p) for p in parameters if p.requires_grad]
    if not inputs or not torch.is_grad_enabled():
        return run(list(levels))
    output, losses = run(leaves)
    total = sum(losses.values())
    device = total.device.type
    scale = None
    if scale_loss is None and _is_fp16(device):
        scale = torch.full_like(total, FP16_SCALE)
    elif scale_loss is not None:
        scale = scale_loss(torch.ones_like(total))
    # As an ordinary backward pass, which mmengine starts outside of autocast.
    with torch.autocast(device, enabled=False):
        gradients = torch.autograd.grad(
            total if scale is None else total * scale,
            [inner for _, inner in inputs],
            allow_unused=True,
        )
    carrier = _Carrier.apply(list(gradients), scale, total.detach(), *(o for o, _ in inputs))
    losses = {name: value.detach() for name, value in losses.items()}
    first = next(iter(losses))
    losses[first] = losses[first] + carrier
    return output, losses


def _is_fp16(device: str) -> bool:
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16

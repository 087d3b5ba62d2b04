"""Equal say of all experts in the shared backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Entrance(torch.autograd.Function):
    """Identity on one expert's pyramids; measures and scales the gradient on its way out."""

    @staticmethod
    def forward(ctx, balance: GradientBalance, index: int, *levels: Tensor):
        ctx.balance, ctx.index = balance, index
        ctx.set_materialize_grads(False)
        return tuple(level.view_as(level) for level in levels)

    @staticmethod
    def backward(ctx, *gradients: Tensor | None):
        return None, None, *ctx.balance.pass_on(ctx.index, gradients)


class GradientBalance(nn.Module):
    """Scales the gradient that each expert sends into the pyramid to the mean norm over experts.

    SINet and PraNet supervise four maps and send several times the gradient of ZoomNet: unbalanced,
    the backbone learns for them. The norm of each expert, over all levels and image scales it
    reads, is divided by the mean over experts of the same step, so that a loss scale cancels out; a
    running mean of that ratio is the divisor of the steps to come. Nothing else changes: the
    gradients of the experts' own parameters stay as they are, and so does the mean of the norms.
    GradNorm (Chen et al., ICML 2018) has the same aim and also weighs tasks by how fast they learn,
    with weights that are learnt; this does neither.

    Norms of a step are taken in at the next one, averaged over ranks (one small all-reduce), so
    that all ranks divide by the same. The running mean is kept in training checkpoints by
    :class:`TrainingProgressHook`, and not in weights.

    Args:
        names: Experts.
        momentum: Share of the past in the running mean.
        limit: No gradient is multiplied or divided by more than this.
    """

    def __init__(self, names: Sequence[str], *, momentum: float = 0.9, limit: float = 20.0):
        super().__init__()
        self.names = tuple(names)
        self.momentum = momentum
        self.limit = limit
        missing = torch.full((len(names),), torch.nan)
        self.register_buffer("ratio", missing.clone(), persistent=False)
        """Running norm of each expert over the mean of all; NaN until the first was seen."""
        self.register_buffer("norms", missing.clone(), persistent=False)
        """Norms of the last step on this rank; NaN for experts that sent nothing."""

    def enter(self, name: str, levels: Sequence[Tensor]) -> list[Tensor]:
        """The levels as expert ``name`` is to see them."""
        if not (torch.is_grad_enabled() and any(level.requires_grad for level in levels)):
            return list(levels)
        return list(_Entrance.apply(self, self.names.index(name), *levels))

    @torch.no_grad()
    def pass_on(self, index: int, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Note the norm of the gradients that expert ``index`` sends, and scale them."""
        there = [g for g in gradients if g is not None]
        if not there:
            return list(gradients)
        # A sum of squares in half precision overflows.
        wide = [torch.promote_types(g.dtype, torch.float32) for g in there]
        of_levels = [
            torch.linalg.vector_norm(g, dtype=dtype).to(self.norms.dtype)
            for g, dtype in zip(there, wide, strict=True)
        ]
        self.norms[index] = torch.linalg.vector_norm(torch.stack(of_levels))
        factor = self.factors()[index]
        return [None if g is None else g * factor.to(g.dtype) for g in gradients]

    def factors(self) -> Tensor:
        """What the gradient of each expert is multiplied with, (E,)."""
        factor = torch.nan_to_num(self.ratio, nan=1.0).reciprocal()
        return factor.clamp(1 / self.limit, self.limit)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the norms of the last step. Called by every rank once a training step."""
        seen = self.norms.isfinite() & (self.norms > 0)
        sums = torch.stack([torch.where(seen, self.norms, 0.0), seen.float()])
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        norms, seen = sums[0] / sums[1].clamp(min=1), sums[1] > 0
        known = torch.nan_to_num(self.ratio, nan=1.0)
        # Where some experts were not seen, the others stand for their own share of the mean.
        unit = (norms * seen).sum() / (known * seen).sum().clamp(min=1e-12)
        latest = norms / unit.clamp(min=1e-30)
        mixed = torch.lerp(latest, known, self.momentum)
        mixed = torch.where(self.ratio.isnan(), latest, mixed)
        self.ratio.copy_(torch.where(seen, mixed, self.ratio))
        self.norms.fill_(torch.nan)

    def monitors(self) -> dict[str, Tensor]:
        """``grad_<name>``: running norm of each expert's gradient over the mean; 1 where unseen."""
        ratio = torch.nan_to_num(self.ratio, nan=1.0)
        return {f"grad_{name}": value for name, value in zip(self.names, ratio, strict=True)}

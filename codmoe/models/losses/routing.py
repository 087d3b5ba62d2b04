"""Losses on the router's decision."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from codmoe.registry import MODELS
from codmoe.structures import RoutingDecision


def mean_over_ranks(x: Tensor) -> Tensor:
    """Mean of ``x`` over all processes, with gradient to each rank's own part."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    return all_reduce(x) / dist.get_world_size()


@MODELS.register_module()
class LoadBalanceLoss(nn.Module):
    """Keeps every expert in use.

    Computed from the softmax over all experts, not from the chosen weights, so that an expert that
    is never chosen still gets gradient; batch means are taken over all ranks.

    Args:
        weight: Factor on the result.
        form: ``"switch"``, E·Σ f_e·P_e with f_e the share of choices and P_e the mean probability
            (Fedus et al., Switch Transformers, JMLR 2022), 1 at perfect balance; or
            ``"importance"``, the squared coefficient of variation of the summed probabilities
            (Shazeer et al., ICLR 2017), 0 at perfect balance.
    """

    def __init__(self, *, weight: float = 0.01, form: str = "switch"):
        super().__init__()
        if form not in ("switch", "importance"):
            raise ValueError(
                f"LoadBalanceLoss: form={form!r} is unknown; use 'switch' or 'importance'"
            )
        self.weight = weight
        self.form = form

    def forward(self, decision: RoutingDecision, expert_iou: Tensor | None = None) -> Tensor:
        """Scalar loss; ``expert_iou`` is not read."""
        mean_probability = mean_over_ranks(decision.probabilities.float().mean(0))
        if self.form == "importance":
            variance = mean_probability.var(unbiased=False)
            return self.weight * variance / mean_probability.mean().square()
        experts = mean_probability.numel()
        # Not those that train_top_k adds, or the share of all would be equal whatever it chooses.
        chosen = F.one_hot(decision.indices[:, : decision.top_k], experts).float().mean((0, 1))
        return self.weight * experts * (mean_over_ranks(chosen) * mean_probability).sum()


@MODELS.register_module()
class RouterZLoss(nn.Module):
    """Keeps router logits small: mean of logsumexp² (Zoph et al., ST-MoE, 2022).

    Args:
        weight: Factor on the result.
    """

    def __init__(self, *, weight: float = 0.001):
        super().__init__()
        self.weight = weight

    def forward(self, decision: RoutingDecision, expert_iou: Tensor | None = None) -> Tensor:
        """Scalar loss; ``expert_iou`` is not read."""
        return self.weight * decision.logits.float().logsumexp(-1).square().mean()


@MODELS.register_module()
class ExpertIoUDistillation(nn.Module):
    """KL(target ‖ p): teaches the router which expert is best on each image.

    The IoUs must come from images that the experts were not trained on: on their own training
    images every expert looks equally good and the target is noise.

    Args:
        weight: Factor on the result.
        tau: Temperature of the target softmax(IoU_e/τ): the difference in IoU that is a factor e of
            probability. Images on which the experts are alike have a flat target.
    """

    needs_all_experts = True

    def __init__(self, *, weight: float = 1.0, tau: float = 0.05):
        super().__init__()
        if tau <= 0:
            raise ValueError(f"ExpertIoUDistillation: tau={tau} must be above 0, 0.05 is usual")
        self.weight = weight
        self.tau = tau

    def forward(self, decision: RoutingDecision, expert_iou: Tensor | None = None) -> Tensor:
        """Scalar loss.

        Args:
            decision: The router's decision on N images.
            expert_iou: IoU of every expert on every image, in [0, 1], (N, E).
        """
        if expert_iou is None:
            raise ValueError(
                "ExpertIoUDistillation needs every expert's output on every image: set "
                "model.train_dispatch='dense'"
            )
        target = torch.softmax(expert_iou.float() / self.tau, dim=-1)
        log_probability = F.log_softmax(decision.logits.float(), dim=-1)
        return self.weight * F.kl_div(log_probability, target, reduction="batchmean")

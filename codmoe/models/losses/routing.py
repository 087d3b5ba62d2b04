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
    """Keeps router logits small: mean of logsumexp² (Zoph et al., ST-MoE, 2022)."""

    def __init__(self, *, weight: float = 0.001):
        super().__init__()
        self.weight = weight

    def forward(self, decision: RoutingDecision, expert_iou: Tensor | None = None) -> Tensor:
        """Scalar loss; ``expert_iou`` is not read."""
        return self.weight * decision.logits.float().logsumexp(-1).square().mean()


def every_iou(expert_iou: Tensor | None, loss: nn.Module) -> Tensor:
    """The IoUs (N, E) in float32.

    Raises:
        ValueError: They are not known, as not every expert was run.
    """
    if expert_iou is None:
        raise ValueError(
            f"{type(loss).__name__} needs every expert's output on every image: set "
            "model.train_dispatch='dense'"
        )
    return expert_iou.float()


@MODELS.register_module()
class ExpertIoUDistillation(nn.Module):
    """KL(target ‖ p): teaches the router which expert is best on each image.

    The IoUs must come from images that the experts were not trained on: on their own training
    images every expert looks equally good and the target is noise.

    Args:
        weight: Factor on the result.
        tau: Temperature: the difference that is a factor e of probability, in IoU for
            ``target="iou"``, in deviations for ``"zscore"``.
        target: ``"iou"``, softmax(IoU_e/τ): images on which the experts are alike have a flat
            target. ``"zscore"``, softmax(z_e/τ) with z_e the IoU less the image's mean over its
            deviation: every image is told as sharply, those with little to tell too.
    """

    needs_all_experts = True

    def __init__(self, *, weight: float = 1.0, tau: float = 0.05, target: str = "iou"):
        super().__init__()
        if tau <= 0:
            raise ValueError(f"ExpertIoUDistillation: tau={tau} must be above 0, 0.05 is usual")
        if target not in ("iou", "zscore"):
            raise ValueError(
                f"ExpertIoUDistillation: target={target!r} is unknown; use 'iou' or 'zscore'"
            )
        self.weight = weight
        self.tau = tau
        self.target = target

    def target_of(self, expert_iou: Tensor) -> Tensor:
        """IoU of every expert on every image (N, E) → the distribution to be learnt, (N, E)."""
        score = expert_iou
        if self.target == "zscore":
            deviation = score.std(1, keepdim=True, unbiased=False).clamp(min=1e-3)
            score = (score - score.mean(1, keepdim=True)) / deviation
        return torch.softmax(score / self.tau, dim=-1)

    def forward(self, decision: RoutingDecision, expert_iou: Tensor | None = None) -> Tensor:
        """Scalar loss.

        Args:
            decision: The router's decision on N images.
            expert_iou: IoU of every expert on every image, in [0, 1], (N, E).
        """
        target = self.target_of(every_iou(expert_iou, self))
        log_probability = F.log_softmax(decision.logits.float(), dim=-1)
        return self.weight * F.kl_div(log_probability, target, reduction="batchmean")


@MODELS.register_module()
class ExpectedRegretLoss(nn.Module):
    """Σ_e p_e·(max IoU − IoU_e): IoU lost to the oracle if one expert were drawn from p.

    What the router is measured by, without a temperature: an image counts by how much there is to
    lose on it. See :class:`ExpertIoUDistillation` for the images that it needs.

    Args:
        weight: Factor on the result; regrets are a few hundredths.
    """

    needs_all_experts = True

    def __init__(self, *, weight: float = 10.0):
        super().__init__()
        self.weight = weight

    def forward(self, decision: RoutingDecision, expert_iou: Tensor | None = None) -> Tensor:
        """Scalar loss; arguments as in :class:`ExpertIoUDistillation`."""
        iou = every_iou(expert_iou, self)
        regret = iou.amax(1, keepdim=True) - iou
        return self.weight * (decision.logits.float().softmax(-1) * regret).sum(1).mean()


@MODELS.register_module()
class ExpertRankingLoss(nn.Module):
    """Logistic loss on each pair of experts: the better one is to have the larger logit.

    Pairs count by the difference of their IoUs (as in RankNet with weighted pairs, Burges, 2010),
    so that experts of equal IoU teach nothing.

    Args:
        weight: Factor on the result; differences are a few hundredths.
    """

    needs_all_experts = True

    def __init__(self, *, weight: float = 10.0):
        super().__init__()
        self.weight = weight

    def forward(self, decision: RoutingDecision, expert_iou: Tensor | None = None) -> Tensor:
        """Scalar loss; arguments as in :class:`ExpertIoUDistillation`."""
        iou, logits = every_iou(expert_iou, self), decision.logits.float()
        better = (iou[:, :, None] - iou[:, None, :]).clamp(min=0)
        ahead = logits[:, :, None] - logits[:, None, :]
        return self.weight * (better * F.softplus(-ahead)).sum((1, 2)).mean()

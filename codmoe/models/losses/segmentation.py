"""Losses on one predicted map against the ground truth."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codmoe.models.layers import resize_to
from codmoe.registry import MODELS


def boundary_weight(target: Tensor, kernel: int = 31) -> Tensor:
    """1 + 5·|avgpool(GT) − GT|: pixels that differ from their surroundings count up to six times.

    Args:
        target: Ground truth in {0, 1}, (N, 1, H, W).
        kernel: Side of the averaging window in pixels, odd.
    """
    # A box filter is separable: 62 reads a pixel instead of 961.
    mean = F.avg_pool2d(target, (kernel, 1), stride=1, padding=(kernel // 2, 0))
    mean = F.avg_pool2d(mean, (1, kernel), stride=1, padding=(0, kernel // 2))
    return 1 + 5 * (mean - target).abs()


@MODELS.register_module()
class StructureLoss(nn.Module):
    """Boundary-weighted BCE plus boundary-weighted IoU (Wei et al., F³Net, AAAI 2020).

    The BCE stays per pixel until it is weighted. Passing the pre-1.0 ``reduce='none'`` of the
    released code averages it first and so cancels the weights.

    Args:
        weight: Factor on the result.
        kernel: Window of :func:`boundary_weight` in pixels.
    """

    def __init__(self, *, weight: float = 1.0, kernel: int = 31):
        super().__init__()
        self.weight = weight
        self.kernel = kernel

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss over images.

        Args:
            logits: (N, 1, h, w); resized bilinearly to the target if the sizes differ.
            target: Ground truth in {0, 1}, (N, 1, H, W).
        """
        # Sums over 200,704 pixels overflow half precision.
        logits, target = resize_to(logits, target).float(), target.float()
        weight = boundary_weight(target, self.kernel)
        bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        bce = (weight * bce).sum((2, 3)) / weight.sum((2, 3))
        probability = logits.sigmoid()
        intersection = (probability * target * weight).sum((2, 3))
        union = ((probability + target) * weight).sum((2, 3))
        iou = 1 - (intersection + 1) / (union - intersection + 1)
        return self.weight * (bce + iou).mean()


@MODELS.register_module()
class UncertaintyAwareLoss(nn.Module):
    """Pushes probabilities away from 1/2: λ(t)·mean(1 − |2p − 1|²), with λ a cosine rising from 0
    to ``weight`` over training (Pang et al., ZoomNet, CVPR 2022).
    """

    def __init__(self, *, weight: float = 1.0):
        super().__init__()
        self.weight = weight

    def forward(self, logits: Tensor, progress: float) -> Tensor:
        """Args:
        logits: (N, 1, h, w).
        progress: Share of training done, in [0, 1].
        """
        ramp = 0.5 * (1 - math.cos(math.pi * min(max(progress, 0.0), 1.0)))
        ambiguity = 1 - (2 * logits.float().sigmoid() - 1).square()
        return self.weight * ramp * ambiguity.mean()


def iou_per_image(logits: Tensor, target: Tensor) -> Tensor:
    """Hard IoU at probability 0.5 of each image, without gradient, (N,); both empty counts as 1.

    Args:
        logits: (N, 1, H, W).
        target: Ground truth in {0, 1}, (N, 1, H, W).
    """
    with torch.no_grad():
        predicted, truth = resize_to(logits, target) > 0, target > 0.5
        intersection = (predicted & truth).sum((1, 2, 3)).float()
        union = (predicted | truth).sum((1, 2, 3)).float()
        return torch.where(union > 0, intersection / union.clamp(min=1), torch.ones_like(union))

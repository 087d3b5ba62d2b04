"""Losses on one predicted map against the ground truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from codmoe.models.layers import resize_map, resize_to
from codmoe.registry import MODELS


def boundary_weight(target: Tensor, kernel: int = 31) -> Tensor:
    """1 + 5·|avgpool(GT) − GT| of a ground truth (N, 1, H, W) in {0, 1}, over windows of ``kernel``
    pixels, odd: pixels that differ from their surroundings count up to six times.
    """
    # A box filter is separable: 62 reads a pixel instead of 961.
    mean = F.avg_pool2d(target, (kernel, 1), stride=1, padding=(kernel // 2, 0))
    mean = F.avg_pool2d(mean, (1, kernel), stride=1, padding=(0, kernel // 2))
    return 1 + 5 * (mean - target).abs()


# Weights of each ground truth that still lives, by window: all experts of a step and the mixture
# are held against one tensor.
_weights_of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def shared_boundary_weight(target: Tensor, kernel: int = 31) -> Tensor:
    """:func:`boundary_weight` in float32, computed once for each ground truth.

    The result is kept as long as ``target`` lives and is computed anew after a change in place.
    """
    if target.is_inference() or target.requires_grad:
        return boundary_weight(target.float(), kernel)  # has no version, or a graph of its own
    kept = _weights_of.setdefault(target, {})
    version, weight = kept.get(kernel, (None, None))
    if version != target._version:
        with torch.no_grad():
            weight = boundary_weight(target.float(), kernel)
        kept[kernel] = (target._version, weight)
    return weight


class WeightedBCEAndIoU(nn.Module):
    """BCE plus 1 − IoU of several maps of the same images, in which pixels have weights.

    A module, so that ``compile.losses`` can have it compiled: dozens of passes over maps at full
    size become a few.
    """

    def forward(self, maps: Sequence[Tensor], target: Tensor, weight: Tensor) -> Tensor:
        """Losses of the maps, (maps,).

        Args:
            maps: Logits, each (N, 1, h_i, w_i).
            target: Ground truth in {0, 1}, (N, 1, H, W).
            weight: Of the pixels, (N, 1, H, W).
        """
        target = target.float()
        # Sums over 200,704 pixels overflow half precision.
        logits = torch.cat([resize_map(logits, target.shape[-2:]) for logits in maps], dim=1)
        bce = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
        bce = (weight * bce).sum((2, 3)) / weight.sum((2, 3))
        weighted = logits.sigmoid() * weight
        intersection = (weighted * target).sum((2, 3))
        union = weighted.sum((2, 3)) + (target * weight).sum((2, 3))
        iou = 1 - (intersection + 1) / (union - intersection + 1)
        return (bce + iou).mean(0)


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
        self.judge = WeightedBCEAndIoU()

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss over images.

        Args:
            logits: (N, 1, h, w); resized bilinearly to the target if the sizes differ.
            target: Ground truth in {0, 1}, (N, 1, H, W).
        """
        return self.of_maps([logits], target)[0]

    def of_maps(self, maps: Sequence[Tensor], target: Tensor) -> list[Tensor]:
        """The loss of each of several maps of the same images, in one pass over all of them: logits
        (N, 1, h_i, w_i) and ground truth (N, 1, H, W) in {0, 1} → one scalar a map.
        """
        judged = self.judge(list(maps), target, shared_boundary_weight(target, self.kernel))
        return list((self.weight * judged).unbind())


@MODELS.register_module()
class SoftIoULoss(nn.Module):
    """1 − IoU of each image with probabilities in place of a mask (Rahman and Wang, ISVC 2016).

    What is measured, made differentiable: every image counts alike, a thin crack as much as a
    horse, and every pixel of it. As ``model.mixture_loss`` it makes the mixture sharper than
    :class:`StructureLoss` does, and its masks no better (projects/earlier_studies.md).

    Args:
        weight: Factor on the result.
    """

    def __init__(self, *, weight: float = 1.0):
        super().__init__()
        self.weight = weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss over images, 0 where truth and map are both empty.

        Args:
            logits: (N, 1, h, w); resized bilinearly to the target if the sizes differ.
            target: Ground truth in {0, 1}, (N, 1, H, W).
        """
        target = target.float()
        probability = resize_to(logits, target).float().sigmoid()
        intersection = (probability * target).sum((1, 2, 3))
        union = (probability + target).sum((1, 2, 3)) - intersection
        return self.weight * (1 - (intersection + 1) / (union + 1)).mean()


@MODELS.register_module()
class UncertaintyAwareLoss(nn.Module):
    """Pushes probabilities away from 1/2: λ(t)·mean(1 − |2p − 1|²), with λ a cosine rising from 0
    to ``weight`` over training (Pang et al., ZoomNet, CVPR 2022).

    Args:
        weight: λ at the end.
        start: Share of the ramp that is done when training begins, in [0, 1]: a later stage goes on
            where the one before ended.
    """

    def __init__(self, *, weight: float = 1.0, start: float = 0.0):
        super().__init__()
        if not 0 <= start <= 1:
            raise ValueError(f"UncertaintyAwareLoss: start={start} must lie in [0, 1]")
        self.weight = weight
        self.start = start

    def forward(self, logits: Tensor, progress: float) -> Tensor:
        """Args:
        logits: (N, 1, h, w).
        progress: Share of training done, in [0, 1].
        """
        done = self.start + (1 - self.start) * min(max(progress, 0.0), 1.0)
        ramp = 0.5 * (1 - math.cos(math.pi * done))
        ambiguity = 1 - (2 * logits.float().sigmoid() - 1).square()
        return self.weight * ramp * ambiguity.mean()


def iou_per_image(logits: Tensor, target: Tensor) -> Tensor:
    """Hard IoU at probability 0.5 of each image, without gradient, (N,): of logits (N, 1, h, w),
    resized to the ground truth (N, 1, H, W) in {0, 1}; both empty counts as 1.
    """
    with torch.no_grad():
        predicted, truth = resize_to(logits, target) > 0, target > 0.5
        intersection = (predicted & truth).sum((1, 2, 3)).float()
        union = (predicted | truth).sum((1, 2, 3)).float()
        return torch.where(union > 0, intersection / union.clamp(min=1), torch.ones_like(union))

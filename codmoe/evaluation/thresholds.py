"""Threshold measures from counts: how many object and background pixels lie above a threshold.

Everything here takes float64 tensors of counts that broadcast against each other, and follows
PySODMetrics where a denominator is zero: the quotient is 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

EPS = float(torch.finfo(torch.float64).eps)
F_BETA2 = 0.3
CURVES = ("Precision", "Recall", "Fm", "Em", "IoU", "Dice")
"""Order of the curves in a stacked tensor."""


def divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 where the denominator is 0."""
    empty = denominator == 0
    return torch.where(empty, 0.0, numerator / torch.where(empty, 1.0, denominator))


def f_measure(precision: Tensor, recall: Tensor, beta2: float = F_BETA2) -> Tensor:
    """F = (1 + β²) P R / (β² P + R); Achanta et al., CVPR 2009, use β² = 0.3."""
    return divide((1 + beta2) * precision * recall, beta2 * precision + recall)


def e_measure(tp: Tensor, fp: Tensor, area: Tensor, size: Tensor) -> Tensor:
    """Enhanced-alignment measure of a binary map; Fan et al., IJCAI 2018.

    Args:
        tp: Object pixels in the map.
        fp: Background pixels in the map.
        area: Object pixels.
        size: All pixels.
    """
    chosen = tp + fp
    map_mean, truth_mean = chosen / size, area / size
    total = torch.zeros_like(chosen)
    # Four kinds of pixels, in each of which map and truth are constant.
    for count, a, b in (
        (tp, 1 - map_mean, 1 - truth_mean),
        (fp, 1 - map_mean, -truth_mean),
        (area - tp, -map_mean, 1 - truth_mean),
        (size - chosen - (area - tp), -map_mean, -truth_mean),
    ):
        alignment = 2 * (a * b) / (a * a + b * b + EPS)
        total = total + (alignment + 1) ** 2 / 4 * count
    total = torch.where(area == 0, size - chosen, torch.where(area == size, chosen, total))
    return total / (size - 1 + EPS)


def threshold_curves(tp: Tensor, fp: Tensor, area: Tensor, size: Tensor) -> Tensor:
    """The measures of :data:`CURVES` for each given count, stacked along a new dimension 1.

    Args:
        tp: Object pixels at or above each threshold, (N, T).
        fp: Background pixels likewise, (N, T).
        area: Object pixels, (N, 1).
        size: All pixels, (N, 1).

    Returns:
        (N, 6, T).
    """
    precision, recall = divide(tp, tp + fp), divide(tp, area)
    values: Mapping[str, Tensor] = {
        "Precision": precision,
        "Recall": recall,
        "Fm": f_measure(precision, recall),
        "Em": e_measure(tp, fp, area, size),
        "IoU": divide(tp, area + fp),
        "Dice": divide(2 * tp, area + tp + fp),
    }
    return torch.stack([values[name] for name in CURVES], dim=1)


def binary_measures(tp: Tensor, fp: Tensor, area: Tensor, size: Tensor) -> dict[str, Tensor]:
    """Measures of one binary map from its counts, of any equal shape.

    ``IoU`` and ``Dice`` are 1 where map and truth are both empty: nothing was there and nothing was
    found. ``FBIoU`` is the mean of the foreground's and the background's IoU (mmsegmentation's mIoU
    of two classes), ``BER`` the balanced error rate 1 - (TPR + TNR)/2, in which the rate of a class
    that the truth does not have counts as 0, as in PySODMetrics.
    """
    both_empty = (area + fp) == 0
    no_background = (size - tp) == 0
    iou = torch.where(both_empty, 1.0, divide(tp, area + fp))
    dice = torch.where(both_empty, 1.0, divide(2 * tp, area + tp + fp))
    true_negative = size - area - fp
    background = torch.where(no_background, 1.0, divide(true_negative, size - tp))
    rates = divide(tp, area) + divide(true_negative, size - area)
    return {"IoU": iou, "Dice": dice, "FBIoU": (iou + background) / 2, "BER": 1 - rates / 2}

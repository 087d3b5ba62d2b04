"""Measures that follow from how often each 8-bit value occurs in each region of the image.

PySODMetrics rounds a map to 8 bits, min-max normalises it and looks at each of its pixels again for
each measure. All pixels of one value and region are alike, so counting them once is enough, and
exact. Two of its answers hang on how numpy rounds the mean of all pixels: in these rare cases
:meth:`HistogramMeasures.finish` asks numpy itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codmoe.evaluation.measures.truth import GroundTruth

LEVELS = 256
THRESHOLD = 0.5
CURVES = ("Precision", "Recall", "Fm", "Em", "IoU", "Dice")
"""Order of the curves in a stacked tensor."""
EPS = float(torch.finfo(torch.float64).eps)
S_ALPHA = 0.5
F_BETA2 = 0.3
# By numpy: dividing a CUDA tensor by a number multiplies by its inverse, which rounds differently.
_UNIT = torch.from_numpy(np.arange(LEVELS) / 255)
_ADAPTIVE = ("adpEm", "adpFm", "adpIoU", "adpDice")


@dataclass
class HistogramMeasures:
    """Results of N maps, on the host but for ``values``.

    Args:
        values: Value of the normalised map at each level, (N, 256).
        curves: :func:`threshold_curves`, (N, 6, 256) float32.
        table: Side by side, (N, 23): measures at the adaptive threshold, and with the pixels
            exactly at it left out (2 × 4; only :meth:`finish` knows which holds where that
            differs); the level exactly at it, or -1; the object-aware part of the S-measure; of
            the quadrants their similarity (4), their share in the image's area (4), and the level
            that fills one on which the truth is constant too, or -1 (4); the S-measure of an image
            whose truth is empty or full, NaN for others.
    """

    values: Tensor
    curves: np.ndarray
    table: np.ndarray

    def finish(self, index: int, levels: Tensor, truth: GroundTruth) -> dict[str, Any]:
        """Measures of one map, whose 8-bit values ``levels``, uint8 on their canvas, are read only
        where numpy's rounding decides.
        """
        row = self.table[index]
        adaptive, tie, objects = row[:8].reshape(2, 4), int(row[8]), row[9]
        regions, shares, flat, whole = row[10:14].copy(), row[14:18], row[18:22], row[22]
        out = 0
        if tie >= 0:
            values = self.values[index].cpu().numpy()
            height, width = truth.shape
            pixels = values[levels.cpu().numpy()[:height, :width].copy()]
            out = int(values[tie] < min(2 * pixels.mean(), 1))
        result: dict[str, Any] = dict(zip(_ADAPTIVE, adaptive[out].tolist(), strict=True))
        for quadrant in np.flatnonzero(flat >= 0).tolist():
            level = float(self.values[index, int(flat[quadrant])])
            regions[quadrant] = _flat_similarity(level, quadrant, truth)
        region = float((regions * shares).sum())
        mixed = max(0.0, S_ALPHA * objects + (1 - S_ALPHA) * region)
        result["Sm"] = float(whole) if np.isfinite(whole) else float(mixed)
        result["curves"] = self.curves[index]
        return result


def _flat_similarity(value: float, quadrant: int, truth: GroundTruth) -> float:
    """1 or 0 for a quadrant on which both map and truth are constant.

    They are equal in structure: 1. PySODMetrics says 0 where the mean of equal numbers, as numpy
    rounds it, is not that number; so the same sum is made here.
    """
    row, column = truth.split
    rows = slice(0, row) if quadrant < 2 else slice(row, None)
    columns = slice(0, column) if quadrant % 2 == 0 else slice(column, None)
    region = np.full(truth.shape, value)[rows, columns]
    return float(np.sum((region - np.mean(region)) ** 2) == 0)


def mean_absolute_error(histogram: Tensor) -> Tensor:
    """|map - truth| averaged over the pixels, (N, 1); arguments of :func:`histogram_measures`."""
    by_truth = histogram.sum(1)
    level = by_truth.sum(1)
    values, _, _ = level_values(level)
    background, foreground = by_truth.double().unbind(1)
    error = (background * values + foreground * (values - 1).abs()).sum(1, keepdim=True)
    return error / level.sum(1, keepdim=True).double()


def histogram_measures(histogram: Tensor) -> HistogramMeasures:
    """Measures of N maps from their counts.

    Args:
        histogram: Pixels by quadrant (in rows from the top left), truth (background, object) and
            level, (N, 4, 2, 256) int64.
    """
    by_truth = histogram.sum(1)
    level = by_truth.sum(1)
    values, low, span = level_values(level)
    size = level.sum(1, keepdim=True).double()
    background, foreground = by_truth.double().unbind(1)
    area = foreground.sum(1, keepdim=True)
    adaptive, tie = _adaptive(by_truth, level, low, span, area, size)
    objects = _objects(background, foreground, values, area, size)
    regions, flat = _regions(histogram.double(), values)
    shares = histogram.sum((2, 3)).double() / size
    mean = (level * values).sum(1, keepdim=True) / size
    nan = torch.full_like(mean, torch.nan)
    whole = torch.where(area == 0, 1 - mean, torch.where(area == size, mean, nan))
    # One copy to the host of all but the curves, and one of these.
    parts = [adaptive.flatten(1), tie, objects, regions, shares, flat, whole]
    curves = _curves(by_truth, values, area, size).float().cpu().numpy()
    return HistogramMeasures(values, curves, torch.cat(parts, dim=1).cpu().numpy())


THRESHOLDS = (np.arange(LEVELS - 1) + 0.5) / 255
"""Those of :func:`iou_by_threshold`, each between two 8-bit values."""
PLATEAU = 0.001
"""Mean IoU that :func:`best_threshold` gives away for a threshold nearer to one half."""


def iou_by_threshold(histogram: Tensor) -> Tensor:
    """IoU of each map, not normalised, at every one of :data:`THRESHOLDS`, (N, 255) float64; 1
    where neither map nor truth has an object. Arguments of :func:`histogram_measures`.
    """
    fp, tp = histogram.sum(1).flip(2).cumsum(2).flip(2)[:, :, 1:].double().unbind(1)
    joint = histogram.sum(1)[:, 1].sum(1, keepdim=True) + fp
    return torch.where(joint == 0, 1.0, divide(tp, joint))


def best_threshold(curves: Sequence[np.ndarray]) -> float:
    """The threshold of the best mean IoU: of those within :data:`PLATEAU` of the best the nearest
    to one half, since a few images do not tell more.

    Args:
        curves: ``by_threshold`` of each image.
    """
    mean = np.mean(curves, axis=0, dtype=np.float64)
    good = THRESHOLDS[mean >= mean.max() - PLATEAU]
    return float(good[np.abs(good - 0.5).argmin()])


def level_values(level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value at each level of the min-max normalised map (N, 256), its lowest level and its range of
    levels (N, 1).

    A constant map is not normalised; then lowest level and range are 0 and 255.
    """
    unit = _UNIT.to(level.device)
    present = level > 0
    low = present.int().argmax(1, keepdim=True)
    high = LEVELS - 1 - present.flip(1).int().argmax(1, keepdim=True)
    keep = high == low
    low, span = torch.where(keep, 0, low), torch.where(keep, 255, high - low)
    # In PySODMetrics' order of operations, so that rounding is the same.
    values = torch.where(keep, unit, (unit - unit[low]) / (unit[high] - unit[low]))
    return values.clamp(0, 1), low, span


def _curves(by_truth: Tensor, values: Tensor, area: Tensor, size: Tensor) -> Tensor:
    # Truncated, not rounded, as PySODMetrics does.
    bins = (values * 255).long()[:, None].expand_as(by_truth)
    binned = torch.zeros_like(by_truth).scatter_add_(2, bins, by_truth)
    fp, tp = binned.flip(2).cumsum(2).double().unbind(1)
    return threshold_curves(tp, fp, area, size)


def _adaptive(
    by_truth: Tensor, level: Tensor, low: Tensor, span: Tensor, area: Tensor, size: Tensor
) -> tuple[Tensor, Tensor]:
    """Measures of the pixels at or above twice the map's mean, and of those above, (N, 2, 4).

    Compared in whole levels, where nothing is rounded: level - low >= 2·sum(level - low)/size.
    """
    steps = torch.arange(LEVELS, device=level.device) - low
    count = size.long()
    twice = 2 * (level * steps).sum(1, keepdim=True)
    capped = twice >= count * span
    least = low + torch.where(capped, span, (twice + count - 1) // count)
    # A pixel at the cap has the value 1 and at zero the value 0, in any rounding.
    exact = ~capped & (twice % count == 0) & (twice > 0) & (level.gather(1, least) > 0)
    starts = torch.cat([least, (least + 1).clamp(max=LEVELS)], dim=1)
    above = torch.cat([by_truth.flip(2).cumsum(2).flip(2), torch.zeros_like(by_truth[..., :1])], 2)
    fp, tp = above.gather(2, starts[:, None].expand(-1, 2, -1)).double().unbind(1)
    precision, recall = divide(tp, tp + fp), divide(tp, area)
    measures = (
        e_measure(tp, fp, area, size),
        f_measure(precision, recall),
        divide(tp, area + fp),
        divide(2 * tp, area + tp + fp),
    )
    return torch.stack(measures, dim=2), torch.where(exact, least, -1).double()


def _mean_and_spread(counts: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number, mean and sum of squared deviations of the pixels counted, each (..., 1)."""
    number = counts.sum(-1, keepdim=True)
    mean = divide((counts * values).sum(-1, keepdim=True), number)
    return number, mean, (counts * (values - mean) ** 2).sum(-1, keepdim=True)


def _objects(
    background: Tensor, foreground: Tensor, values: Tensor, area: Tensor, size: Tensor
) -> Tensor:
    """Object-aware similarity of the S-measure, (N, 1)."""
    score = torch.zeros_like(area)
    share = area / size
    for counts, value, part in ((foreground, values, share), (background, 1 - values, 1 - share)):
        number, mean, squares = _mean_and_spread(counts, value)
        # One pixel has no standard deviation; PySODMetrics takes 0.
        deviation = divide(squares, (number - 1).clamp(min=0)).sqrt()
        score = score + part * (2 * mean / (mean**2 + 1 + deviation + EPS))
    return score


def _regions(histogram: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Structural similarity of each quadrant (N, 4), 0 for one without pixels, and flat levels.

    An empty quadrant has no share in the image. PySODMetrics makes NaN of it, and of the image.
    """
    values = values[:, None]
    background, foreground = histogram.unbind(2)
    counts = background + foreground
    number, mean, squares = _mean_and_spread(counts, values)
    objects = foreground.sum(-1, keepdim=True)
    truth = divide(objects, number)
    less_one = number - 1 + EPS
    deviation = values - mean
    covariance = (foreground * deviation).sum(-1, keepdim=True) * (1 - truth)
    covariance = covariance - (background * deviation).sum(-1, keepdim=True) * truth
    truth_squares = objects * (1 - truth) ** 2 + (number - objects) * truth**2
    one_level = ((counts > 0).sum(-1, keepdim=True) == 1) & (number > 0)
    # Of one value there is no deviation, whatever the mean was rounded to.
    squares, covariance = (torch.where(one_level, 0.0, x) for x in (squares, covariance))
    alpha = 4 * mean * truth * covariance / less_one
    beta = (mean**2 + truth**2) * (squares + truth_squares) / less_one
    score = torch.where(alpha != 0, alpha / (beta + EPS), (beta == 0).double())
    score = torch.where(number > 0, score, 0.0)
    level = counts.argmax(-1, keepdim=True)
    value = values.expand_as(counts).gather(-1, level)
    flat = one_level & (truth_squares == 0) & (value > 0) & (value < 1)
    return score.squeeze(-1), torch.where(flat, level, -1).squeeze(-1).double()


def divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 where the denominator is 0."""
    empty = denominator == 0
    return torch.where(empty, 0.0, numerator / torch.where(empty, 1.0, denominator))


def f_measure(precision: Tensor, recall: Tensor, beta2: float = F_BETA2) -> Tensor:
    """F = (1 + β²) P R / (β² P + R); Achanta et al., CVPR 2009, use β² = 0.3."""
    return divide((1 + beta2) * precision * recall, beta2 * precision + recall)


def e_measure(tp: Tensor, fp: Tensor, area: Tensor, size: Tensor) -> Tensor:
    """Enhanced-alignment measure of a binary map; Fan et al., IJCAI 2018. Its counts are those of
    :func:`threshold_curves`.
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

"""Measures that the field has added since, each computed where it is asked for by name.

They need every pixel's place and cost more than all others together, so none is on by default. The
human correction effort and the camouflage degree are PySODMetrics' own, which is an extra.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

from codmoe.evaluation.measures.histogram import LEVELS, divide, f_measure
from codmoe.evaluation.measures.reference import reference_extra
from codmoe.messages import suggest

EXTRA = ("CM", "CCM", "MSIoU", "MSIoU_curve", "SIMAE", "SIFm", "HCE")
BY_REFERENCE = ("CCM", "HCE")
_EPS = float(np.spacing(1))
_SCALES = 10
_SMALL = 50


def checked_extra(names: Sequence[str] | str) -> tuple[str, ...]:
    """The names, ``"all"`` written out.

    Raises:
        ValueError: There is no such measure.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in (*EXTRA, "all"):
            raise ValueError(f"extra={name!r} is no measure; {suggest(name, [*EXTRA, 'all'])}")
    return EXTRA if "all" in names else tuple(name for name in EXTRA if name in names)


def extra_measures(
    prob: np.ndarray,
    level: np.ndarray,
    truth: np.ndarray,
    names: Sequence[str],
    image: np.ndarray | None = None,
) -> dict[str, Any]:
    """The measures of one map.

    Args:
        prob: The 8-bit map, normalised, (H, W) float64.
        level: The same before, (H, W) uint8.
        truth: Ground truth, (H, W) bool.
        names: Of :data:`EXTRA`.
        image: RGB, (H, W, 3) uint8; only ``CCM`` reads it.

    Returns:
        ``CM``, ``CCM``, ``MSIoU``, ``adpMSIoU``, ``SIMAE``, ``adpSIFm`` and ``HCE``, as asked for,
        and ``extra_curves``: ``SIFm`` (256,) and ``MSIoU`` (257,) by falling and by rising
        threshold.
    """
    found: dict[str, Any] = {}
    curves: dict[str, np.ndarray] = {}
    if "CM" in names:
        found["CM"] = context_measure(prob, truth)
    if "MSIoU" in names or "MSIoU_curve" in names:
        scales = _scales(_edges(truth))
        if "MSIoU" in names:
            least = min(2 * prob.mean(), 1)
            found["MSIoU"] = _multi_scale_iou(prob > 0.5, scales)
            found["adpMSIoU"] = _multi_scale_iou(prob >= least, scales)
        if "MSIoU_curve" in names:
            curves["MSIoU"] = _multi_scale_curve(prob, scales)
    if "SIMAE" in names or "SIFm" in names:
        boxes = object_boxes(truth)
        if "SIMAE" in names:
            found["SIMAE"] = size_invariant_mae(prob, truth, boxes)
        if "SIFm" in names:
            found["adpSIFm"], curves["SIFm"] = size_invariant_f(prob, truth, boxes)
    found |= reference_extra(level, truth, [n for n in names if n in BY_REFERENCE], image)
    return found | ({"extra_curves": curves} if curves else {})


def context_measure(prob: np.ndarray, truth: np.ndarray, alpha: float = 6.0) -> float:
    """Context-measure (Wang et al., arXiv 2512.07076) with β² = 1: of relevance of the map, seen
    through a Gaussian of the object's shape, and completeness of the object."""
    kernel = _shape_kernel(truth, alpha)
    relevance = cv2.filter2D(truth.astype(np.float32), cv2.CV_32F, kernel)
    relevant = float((relevance * prob).sum() / (prob.sum() + _EPS))
    covered = 1 - np.exp(-cv2.filter2D(prob, -1, kernel))
    complete = math.e / (math.e - 1) * covered[truth].sum() / (truth.sum() + _EPS)
    return float(2 * relevant * complete / (relevant + complete + _EPS))


def _shape_kernel(truth: np.ndarray, alpha: float) -> np.ndarray:
    points = np.argwhere(truth)
    covariance, reach = np.diag([0.25, 0.25]), [1, 1]
    if len(points) > 1:
        covariance = np.cov(points, rowvar=False)
        spread = covariance.diagonal().copy()
        spread[spread == 0] = _EPS
        np.fill_diagonal(covariance, spread)
        reach = [round(3 * math.sqrt(alpha**2 * s / spread.sum())) for s in spread]
        covariance *= alpha**2 / spread.sum()
        if np.linalg.det(covariance) <= 0:  # a diagonal line
            covariance += 1e-9 * np.eye(2)
    steps = np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij")
    place = np.stack(steps, axis=-1)
    kernel = np.exp(-0.5 * np.einsum("...i,ij,...j->...", place, np.linalg.inv(covariance), place))
    return kernel / kernel.sum()


def _edges(mask: np.ndarray) -> np.ndarray:
    """Pixels where the Sobel gradient is not zero; outside of the image is background."""
    across, down = (
        cv2.Sobel(mask.view(np.uint8), cv2.CV_16S, *axes, borderType=cv2.BORDER_CONSTANT)
        for axes in ((1, 0), (0, 1))
    )
    return (across != 0) | (down != 0)


def _scales(edges: np.ndarray) -> list[np.ndarray]:
    """Which cells of 1, 2, 4, … 512 pixels an edge passes; they start at the bottom right."""
    scales = [edges]
    for _ in range(_SCALES - 1):
        padded = np.pad(scales[-1], [(side % 2, 0) for side in scales[-1].shape])
        rows = padded[::2] | padded[1::2]
        scales.append(rows[:, ::2] | rows[:, 1::2])
    return scales


def _multi_scale_iou(mask: np.ndarray, truth: Sequence[np.ndarray]) -> float:
    """MSIoU (Ahmadzadeh et al., ICIP 2021): share of the truth's cells that the map's edges pass,
    area under its curve over scales."""
    ratios = [
        (np.count_nonzero(ours & theirs) + 1) / _in_half(int(np.count_nonzero(theirs)))
        for ours, theirs in zip(_scales(_edges(mask)), truth, strict=True)
    ]
    return (sum(ratios) - (ratios[0] + ratios[-1]) / 2) / (_SCALES - 1)


def _in_half(count: int) -> float:
    """A count and one in half precision, as PySODMetrics has it; exact where that overflows."""
    return float(np.float16(count) + np.float16(1)) if count < 65_000 else count + 1.0


def _multi_scale_curve(prob: np.ndarray, truth: Sequence[np.ndarray]) -> np.ndarray:
    level = (prob * 255).astype(np.uint8)  # truncated, as PySODMetrics does
    steps = np.flatnonzero(np.bincount(level.ravel(), minlength=LEVELS))
    curve = np.empty(LEVELS + 1)
    start = 0
    for step in steps.tolist():  # the mask is the same for all thresholds up to a level
        curve[start : step + 1] = _multi_scale_iou(level >= step, truth)
        start = step + 1
    curve[start:] = _multi_scale_iou(np.zeros_like(level, bool), truth)
    return curve


def object_boxes(truth: np.ndarray) -> list[tuple[slice, slice]]:
    """Boxes of the 4-connected objects of 50 pixels or more; of the largest if there is none."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(truth.view(np.uint8), connectivity=4)
    objects = stats[1:]
    areas = objects[:, cv2.CC_STAT_AREA]
    if len(areas):
        objects = objects[areas >= min(_SMALL, areas.max())]
    return [(np.s_[y : y + h], np.s_[x : x + w]) for x, y, w, h, _ in objects.tolist()]


def size_invariant_mae(
    prob: np.ndarray, truth: np.ndarray, boxes: Sequence[tuple[slice, slice]]
) -> float:
    """MAE of the boxes of objects, each of one weight, and of what is outside, weighted by its
    area over that of the boxes (Li et al., ICML 2024)."""
    error = np.abs(prob - truth)
    if not boxes:
        return float(error.mean())
    outside = np.ones(truth.shape, bool)
    for box in boxes:
        outside[box] = False
    area = np.count_nonzero(outside)
    ratio = area / (truth.size - area)
    total = ratio * error[outside].mean() if area else 0.0
    return float((total + sum(error[box].mean() for box in boxes)) / (len(boxes) + ratio))


def size_invariant_f(
    prob: np.ndarray, truth: np.ndarray, boxes: Sequence[tuple[slice, slice]]
) -> tuple[float, np.ndarray]:
    """F at the adaptive threshold, and at 256 falling ones, of the map and the truth cut to each
    object's box, averaged over boxes (Li et al., ICML 2024)."""
    level = (prob * 255).astype(np.uint8)
    counts, areas = [], []
    for box in boxes or [np.s_[:, :]]:
        inside, objects = np.zeros_like(prob), truth[box]
        inside[box] = prob[box]
        least = min(2 * inside.mean(), 1)
        hits = [np.bincount(level[box][o], minlength=LEVELS) for o in (~objects, objects)]
        hits[0][0] += prob.size - objects.size
        chosen = prob[box] >= least
        beside = prob.size - objects.size if least <= 0 else 0
        adaptive = [
            np.count_nonzero(chosen & ~objects) + beside,
            np.count_nonzero(chosen & objects),
        ]
        pairs = zip(hits, adaptive, strict=True)
        counts.append([[*np.cumsum(hit[::-1]), at] for hit, at in pairs])
        areas.append([np.count_nonzero(objects)])
    fp, tp = torch.tensor(np.array(counts), dtype=torch.float64).unbind(1)
    recall = divide(tp, torch.tensor(areas, dtype=torch.float64))
    mean = f_measure(divide(tp, tp + fp), recall).mean(0).numpy()
    return float(mean[-1]), mean[:-1]

"""The two measures that need the place of every pixel: weighted F-measure and boundary IoU."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codmoe.evaluation.measures.truth import (
    BOUNDARY,
    MAX_SQUARED,
    OBJECT,
    REACH,
    GroundTruth,
    boundary_band,
)


def canvas_arrays(
    arrays: Sequence[np.ndarray], shape: Sequence[int], device: torch.device
) -> Tensor:
    """Arrays of different sizes on a canvas of (N, H, W), zeros outside, on ``device``."""
    if len(arrays) == 1 and arrays[0].shape == tuple(shape[1:]):
        return torch.from_numpy(arrays[0]).to(device)[None]
    canvas = np.zeros(tuple(shape), arrays[0].dtype)
    for place, array in zip(canvas, arrays, strict=True):
        place[: array.shape[0], : array.shape[1]] = array
    return torch.from_numpy(canvas).to(device)


def boundary_counts(binary: Tensor, codes: Tensor, truths: Sequence[GroundTruth]) -> Tensor:
    """Pixels common to the boundary bands of map and truth, and pixels in either, (N, 2) float64,
    of masks (N, H, W) bool and ``GroundTruth.codes`` on their canvas.
    """
    band = binary & ~_eroded(binary, [truth.boundary_width for truth in truths])
    truth = (codes & BOUNDARY).bool()
    counts = [(band & truth).sum((1, 2)), (band | truth).sum((1, 2))]
    return torch.stack(counts, dim=1).double()


def _eroded(binary: Tensor, widths: Sequence[int]) -> Tensor:
    """Each mask eroded by a square of its own width, (N, H, W) bool."""
    if len(set(widths)) == 1:
        return erode(binary, widths[0])
    eroded = torch.empty_like(binary)
    for width in set(widths):
        rows = [i for i, w in enumerate(widths) if w == width]
        eroded[rows] = erode(binary[rows], width)
    return eroded


def erode(binary: Tensor, width: int) -> Tensor:
    """Pixels whose (2·width + 1)² neighbourhood is set and inside, (N, H, W) bool."""
    side = 2 * width + 1
    for dim in (1, 2):
        length = binary.shape[dim] - side + 1
        if length < 1:
            return torch.zeros_like(binary)
        # A running sum, so that the cost does not grow with the width.
        ones = F.pad(binary.cumsum(dim, dtype=torch.int32), (1, 0) if dim == 2 else (0, 0, 1, 0))
        whole = ones.narrow(dim, side, length) - ones.narrow(dim, 0, length) == side
        binary = F.pad(whole, (width, width) if dim == 2 else (0, 0, width, width))
    return binary


def _gaussian() -> list[float]:
    """One axis of MATLAB's fspecial('gaussian', 7, 5); the kernel is its outer square."""
    taps = np.exp(-(np.arange(-REACH, REACH + 1) ** 2) / (2 * 5.0**2))
    return (taps / taps.sum()).tolist()


def _importance() -> Tensor:
    """Weight of a background pixel's error by squared distance to the object, float64.

    Of 0 it is 0: that is the object itself, whose errors are summed elsewhere.
    """
    distance = torch.arange(MAX_SQUARED + 1, dtype=torch.float64).sqrt()
    weight = 2 - torch.exp(torch.log(torch.tensor(0.5, dtype=torch.float64)) / 5 * distance)
    weight[0] = 0
    return weight


_TAPS, _IMPORTANCE = _gaussian(), _importance()


def weighted_errors(errors: Tensor, codes: Tensor, truths: Sequence[GroundTruth]) -> Tensor:
    """The two sums of the weighted F-measure (Margolin et al., CVPR 2014), (N, 2) float64.

    Args:
        errors: \\|map - truth\\|, 0 outside the map, (N, H, W) float64.
        codes: ``GroundTruth.codes`` on the canvas.
        truths: The facts of each truth.

    Returns:
        Errors on the object, each lessened to that of its neighbourhood where that is lower, and
        errors on the background, weighted by distance.
    """
    device, importance = errors.device, _IMPORTANCE.to(errors.device)
    squared = canvas_arrays(
        [t.squared_distance.view(np.int16) for t in truths], errors.shape, device
    )
    squared = squared.int().view(-1)
    weight = torch.index_select(importance, 0, squared)
    count = len(errors)
    background = (errors.view(count, 1, -1) @ weight.view(count, -1, 1)).view(count)
    boxes = [truth.box for truth in truths if truth.area]
    if not boxes:
        return torch.stack([torch.zeros_like(background), background], dim=1)

    # The object's box and as much around it as the Gaussian sees, zeros outside the image.
    tops, bottoms, lefts, rights = zip(*boxes, strict=True)
    top, bottom, left, right = min(tops), max(bottoms), min(lefts), max(rights)
    height, width = bottom - top + 2 * REACH, right - left + 2 * REACH
    window = _window(errors, top - REACH, left - REACH, height, width)
    truth = _window(codes & OBJECT, top - REACH, left - REACH, height, width)
    spread = window * truth
    # A background pixel there has the error of the object pixel nearest to it.
    places: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for i, fact in enumerate(truths):
        for kept, flat in zip(places, (fact.nearness.band, fact.nearness.nearest), strict=True):
            row, column = np.divmod(flat, fact.shape[1])
            kept.append((row - top + REACH + i * height) * width + column - left + REACH)
    band, nearest = (torch.from_numpy(np.concatenate(x)).to(device) for x in places)
    spread.view(-1)[band] = window.view(-1)[nearest]
    inner = (slice(None), slice(REACH, -REACH), slice(REACH, -REACH))
    least = torch.minimum(_smooth(spread), window[inner]) * truth[inner]
    return torch.stack([least.sum((1, 2)), background], dim=1)


def _window(values: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """``values[:, top : top + height, left : left + width]``, zeros outside."""
    rows, columns = values.shape[1:]
    over = [max(0, -left), max(0, left + width - columns)]
    over += [max(0, -top), max(0, top + height - rows)]
    inside = values[:, max(0, top) : top + height, max(0, left) : left + width]
    return F.pad(inside, over) if any(over) else inside.contiguous()


def _smooth(values: Tensor) -> Tensor:
    """``values`` under a 7 × 7 Gaussian, where all of it is inside: (N, H - 6, W - 6)."""
    for dim in (1, 2):
        length = values.shape[dim] - 2 * REACH
        total = values.narrow(dim, 0, length) * _TAPS[0]
        for shift, tap in enumerate(_TAPS[1:], 1):
            total.add_(values.narrow(dim, shift, length), alpha=tap)
        values = total
    return values


def sums_by_opencv(
    prob: np.ndarray, levels: np.ndarray, values: np.ndarray, truth: GroundTruth
) -> list[float]:
    """:func:`weighted_errors` and :func:`boundary_counts` of one map on the host.

    Args:
        prob: The map, (H, W).
        levels: Its 8-bit values, (H, W) uint8.
        values: Value at each level, (256,).
        truth: Its ground truth.
    """
    mask = np.greater(prob, 0.5).view(np.uint8)
    ours = boundary_band(mask, truth.boundary_width) * np.uint8(BOUNDARY)
    theirs = truth.codes & BOUNDARY
    counts = [float(np.count_nonzero(ours & theirs)), float(np.count_nonzero(ours | theirs))]
    if not truth.area:
        return [0.0, 0.0, *counts]
    # In float32, whose rounding is below 1e-7 of the sums; rows are added up in float64.
    errors = cv2.LUT(levels, values.astype(np.float32))
    background = np.einsum("ij,ij->i", errors, truth.weight).sum(dtype=np.float64)
    top, bottom, left, right = truth.box
    top, left = max(0, top - REACH), max(0, left - REACH)
    window = np.s_[top : bottom + REACH, left : right + REACH]
    inside = (truth.codes[window] & OBJECT).astype(np.float32)
    error = (1 - errors[window]) * inside
    spread = error.copy()
    (bands, columns), nearest = (np.divmod(flat, truth.shape[1]) for flat in truth.nearness)
    spread[bands - top, columns - left] = error[nearest[0] - top, nearest[1] - left]
    taps = np.array(_TAPS)
    smooth = cv2.sepFilter2D(spread, cv2.CV_32F, taps, taps, borderType=cv2.BORDER_CONSTANT)
    least = np.minimum(smooth, error)
    np.multiply(least, inside, out=least)
    return [float(least.sum(dtype=np.float64)), float(background), *counts]

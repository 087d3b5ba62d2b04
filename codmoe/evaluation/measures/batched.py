"""All measures of many maps at once, on the CPU or a GPU, exact to rounding.

One pass counts pixels by region, truth and 8-bit value; from that histogram follow the
normalisation, MAE, S-measure and every measure at a threshold (:mod:`histogram`).
The weighted F-measure and the boundary IoU need the pixels' places and have a pass of their own
(:mod:`spatial`). Maps of different sizes share a canvas on the GPU; pixels outside a map count
nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from codmoe.evaluation.measures.extra import extra_measures
from codmoe.evaluation.measures.histogram import (
    EPS,
    LEVELS,
    THRESHOLD,
    binary_measures,
    divide,
    histogram_measures,
    iou_by_threshold,
    level_values,
    mean_absolute_error,
)
from codmoe.evaluation.measures.spatial import (
    boundary_counts,
    canvas_arrays,
    sums_by_opencv,
    weighted_errors,
)
from codmoe.evaluation.measures.truth import OBJECT, GroundTruth

REGIONS = 9
"""Four quadrants, each of background and object, and one for pixels outside the map."""
CHUNK_PIXELS = 1 << 23
"""Pixels that share a canvas on a GPU, where each takes about 60 bytes at the peak (0.5 GB)."""


@dataclass
class PixelSums:
    """Sums read off the pixels of N maps; all on their device.

    Args:
        histogram: Pixels by binary value (probability > 0.5), region and level,
            (N, 2, REGIONS, 256) int64.
        bounds: Lowest and highest probability, (N, 2).
        levels: 8-bit values, (N, H, W) uint8, 0 outside a map.
        spatial: Sum of errors missed on the object, of weighted errors on the background, pixels
            common to both boundary bands, and pixels in either: (N, 4) float64; None if not full.
    """

    histogram: Tensor
    bounds: Tensor
    levels: Tensor
    spatial: Tensor | None


def measure_maps(
    probs: Sequence[Tensor],
    truths: Sequence[GroundTruth],
    *,
    full: bool = True,
    chunk_pixels: int | None = None,
    extra: Sequence[str] = (),
    images: Sequence[np.ndarray | None] = (),
) -> list[dict[str, Any]]:
    """Every measure of each map: IoU, Dice, BER and boundary IoU of the probability, at 0.5; the
    field's of the map in 8 bits, min-max normalised, as by PySODMetrics.

    Args:
        probs: Foreground probabilities, (H_i, W_i) floating, all on one device, which does the
            work; copies to the host are a few for a canvas, whatever the number of maps, and one
            more for a map in which numpy's rounding decides.
        truths: The ground truth of each, of the same size.
        full: False leaves out what costs most: S-measure, weighted F, boundary IoU and the curves.
        chunk_pixels: Pixels that share a canvas; by default ``CHUNK_PIXELS`` on a GPU, while on the
            CPU each map is measured alone, by OpenCV.
        extra: Further measures, see :func:`extra_measures`; only where full.
        images: The image of each map, which one of those reads.

    Returns:
        For each map a dictionary with ``IoU``, ``Dice``, ``FBIoU``, ``BER``, ``MAE`` and
        ``counts`` (tp, fp, area, size, and if full common and joint pixels of the boundary bands;
        int64); if not full ``by_threshold`` (:func:`iou_by_threshold`, float32), else ``BIoU``,
        ``Sm``, ``wFm``, ``adpEm``, ``adpFm``, ``adpIoU``, ``adpDice`` and ``curves``, (6, 256)
        float32 in the order of :data:`CURVES` with the threshold falling from 255/255 to 0.

    Raises:
        ValueError: A map is not of its truth's size, or no probability map (logits, NaN).
    """
    for prob, truth in zip(probs, truths, strict=True):
        check_size(tuple(prob.shape), truth.shape)
    if not probs:
        return []
    with torch.no_grad():
        if chunk_pixels is None and not probs[0].is_cuda:
            each = zip(probs, truths, strict=True)
            sums = [_sums_by_opencv(prob, truth, full) for prob, truth in each]
            return _finish(sums, truths, full, extra, images)
        parts = _chunks(probs, CHUNK_PIXELS if chunk_pixels is None else chunk_pixels)
        sums = [_pixel_sums(probs[part], truths[part], full) for part in parts]
        return _finish(sums, truths, full, extra, images)


def check_size(map_shape: tuple[int, ...], truth_shape: tuple[int, ...]) -> None:
    """Raises ValueError unless a map is of its truth's size."""
    if map_shape != truth_shape:
        raise ValueError(
            f"The prediction has shape {map_shape} and the ground truth {truth_shape}; both must "
            "be the same (H, W): resize the prediction to the size of the mask."
        )


def check_range(low: float, high: float) -> None:
    """Raises ValueError unless a map's lowest and highest value are those of probabilities."""
    # A weighted sum of probabilities may leave [0, 1] by a rounding error; NaN fails both tests.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f"The prediction ranges over [{low:.4g}, {high:.4g}], not over [0, 1]; metrics take "
            "probabilities (sigmoid of the logits)."
        )


def _chunks(probs: Sequence[Tensor], pixels: int) -> Iterator[slice]:
    """Consecutive maps whose common canvas holds at most so many pixels, at least one each."""
    start, height, width = 0, 0, 0
    for i, prob in enumerate(probs):
        height, width = max(height, prob.shape[0]), max(width, prob.shape[1])
        if (i + 1 - start) * height * width > pixels and i > start:
            yield slice(start, i)
            start, (height, width) = i, prob.shape
    yield slice(start, len(probs))


def _pixel_sums(probs: Sequence[Tensor], truths: Sequence[GroundTruth], full: bool) -> PixelSums:
    prob = _stacked(probs, truths)
    count, device = len(prob), prob.device
    flat = prob.view(count, -1)
    bounds = torch.stack([flat.amin(1), flat.amax(1)], dim=1)
    levels = prob.clamp(0, 1).mul_(255).round_().to(torch.uint8)
    codes = canvas_arrays([t.codes for t in truths], prob.shape, device)
    binary = prob > THRESHOLD
    region = _regions(codes & OBJECT, truths)
    if full:
        boundary = boundary_counts(binary, codes, truths)
    key = region.add_(binary, alpha=REGIONS).to(torch.int16).mul_(LEVELS).add_(levels)
    key = key.view(count, -1).int()
    bins = 2 * REGIONS * LEVELS
    key += torch.arange(0, count * bins, bins, dtype=torch.int32, device=device)[:, None]
    histogram = torch.bincount(key.view(-1), minlength=count * bins)
    histogram = histogram.view(count, 2, REGIONS, LEVELS)
    spatial = None
    if full:
        values = level_values(histogram[:, :, :-1].sum((1, 2)))[0]
        table = _error_table(values)
        errors = torch.index_select(table.view(-1), 0, key.view(-1)).view(prob.shape)
        spatial = torch.cat([weighted_errors(errors, codes, truths), boundary], dim=1)
    return PixelSums(histogram, bounds, levels, spatial)


def _sums_by_opencv(probs: Tensor, truth: GroundTruth, full: bool) -> PixelSums:
    """:func:`_pixel_sums` of one map on the host: OpenCV counts bytes, and a level tells on which
    side of one half a pixel lies, but for 128, to which exactly one half is rounded too."""
    prob = np.ascontiguousarray(probs.detach().numpy())
    low, high = float(prob.min()), float(prob.max())
    check_range(low, high)
    if prob.dtype == np.float32:
        levels = cv2.convertScaleAbs(prob, alpha=255)
    else:
        levels = np.rint(prob.clip(0, 1) * 255).astype(np.uint8)
    mask = truth.codes & OBJECT
    half = (prob == THRESHOLD).view(np.uint8)
    halves = half.any()
    histogram = np.zeros((2, REGIONS, LEVELS), np.int64)
    (row, column), (height, width) = truth.split, truth.shape
    cuts = [(slice(0, row), slice(row, height)), (slice(0, column), slice(column, width))]
    for quadrant, window in enumerate(product(*cuts)):
        part, inside = levels[window], mask[window]
        if not part.size:
            continue
        counts = np.stack([_counted(part), _counted(part, inside)])
        counts[0] -= counts[1]
        region = slice(2 * quadrant, 2 * quadrant + 2)
        histogram[1, region, 128:] = counts[:, 128:]
        histogram[0, region, :128] = counts[:, :128]
        if halves:
            on = int(np.count_nonzero(half[window] & inside))
            equal = [int(np.count_nonzero(half[window])) - on, on]
            histogram[1, region, 128] -= equal
            histogram[0, region, 128] += equal
    found = torch.from_numpy(histogram)[None]
    spatial = None
    if full:
        values = level_values(found[:, :, :-1].sum((1, 2)))[0][0].numpy()
        spatial = torch.tensor([sums_by_opencv(prob, levels, values, truth)], dtype=torch.float64)
    bounds = torch.tensor([[low, high]], dtype=torch.float64)
    return PixelSums(found, bounds, torch.from_numpy(levels)[None], spatial)


def _counted(levels: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    found = cv2.calcHist([levels], [0], mask, [LEVELS], [0, LEVELS])
    return found.ravel().astype(np.int64)


def _stacked(probs: Sequence[Tensor], truths: Sequence[GroundTruth]) -> Tensor:
    """The maps on one canvas, 0 outside them, (N, H, W) float32 or float64."""
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in probs) else torch.float32
    if len({t.shape for t in truths}) == 1:
        return torch.stack([p.detach().to(dtype) for p in probs])
    height, width = (max(t.shape[axis] for t in truths) for axis in (0, 1))
    canvas = torch.zeros((len(probs), height, width), dtype=dtype, device=probs[0].device)
    for place, prob in zip(canvas, probs, strict=True):
        place[: prob.shape[0], : prob.shape[1]] = prob
    return canvas


def _regions(truth: Tensor, truths: Sequence[GroundTruth]) -> Tensor:
    """Quadrant · 2 + object of each pixel, and 8 outside its map; changes and returns ``truth``.

    Args:
        truth: Object pixels on the canvas, (N, H, W) uint8 in {0, 1}.
    """
    height, width = truth.shape[1:]
    facts = np.array([(*fact.shape, *fact.split) for fact in truths])[:, :, None]
    rows, columns = np.arange(height), np.arange(width)
    steps = (rows >= facts[:, 2]) * 4, (columns >= facts[:, 3]) * 2
    below, beside = (torch.from_numpy(x.astype(np.uint8)).to(truth.device) for x in steps)
    truth += below[:, :, None]
    truth += beside[:, None]
    if (facts[:, 0] < height).any() or (facts[:, 1] < width).any():
        outside = rows >= facts[:, 0], columns >= facts[:, 1]
        below, beside = (torch.from_numpy(x).to(truth.device) for x in outside)
        truth.masked_fill_(below[:, :, None] | beside[:, None], REGIONS - 1)
    return truth


def _error_table(values: Tensor) -> Tensor:
    """|map - truth| at each level, laid out as the histogram is, (N, 2, REGIONS, 256) float64."""
    pair = torch.stack([values, (values - 1).abs()], dim=1)
    outside = torch.zeros_like(values)[:, None]
    regions = torch.cat([pair.repeat(1, 4, 1), outside], dim=1)
    return regions[:, None].repeat(1, 2, 1, 1)


def _finish(
    chunks: Sequence[PixelSums],
    truths: Sequence[GroundTruth],
    full: bool,
    extra: Sequence[str],
    images: Sequence[np.ndarray | None],
) -> list[dict[str, Any]]:
    histogram = torch.cat([chunk.histogram[:, :, :-1] for chunk in chunks])
    bounds = torch.cat([chunk.bounds for chunk in chunks]).double()
    by_binary = histogram.view(len(histogram), 2, 4, 2, LEVELS).sum((2, 4)).double()
    (no_b, no_f), (fp, tp) = ((x[:, :1], x[:, 1:]) for x in by_binary.unbind(1))
    area, size = no_f + tp, no_b + no_f + fp + tp
    counts = [tp, fp, area, size]
    by_region = histogram.sum(1).view(-1, 4, 2, LEVELS)
    scalars = binary_measures(tp, fp, area, size)
    scalars["MAE"] = mean_absolute_error(by_region)
    if full:
        spatial = torch.cat([c.spatial for c in chunks if c.spatial is not None])
        missed, false_positive, common, joint = (x[:, None] for x in spatial.unbind(1))
        scalars["BIoU"] = torch.where(joint == 0, 1.0, divide(common, joint))
        scalars["wFm"] = _weighted_f(missed, false_positive, area)
        counts += [common, joint]
    names = list(scalars)
    table = torch.cat([bounds, *scalars.values(), *counts], dim=1).cpu().numpy()
    field = histogram_measures(by_region) if full else None
    by_threshold = None if full else iou_by_threshold(by_region).float().cpu().numpy()
    levels = [image for chunk in chunks for image in chunk.levels]
    results = []
    for i, (row, truth) in enumerate(zip(table, truths, strict=True)):
        low, high, *rest = row.tolist()
        check_range(low, high)
        result: dict[str, Any] = dict(zip(names, rest, strict=False))
        result["counts"] = np.array(rest[len(names) :], np.int64)
        if by_threshold is not None:
            result["by_threshold"] = by_threshold[i]
        if field is not None:
            result |= field.finish(i, levels[i], truth)
            if extra:
                level = levels[i].cpu().numpy()[: truth.shape[0], : truth.shape[1]]
                image = images[i] if images else None
                prob = field.values[i].cpu().numpy()[level]
                result |= extra_measures(prob, level, truth.mask, extra, image)
        results.append(result)
    return results


def _weighted_f(missed: Tensor, false_positive: Tensor, area: Tensor) -> Tensor:
    """Weighted F-measure with β² = 1, 0 where there is no object; Margolin et al., CVPR 2014."""
    true_positive = (area - missed).clamp(min=0)
    recall = divide(true_positive, area)
    precision = true_positive / (true_positive + false_positive + EPS)
    return 2 * recall * precision / (recall + precision + EPS)

"""The numbers of camouflaged object detection for one image, and their mean over a data set.

Two families stand side by side, and ``CONVENTIONS`` says for each number which one it belongs to:

* the field's table (Sm, wFm, Em, Fm, MAE, mIoU, mDice) rounds the map to 8 bits and then min-max
  normalises *each prediction*, as PySODMetrics does: an image on which the network never exceeds
  0.2 is scored as if it reached 1;
* the headline ``IoU`` and ``Dice``, and ``BIoU``, ``FBIoU`` and ``BER``, binarise the probability
  itself at 0.5, so that they measure the mask a user gets.

docs/evaluation.md defines each with its formula.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codmoe.evaluation.conventions import AGGREGATE_KEYS, FAST_KEYS
from codmoe.evaluation.measures.batched import check_range, check_size, measure_maps
from codmoe.evaluation.measures.extra import checked_extra
from codmoe.evaluation.measures.histogram import (
    CURVES,
    LEVELS,
    THRESHOLD,
    binary_measures,
    f_measure,
)
from codmoe.evaluation.measures.reference import reference_extra, reference_measures
from codmoe.evaluation.measures.truth import TRUTHS, GroundTruth, GroundTruthCache
from codmoe.messages import listed

BACKENDS = ("torch", "pysodmetrics")
_ARRAYS = ("curves", "counts", "extra_curves", "by_threshold")
_MEANS = {"meanEm": "Em", "meanFm": "Fm", "mIoU": "IoU", "mDice": "Dice"}
_MAXIMA = {"maxEm": "Em", "maxFm": "Fm", "maxIoU": "IoU", "maxDice": "Dice"}


def checked_pair(
    prob: np.ndarray | Tensor, gt: np.ndarray | Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """A probability map as float in [0, 1] and its ground truth as bool, both (H, W).

    Raises:
        ValueError: The shapes differ or are not (H, W); ``prob`` is no probability map (logits,
            NaN); ``gt`` holds something other than 0 and 1.
    """
    prob, gt = as_array(prob), checked_mask(gt)
    check_size(prob.shape, gt.shape)
    if prob.dtype not in (np.float32, np.float64):
        prob = prob.astype(np.float32)
    check_range(prob.min(), prob.max())
    return prob.clip(0, 1), gt


def checked_mask(gt: np.ndarray | Tensor) -> np.ndarray:
    """A ground truth as bool, (H, W).

    Raises:
        ValueError: It is not (H, W), has no pixel, or holds something other than 0 and 1.
    """
    gt = as_array(gt)
    if gt.ndim != 2 or not gt.size:
        raise ValueError(f"The ground truth has shape {gt.shape}; it must be (H, W).")
    if gt.dtype != bool:
        mask = gt > 0
        if (mask != gt).any():
            raise ValueError(
                f"The ground truth ranges over [{gt.min()}, {gt.max()}]; it must hold 0 and 1 only "
                "(binarise 0/255 masks first)."
            )
        gt = mask
    return gt


def iou_and_dice(
    prob: np.ndarray | Tensor, gt: np.ndarray | Tensor, threshold: float = THRESHOLD
) -> tuple[float, float]:
    """IoU and Dice of the mask ``prob > threshold``, without normalisation.

    ``IoU = |P & G| / |P | G|``, ``Dice = 2 |P & G| / (|P| + |G|)``; both are 1 where mask and truth
    are empty, since nothing was there and nothing was found.

    Args:
        prob: Foreground probability, (H, W).
        gt: Ground truth in {0, 1}, (H, W).
    """
    values, truth = checked_pair(prob, gt)
    mask = values > threshold
    both = np.count_nonzero(mask & truth)
    total = np.count_nonzero(mask) + np.count_nonzero(truth)
    return (1.0, 1.0) if total == 0 else (both / (total - both), 2 * both / total)


def batch_measures(
    probs: Sequence[np.ndarray | Tensor],
    masks: Sequence[np.ndarray | Tensor],
    *,
    full: bool = True,
    backend: str = "torch",
    extra: Sequence[str] | str = (),
    images: Sequence[np.ndarray | None] = (),
) -> list[dict[str, Any]]:
    """Every measure of each of several maps; see :func:`measure_maps`.

    Args:
        probs: Foreground probabilities at the original resolution, (H_i, W_i), numpy arrays or
            tensors on one device. Where they are is where the work is done.
        masks: Ground truths in {0, 1} of the same sizes.
        full: False computes ``FAST_KEYS`` only (for validation during training); they have the same
            definition, hence the same value, either way. Only then is there ``by_threshold``.
        backend: ``"torch"``, or ``"pysodmetrics"``: the field's measures by PySODMetrics itself,
            some ten times slower, as a cross-check.
        extra: Further measures, of ``EXTRA`` or ``"all"``; see :func:`extra_measures`. Needs full.
        images: The image of each map, (H_i, W_i, 3) uint8 RGB, which ``CCM`` reads.

    Returns:
        A dictionary for each map, for :func:`aggregate`, :func:`mean_curves` and
        :func:`image_scalars`.

    Raises:
        ValueError: See :func:`checked_pair`; or no such backend or measure.
    """
    extra = checked_extra(extra)
    if extra and not full:
        raise ValueError(f"extra={listed(extra)} needs full=True")
    if backend == "pysodmetrics":
        pairs = [checked_pair(p, m) for p, m in zip(probs, masks, strict=True)]
        results = [reference_measures(prob, gt, full=full) for prob, gt in pairs]
        for i, (prob, gt) in enumerate(pairs):
            level = np.round(prob * 255).astype(np.uint8)
            results[i] |= reference_extra(level, gt, extra, images[i] if images else None)
    elif backend == "torch":
        maps = [_as_float(p) for p in probs]
        on_gpu = bool(maps) and maps[0].is_cuda
        results = measure_maps(
            maps, find_truths(masks, full, on_gpu=on_gpu), full=full, extra=extra, images=images
        )
    else:
        raise ValueError(f"backend={backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    if full:
        return results
    kept = (*FAST_KEYS, "by_threshold")
    return [{key: result[key] for key in kept if key in result} for result in results]


def image_measures(
    prob: np.ndarray | Tensor,
    gt: np.ndarray | Tensor,
    *,
    full: bool = True,
    backend: str = "torch",
    extra: Sequence[str] | str = (),
    image: np.ndarray | None = None,
) -> dict[str, Any]:
    """:func:`batch_measures` of one map."""
    options: dict[str, Any] = dict(full=full, backend=backend, extra=extra, images=[image])
    return batch_measures([prob], [gt], **options)[0]


def aggregate(images: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The row of a results table from the measures of its images.

    Mean and maximum over thresholds are taken of the mean curve, as PySODMetrics and the field do:
    one threshold serves the whole data set. ``*_pooled`` are taken of the pixels of all images
    together, so that large objects weigh more.

    Args:
        images: Results of :func:`batch_measures`, all full or all fast.

    Returns:
        ``AGGREGATE_KEYS``, with those of ``EXTRA_KEYS`` that were asked for; or ``FAST_KEYS`` and
        ``n`` if the measures are fast ones.

    Raises:
        ValueError: ``images`` is empty or mixes full and fast measures.
    """
    if not images:
        raise ValueError("There is no image to average over.")
    if any(image.keys() != images[0].keys() for image in images):
        raise ValueError("Full and fast measures cannot be averaged together; use one `full=`.")
    scalars = [key for key in images[0] if key not in _ARRAYS]
    table = np.array([[image[key] for key in scalars] for image in images], np.float64)
    row: dict[str, float] = dict(zip(scalars, table.mean(0).tolist(), strict=True))
    if "curves" in images[0]:
        curves = _mean_curve(images)
        row |= {key: float(curves[name].mean()) for key, name in _MEANS.items()}
        row |= {key: float(curves[name].max()) for key, name in _MAXIMA.items()}
        precision, recall = (torch.from_numpy(curves[name]) for name in ("Precision", "Recall"))
        of_means = f_measure(precision, recall)
        row |= {"meanFm_PR": float(of_means.mean()), "maxFm_PR": float(of_means.max())}
        row |= _pooled(images)
    for name in images[0].get("extra_curves", ()):
        curve = np.mean([image["extra_curves"][name] for image in images], axis=0)
        row |= {f"mean{name}": float(curve.mean()), f"max{name}": float(curve.max())}
    row["n"] = len(images)
    return {key: row[key] for key in AGGREGATE_KEYS if key in row}


def mean_curves(images: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Mean of each threshold curve over images, ``threshold`` first, falling from 1 to 0; 256 each.

    The threshold is applied to the 8-bit, normalised map: value >= threshold.
    """
    thresholds = np.arange(LEVELS)[::-1] / (LEVELS - 1)
    curves = {name: np.round(values, 6) for name, values in _mean_curve(images).items()}
    return {name: values.tolist() for name, values in {"threshold": thresholds, **curves}.items()}


def image_scalars(measures: Mapping[str, Any]) -> dict[str, float]:
    """One image's measures without curves: what a table's row says about a single image.

    The maxima over thresholds are left out: they are a data set's, at its one best threshold. So
    are pooled measures, which are of a data set too.
    """
    row = {key: value for key, value in measures.items() if key not in _ARRAYS}
    if "curves" in measures:
        for key, name in _MEANS.items():
            row[key] = float(measures["curves"][CURVES.index(name)].mean(dtype=np.float64))
    for name, curve in measures.get("extra_curves", {}).items():
        row[f"mean{name}"] = float(curve.mean())
    return {key: row[key] for key in AGGREGATE_KEYS if key in row}


def uniform_probability(expert_probs: Mapping[str, np.ndarray | Tensor]) -> Tensor:
    """The mean of all experts' probabilities: the ensemble without a router, (H, W)."""
    return torch.stack([_as_float(prob) for prob in expert_probs.values()]).mean(0)


def best_expert(ious: Mapping[str, float]) -> str:
    """The oracle's choice: the expert with the highest IoU, the first of equals."""
    return max(ious, key=ious.__getitem__)


def as_array(values: np.ndarray | Tensor) -> np.ndarray:
    """A tensor of any device and type as a numpy array; arrays pass."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16.
        return (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def find_truths(
    masks: Sequence[np.ndarray | Tensor],
    full: bool = True,
    cache: GroundTruthCache = TRUTHS,
    on_gpu: bool = False,
) -> list[GroundTruth]:
    """The facts of each mask, kept ones or found now, each once and by as many threads as torch
    may use.

    Args:
        masks: In {0, 1}, (H_i, W_i); the same object may stand several times.
        full: Also their distances, which only the full measures need.
        cache: Where they are kept.
        on_gpu: Whether the maps are there.
    """

    def find(mask: np.ndarray | Tensor) -> GroundTruth:
        truth = cache(checked_mask(mask))
        if full:
            truth.nearness, truth.squared_distance if on_gpu else truth.weight  # noqa: B018
        return truth

    different = {id(mask): mask for mask in masks}
    threads = min(torch.get_num_threads(), len(different))
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(find, different.values()))
    else:
        found = [find(mask) for mask in different.values()]
    by_id = dict(zip(different, found, strict=True))
    return [by_id[id(mask)] for mask in masks]


def _as_float(prob: np.ndarray | Tensor) -> Tensor:
    if not isinstance(prob, Tensor):
        prob = np.asarray(prob)
        if prob.dtype not in (np.float16, np.float32, np.float64):
            prob = prob.astype(np.float32)
        # torch takes neither negative strides nor arrays that may not be written.
        writeable = prob.flags.writeable and min(prob.strides, default=0) >= 0
        prob = torch.from_numpy(prob if writeable else prob.copy())
    if prob.device.type not in ("cpu", "cuda"):
        prob = prob.cpu()  # others have no float64
    return prob if prob.dtype in (torch.float32, torch.float64) else prob.float()


def _mean_curve(images: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    total = np.zeros((len(CURVES), LEVELS))
    for image in images:
        total += image["curves"]
    return dict(zip(CURVES, total / len(images), strict=True))


def _pooled(images: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    counts = np.array([image["counts"] for image in images], np.float64)
    error = sum(image["MAE"] * size for image, size in zip(images, counts[:, 3], strict=True))
    total = torch.from_numpy(counts.sum(0))
    pooled = {key: float(value) for key, value in binary_measures(*total[:4]).items()}
    common, joint = total[4:].tolist()
    pooled |= {"BIoU": common / joint if joint else 1.0, "MAE": error / float(total[3])}
    return {f"{key}_pooled": value for key, value in pooled.items()}

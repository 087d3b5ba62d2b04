"""The numbers of camouflaged object detection for one image, and their mean over a data set.

Two families stand side by side, and ``CONVENTIONS`` says for each number which one it belongs to:

* the field's table (Sm, wFm, Em, Fm, MAE, mIoU, mDice) comes from PySODMetrics, which rounds the
  map to 8 bits and then min-max normalises *each prediction*: an image on which the network never
  exceeds 0.2 is scored as if it reached 1;
* the headline ``IoU`` and ``Dice`` binarise the probability itself at 0.5, so that they measure the
  mask a user gets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

THRESHOLD = 0.5
FAST_KEYS = ("IoU", "Dice", "MAE")
AGGREGATE_KEYS = (
    *("Sm", "wFm", "meanEm", "adpEm", "maxEm", "meanFm", "adpFm", "maxFm", "MAE"),
    *("IoU", "Dice", "mIoU", "mDice", "maxIoU", "n"),
)
LOWER_IS_BETTER = frozenset({"MAE"})

_SOD = (
    "PySODMetrics on the 8-bit map, min-max normalised per image; averaged over images; original "
    "resolution"
)
_OWN = (
    "probability > 0.5, not normalised; averaged over images (both empty: 1); original resolution"
)
_ADAPTIVE = "threshold min(1, 2·mean of the map)"
_CURVE = "256 thresholds"
CONVENTIONS: dict[str, str] = {
    "Sm": f"S-measure, α 0.5; {_SOD}",
    "wFm": f"weighted F, β² 1; {_SOD}",
    "meanEm": f"E, mean over {_CURVE}; {_SOD}",
    "adpEm": f"E, {_ADAPTIVE}; {_SOD}",
    "maxEm": f"E, maximum over {_CURVE}; {_SOD}",
    "meanFm": f"F, β² 0.3, mean over {_CURVE}; {_SOD}",
    "adpFm": f"F, β² 0.3, {_ADAPTIVE}; {_SOD}",
    "maxFm": f"F, β² 0.3, maximum over {_CURVE}; {_SOD}",
    "MAE": f"mean absolute error, lower is better; {_SOD}",
    "IoU": _OWN,
    "Dice": _OWN,
    "mIoU": f"PraNet's, mean over {_CURVE}; {_SOD}",
    "mDice": f"PraNet's, mean over {_CURVE}; {_SOD}",
    "maxIoU": f"maximum over {_CURVE}; {_SOD}",
    "n": "number of images",
}


def checked_pair(
    prob: np.ndarray | Tensor, gt: np.ndarray | Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """A probability map as float in [0, 1] and its ground truth as bool, both (H, W).

    Raises:
        ValueError: The shapes differ or are not (H, W); ``prob`` is no probability map (logits,
            NaN); ``gt`` holds something other than 0 and 1.
    """
    prob, gt = _as_array(prob), _as_array(gt)
    if prob.shape != gt.shape or prob.ndim != 2:
        raise ValueError(
            f"The prediction has shape {prob.shape} and the ground truth {gt.shape}; both must be "
            "the same (H, W): resize the prediction to the size of the mask."
        )
    if prob.dtype not in (np.float32, np.float64):
        prob = prob.astype(np.float32)
    low, high = prob.min(), prob.max()
    # A weighted sum of probabilities may leave [0, 1] by a rounding error; NaN fails both tests.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f"The prediction ranges over [{low:.4g}, {high:.4g}], not over [0, 1]; metrics take "
            "probabilities (sigmoid of the logits)."
        )
    if gt.dtype != bool:
        if not np.isin((gt.min(), gt.max()), (0, 1)).all():
            raise ValueError(
                f"The ground truth ranges over [{gt.min()}, {gt.max()}]; it must hold 0 and 1 only "
                "(binarise 0/255 masks first)."
            )
        gt = gt > 0
    return prob.clip(0, 1), gt


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
    prob, gt = checked_pair(prob, gt)
    return _overlap(prob > threshold, gt)


def image_measures(
    prob: np.ndarray | Tensor, gt: np.ndarray | Tensor, *, full: bool = True
) -> dict[str, float | np.ndarray]:
    """Every measure of one image.

    PySODMetrics' own conventions hold for its part, also where they surprise: on an empty ground
    truth wFm and the F, IoU and Dice curves are 0, and a constant map is not normalised.

    Papers: S-measure (Fan et al., ICCV 2017), E-measure (Fan et al., IJCAI 2018), weighted
    F-measure (Margolin et al., CVPR 2014), F-measure (Achanta et al., CVPR 2009), mean Dice and IoU
    over thresholds (PraNet, Fan et al., MICCAI 2020).

    Args:
        prob: Foreground probability at the original resolution, (H, W).
        gt: Ground truth in {0, 1}, (H, W).
        full: False computes ``IoU``, ``Dice`` and ``MAE`` only (for validation during training);
            they have the same definition, hence the same value, either way.

    Returns:
        ``IoU``, ``Dice``, ``MAE`` and, if full, ``Sm``, ``wFm``, ``adpEm``, ``adpFm`` as floats;
        ``Em_curve``, ``Fm_curve``, ``IoU_curve``, ``Dice_curve``, each (256,) float32 with the
        threshold falling from 255/255 to 0.

    Raises:
        ValueError: See :func:`checked_pair`.
    """
    prob, gt = checked_pair(prob, gt)
    iou, dice = _overlap(prob > THRESHOLD, gt)
    # PySODMetrics' normalisation, done once here instead of once in each of its classes.
    level = np.round(prob * 255).astype(np.uint8) / 255
    low, high = level.min(), level.max()
    if high > low:
        level = (level - low) / (high - low)
    measures: dict[str, float | np.ndarray] = {
        "IoU": iou,
        "Dice": dice,
        "MAE": float(np.abs(level - gt).mean()),
    }
    if not full:
        return measures

    # Imported here: it brings in scikit-image and scikit-learn, a second nobody else should pay.
    import py_sod_metrics as sod

    curves = sod.FmeasureV2(
        {
            "fm": sod.FmeasureHandler(with_dynamic=True, with_adaptive=True, beta=0.3),
            "iou": sod.IOUHandler(with_dynamic=True, with_adaptive=False),
            "dice": sod.DICEHandler(with_dynamic=True, with_adaptive=False),
        }
    )
    steps = (sod.Smeasure(), sod.WeightedFmeasure(), sod.Emeasure(), curves)
    for step in steps:
        step.step(level, gt, normalize=False)
    sm, wfm, em = (step.get_results() for step in steps[:3])
    results = curves.get_results()
    return measures | {
        "Sm": float(sm["sm"]),
        "wFm": float(wfm["wfm"]),
        "adpEm": float(em["em"]["adp"]),
        "adpFm": float(results["fm"]["adaptive"]),
        "Em_curve": em["em"]["curve"].astype(np.float32),
        "Fm_curve": results["fm"]["dynamic"].astype(np.float32),
        "IoU_curve": results["iou"]["dynamic"].astype(np.float32),
        "Dice_curve": results["dice"]["dynamic"].astype(np.float32),
    }


def aggregate(images: Sequence[Mapping[str, float | np.ndarray]]) -> dict[str, float]:
    """The row of a results table from the measures of its images.

    Mean and maximum over thresholds are taken of the mean curve, as PySODMetrics and the field do:
    one threshold serves the whole data set.

    Args:
        images: Results of :func:`image_measures`, all full or all fast.

    Returns:
        ``AGGREGATE_KEYS``, or ``FAST_KEYS`` and ``n`` if the measures are fast ones.

    Raises:
        ValueError: ``images`` is empty or mixes full and fast measures.
    """
    if not images:
        raise ValueError("There is no image to average over.")
    if any(image.keys() != images[0].keys() for image in images):
        raise ValueError("Full and fast measures cannot be averaged together; use one `full=`.")
    values = {key: _mean([image[key] for image in images]) for key in images[0]}
    row = _summary(values)
    if "Em_curve" in values:
        row["maxEm"] = float(values["Em_curve"].max())
        row["maxFm"] = float(values["Fm_curve"].max())
        row["maxIoU"] = float(values["IoU_curve"].max())
    row["n"] = len(images)
    return {key: row[key] for key in AGGREGATE_KEYS if key in row}


def image_scalars(measures: Mapping[str, float | np.ndarray]) -> dict[str, float]:
    """One image's measures without curves: what a table's row says about a single image.

    The maxima over thresholds are left out: they are a data set's, at its one best threshold.
    """
    row = _summary(measures)
    return {key: row[key] for key in AGGREGATE_KEYS if key in row}


def uniform_probability(expert_probs: Mapping[str, np.ndarray | Tensor]) -> np.ndarray:
    """The mean of all experts' probabilities: the ensemble without a router, (H, W)."""
    return np.mean([_as_array(prob) for prob in expert_probs.values()], axis=0)


def best_expert(ious: Mapping[str, float]) -> str:
    """The oracle's choice: the expert with the highest IoU, the first of equals."""
    return max(ious, key=ious.__getitem__)


def _as_array(values: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16.
        return (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _overlap(mask: np.ndarray, gt: np.ndarray) -> tuple[float, float]:
    both = np.count_nonzero(mask & gt)
    total = np.count_nonzero(mask) + np.count_nonzero(gt)
    return (1.0, 1.0) if total == 0 else (both / (total - both), 2 * both / total)


def _mean(values: list[float | np.ndarray]) -> float | np.ndarray:
    mean = np.mean(values, axis=0, dtype=np.float64)
    return mean if mean.ndim else float(mean)


def _summary(values: Mapping[str, float | np.ndarray]) -> dict[str, float]:
    row = {key: value for key, value in values.items() if not key.endswith("_curve")}
    for key, curve in {"meanEm": "Em", "meanFm": "Fm", "mIoU": "IoU", "mDice": "Dice"}.items():
        if f"{curve}_curve" in values:
            row[key] = float(np.mean(values[f"{curve}_curve"], dtype=np.float64))
    return row

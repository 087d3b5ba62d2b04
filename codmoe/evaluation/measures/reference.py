"""The same measures by PySODMetrics, an optional extra, to check ours against the field's tool."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from codmoe.evaluation.measures.histogram import CURVES, THRESHOLD
from codmoe.evaluation.measures.truth import BOUNDARY_RATIO, boundary_band


def pysodmetrics() -> ModuleType:
    """The package of the reference.

    Raises:
        ValueError: It is not installed.
    """
    try:
        return importlib.import_module("py_sod_metrics")
    except ModuleNotFoundError as error:
        raise ValueError(
            "backend='pysodmetrics' needs PySODMetrics: pip install 'codmoe[pysodmetrics]'"
        ) from error


def reference_measures(prob: np.ndarray, gt: np.ndarray, *, full: bool = True) -> dict[str, Any]:
    """Measures of one map, with the keys of :func:`measure_maps`.

    ``Sm``, ``wFm``, ``MAE``, ``BER``, the adaptive measures and all curves are PySODMetrics' own
    figures. It has no boundary IoU and calls two empty masks different, so ``IoU``, ``Dice``,
    ``FBIoU`` and ``BIoU`` are counted here, by numpy.

    Args:
        prob: Foreground probability in [0, 1], (H, W) float.
        gt: Ground truth, (H, W) bool.
        full: False computes ``IoU``, ``Dice``, ``FBIoU``, ``BER`` and ``MAE`` only.

    Raises:
        ValueError: PySODMetrics is not installed.
    """
    sod = pysodmetrics()
    level, mask = np.round(prob * 255).astype(np.uint8), gt.astype(np.uint8) * 255
    plain = sod.FmeasureV2({"ber": sod.BERHandler(False, False, with_binary=True)})
    plain.step(prob, gt, normalize=False)
    mae = sod.MAE()
    mae.step(level, mask)
    measures = _overlaps(prob > THRESHOLD, gt)
    measures["BER"] = float(plain.get_results()["ber"]["binary"])
    measures["MAE"] = float(mae.get_results()["mae"])
    if not full:
        return measures

    handlers = {
        "Precision": sod.PrecisionHandler(True, False),
        "Recall": sod.RecallHandler(True, False),
        "Fm": sod.FmeasureHandler(True, True, beta=0.3),
        "IoU": sod.IOUHandler(True, True),
        "Dice": sod.DICEHandler(True, True),
    }
    steps = (sod.Smeasure(), sod.WeightedFmeasure(), sod.Emeasure(), sod.FmeasureV2(handlers))
    for step in steps:
        step.step(level, mask)
    sm, wfm, em, results = (step.get_results() for step in steps)
    curves = {name: results[name]["dynamic"] for name in handlers} | {"Em": em["em"]["curve"]}
    return measures | {
        "BIoU": _boundary(prob > THRESHOLD, gt, measures),
        "Sm": float(sm["sm"]),
        "wFm": float(wfm["wfm"]),
        "adpEm": float(em["em"]["adp"]),
        "adpFm": float(results["Fm"]["adaptive"]),
        "adpIoU": float(results["IoU"]["adaptive"]),
        "adpDice": float(results["Dice"]["adaptive"]),
        "curves": np.stack([curves[name] for name in CURVES]).astype(np.float32),
    }


def _overlaps(mask: np.ndarray, gt: np.ndarray) -> dict[str, Any]:
    def iou(a: np.ndarray, b: np.ndarray) -> float:
        union = np.count_nonzero(a | b)
        return np.count_nonzero(a & b) / union if union else 1.0

    tp, fp, area = (int(np.count_nonzero(x)) for x in (mask & gt, mask & ~gt, gt))
    return {
        "IoU": iou(mask, gt),
        "Dice": 2 * tp / (tp + fp + area) if fp + area else 1.0,
        "FBIoU": (iou(mask, gt) + iou(~mask, ~gt)) / 2,
        "counts": np.array([tp, fp, area, gt.size, 0, 0], np.int64),
    }


def _boundary(mask: np.ndarray, gt: np.ndarray, measures: dict[str, Any]) -> float:
    width = max(1, round(BOUNDARY_RATIO * float(np.hypot(*gt.shape))))
    ours, theirs = (boundary_band(x.astype(np.uint8), width).astype(bool) for x in (mask, gt))
    common, joint = np.count_nonzero(ours & theirs), np.count_nonzero(ours | theirs)
    measures["counts"][4:] = common, joint
    return common / joint if joint else 1.0


def reference_extra(
    level: np.ndarray, gt: np.ndarray, names: Sequence[str], image: np.ndarray | None = None
) -> dict[str, Any]:
    """What :func:`extra_measures` returns for these names, by PySODMetrics.

    Raises:
        ValueError: PySODMetrics is not installed, or ``CCM`` is asked for without an image.
    """
    if not names:
        return {}
    sod, mask = pysodmetrics(), gt.astype(np.uint8) * 255
    fm = {"f": sod.FmeasureHandler(True, True, beta=0.3)}
    makers: dict[str, Callable[[], Any]] = {
        "CM": sod.ContextMeasure,
        "CCM": sod.CamouflageContextMeasure,
        "MSIoU": lambda: sod.MSIoU(False, True, with_binary=True),
        "MSIoU_curve": lambda: sod.MSIoU(True, False),
        "SIMAE": sod.SizeInvarianceMAE,
        "SIFm": lambda: sod.SizeInvarianceFmeasureV2(fm),
        "HCE": sod.HumanCorrectionEffortMeasure,
    }
    found: dict[str, Any] = {}
    curves: dict[str, np.ndarray] = {}
    for name in names:
        measure = makers[name]()
        if name == "CCM":
            if image is None or image.shape != (*gt.shape, 3):
                raise ValueError(
                    "extra='CCM' reads the image at the size of its mask, and there is none: "
                    "samples name it by `img_path`, codmoe eval by --images"
                )
            measure.step(level, mask, img=image)
        else:
            measure.step(level, mask)
        results = measure.get_results()
        if name == "MSIoU":
            found |= {"MSIoU": float(results["binary"]), "adpMSIoU": float(results["adaptive"])}
        elif name == "MSIoU_curve":
            curves["MSIoU"] = results["dynamic"]
        elif name == "SIFm":
            found["adpSIFm"] = float(results["f"]["adaptive"])
            curves["SIFm"] = np.mean(results["f"]["dynamic"][0], axis=0)
        else:
            found[name] = float(next(iter(results.values())))
    return found | ({"extra_curves": curves} if curves else {})

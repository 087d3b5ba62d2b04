"""The names of all numbers in a results table, and what each of them means."""

from __future__ import annotations

MIXTURE, UNIFORM, ORACLE = "mixture", "uniform", "oracle"
COMBINED = (UNIFORM, ORACLE, MIXTURE)
"""Sources that combine experts; any other name in a result is an expert's."""
FAST_KEYS = ("IoU", "Dice", "MAE")
EXTRA_KEYS = (
    *("CM", "CCM", "MSIoU", "adpMSIoU", "meanMSIoU", "maxMSIoU"),
    *("SIMAE", "adpSIFm", "meanSIFm", "maxSIFm", "HCE"),
)
"""Of measures that are asked for by name."""
AGGREGATE_KEYS = (
    *("Sm", "wFm", "meanEm", "adpEm", "maxEm", "meanFm", "adpFm", "maxFm", "MAE"),
    *("IoU", "Dice", "mIoU", "mDice", "maxIoU", "maxDice", "adpIoU", "adpDice"),
    *("BIoU", "FBIoU", "BER", "meanFm_PR", "maxFm_PR"),
    *EXTRA_KEYS,
    *("IoU_pooled", "Dice_pooled", "BIoU_pooled", "FBIoU_pooled", "BER_pooled", "MAE_pooled"),
    "n",
)
LOWER_IS_BETTER = frozenset({"MAE", "BER", "MAE_pooled", "BER_pooled", "SIMAE", "HCE"})

_FIELD = "8-bit map, min-max normalised per image (as PySODMetrics)"
_MASK = "probability > 0.5, not normalised"
_EACH = "averaged over images; original resolution"
_ALL = "over the pixels of all images together; original resolution"
_ADAPTIVE = "threshold min(1, 2·mean of the map)"
_CURVE = "256 thresholds"


def _of(what: str, how: str, over: str = _EACH) -> str:
    return f"{what}; {how}; {over}"


_EMPTY = "1 where map and truth are both empty"
CONVENTIONS: dict[str, str] = {
    "Sm": _of("S-measure, α 0.5", _FIELD),
    "wFm": _of("weighted F, β² 1", _FIELD),
    "meanEm": _of(f"E, mean over {_CURVE}", _FIELD),
    "adpEm": _of(f"E, {_ADAPTIVE}", _FIELD),
    "maxEm": _of(f"E, maximum over {_CURVE} of the mean curve", _FIELD),
    "meanFm": _of(f"F, β² 0.3, mean over {_CURVE}", _FIELD),
    "adpFm": _of(f"F, β² 0.3, {_ADAPTIVE}", _FIELD),
    "maxFm": _of(f"F, β² 0.3, maximum over {_CURVE} of the mean curve", _FIELD),
    "MAE": _of("mean absolute error, lower is better", _FIELD),
    "IoU": _of(_EMPTY, _MASK),
    "Dice": _of(_EMPTY, _MASK),
    "mIoU": _of(f"PraNet's, mean over {_CURVE}", _FIELD),
    "mDice": _of(f"PraNet's, mean over {_CURVE}", _FIELD),
    "maxIoU": _of(f"maximum over {_CURVE} of the mean curve", _FIELD),
    "maxDice": _of(f"maximum over {_CURVE} of the mean curve", _FIELD),
    "adpIoU": _of(_ADAPTIVE, _FIELD),
    "adpDice": _of(_ADAPTIVE, _FIELD),
    "BIoU": _of("boundary IoU, band of 2 % of the diagonal", _MASK),
    "FBIoU": _of("mean of object's and background's IoU", _MASK),
    "BER": _of("balanced error rate, lower is better", _MASK),
    "meanFm_PR": _of(f"F of the mean precision and recall curves, mean over {_CURVE}", _FIELD),
    "maxFm_PR": _of(f"F of the mean precision and recall curves, maximum over {_CURVE}", _FIELD),
    "CM": _of("context measure, β² 1", _FIELD),
    "CCM": _of("camouflage context measure, β² 1.2, reads the image", _FIELD),
    "MSIoU": _of("multi-scale IoU of edges, map > 0.5", _FIELD),
    "adpMSIoU": _of(f"multi-scale IoU of edges, {_ADAPTIVE}", _FIELD),
    "meanMSIoU": _of("multi-scale IoU of edges, mean over 257 thresholds", _FIELD),
    "maxMSIoU": _of("multi-scale IoU of edges, maximum over 257 thresholds", _FIELD),
    "SIMAE": _of("size-invariant mean absolute error, lower is better", _FIELD),
    "adpSIFm": _of(f"size-invariant F, β² 0.3, {_ADAPTIVE} of each object's box", _FIELD),
    "meanSIFm": _of(f"size-invariant F, β² 0.3, mean over {_CURVE}", _FIELD),
    "maxSIFm": _of(f"size-invariant F, β² 0.3, maximum over {_CURVE} of the mean curve", _FIELD),
    "HCE": _of("human correction effort, points to set, lower is better", _FIELD),
    "IoU_pooled": _of("IoU", _MASK, _ALL),
    "Dice_pooled": _of("Dice", _MASK, _ALL),
    "BIoU_pooled": _of("boundary IoU, band of 2 % of the diagonal", _MASK, _ALL),
    "FBIoU_pooled": _of("mmsegmentation's mIoU of two classes", _MASK, _ALL),
    "BER_pooled": _of("balanced error rate, lower is better", _MASK, _ALL),
    "MAE_pooled": _of("mean absolute error, lower is better", _FIELD, _ALL),
    "n": "number of images",
}
"""One line for each key: what; how the map is made a mask; averaged over what; resolution."""

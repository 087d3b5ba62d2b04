"""The measures of camouflaged object detection, exact and batched, on the CPU or a GPU.

:mod:`per_image` is what others use: the measures of maps and their mean over a data set.
:mod:`batched` computes them from what depends on the truth alone (:mod:`truth`), on counts of
pixels (:mod:`histogram`) and on their places (:mod:`spatial`); :mod:`extra` holds those that cost
more and are asked for by name. :mod:`reference` has PySODMetrics
compute the same.
"""

from codmoe.evaluation.measures.batched import measure_maps
from codmoe.evaluation.measures.extra import EXTRA, checked_extra, extra_measures
from codmoe.evaluation.measures.histogram import CURVES, THRESHOLD, best_threshold
from codmoe.evaluation.measures.per_image import (
    BACKENDS,
    aggregate,
    as_array,
    batch_measures,
    best_expert,
    checked_mask,
    find_truths,
    image_measures,
    image_scalars,
    iou_and_dice,
    mean_curves,
    uniform_probability,
)
from codmoe.evaluation.measures.truth import TRUTHS, GroundTruthCache, ground_truth

__all__ = [
    "BACKENDS",
    "CURVES",
    "EXTRA",
    "THRESHOLD",
    "TRUTHS",
    "GroundTruthCache",
    "aggregate",
    "as_array",
    "batch_measures",
    "best_expert",
    "best_threshold",
    "checked_extra",
    "checked_mask",
    "extra_measures",
    "find_truths",
    "ground_truth",
    "image_measures",
    "image_scalars",
    "iou_and_dice",
    "mean_curves",
    "measure_maps",
    "uniform_probability",
]

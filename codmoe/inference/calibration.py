"""The threshold of masks, chosen on images whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from codmoe.datasets.layouts import find_pairs
from codmoe.datasets.reading import read_mask
from codmoe.evaluation.measures import batch_measures, best_threshold
from codmoe.inference.inferencer import Inferencer


def calibrate(inferencer: Inferencer, images: str | Path, masks: str | Path) -> dict[str, Any]:
    """The threshold of the best mean IoU, see :func:`best_threshold`.

    Choose it on images that the figures of a test are not taken from.

    Args:
        inferencer: The model and how it is used.
        images: Folder of images.
        masks: Folder of their masks, of equal stems.

    Returns:
        ``threshold``; mean ``IoU`` at it, and at one half as ``IoU_at_half``; ``images``, their
        number.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: Images and masks do not pair.
    """
    pairs, curves, halves = find_pairs(images, masks), [], []
    found = inferencer.stream([pair.image for pair in pairs], return_routing=False)
    for pair, prediction in zip(pairs, found, strict=True):
        truth = read_mask(str(pair.mask)).pixels
        (measures,) = batch_measures([prediction.probability], [truth], full=False)
        curves.append(measures["by_threshold"])
        halves.append(measures["IoU"])
    threshold = best_threshold(curves)
    at = round(threshold * 255 - 0.5)
    return dict(
        threshold=threshold,
        IoU=float(np.mean([curve[at] for curve in curves])),
        IoU_at_half=float(np.mean(halves)),
        images=len(pairs),
    )

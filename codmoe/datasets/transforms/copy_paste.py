"""Pastes objects of other samples onto a sample."""

from __future__ import annotations

import math
from typing import Protocol

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from codmoe.datasets.reading import UnreadableFile
from codmoe.datasets.transforms.ranges import check_pair, check_range
from codmoe.registry import TRANSFORMS

TRIES = 10


class SamplePool(Protocol):
    """Interface of the data set, in ``results["pool"]``, for transforms that need other samples."""

    def __len__(self) -> int:
        """Number of samples."""

    def read_sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 RGB and mask (H, W) uint8 in {0, 1}, before any transform."""


@TRANSFORMS.register_module()
class CopyPaste(BaseTransform):
    """Pastes the object of another sample of the same data set onto this one.

    It comes before ``RandomWarp``. The truth at original resolution (``gt_mask``) is dropped from
    a sample that was pasted on, as it is no longer true: this is for training alone.

    Paper: Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance
    Segmentation", CVPR 2021; here one object, with a soft rim and colours drawn to the background.

    Args:
        prob: Share of the samples pasted on.
        scale: Range of the object's size, of its size relative to its own image.
        match: How far the object's mean colour is drawn to that of what it covers, in [0, 1]. At 0
            objects stand out as a collage does, and a network can learn to find collages.
        feather: Width of the blended rim in pixels.
        max_overlap: Largest share of this sample's own object that may be covered. After ten places
            that cover more, nothing is pasted.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        prob: float = 0.3,
        scale: tuple[float, float] = (0.5, 1.2),
        match: float = 0.7,
        feather: float = 2.0,
        max_overlap: float = 0.3,
    ) -> None:
        check_range("CopyPaste", prob=prob, match=match, max_overlap=max_overlap)
        check_range("CopyPaste", 0, math.inf, feather=feather)
        self.scale = check_pair("CopyPaste", "scale", scale)
        self.prob, self.match = prob, match
        self.feather, self.max_overlap = feather, max_overlap

    def transform(self, results: dict) -> dict:
        """Changes ``img`` and ``gt_seg_map`` together.

        Raises:
            ValueError: The data set does not offer its samples.
        """
        if np.random.rand() >= self.prob:
            return results
        pool: SamplePool | None = results.get("pool")
        if pool is None:
            raise ValueError(
                "CopyPaste finds no other samples: the data set must put itself into "
                "results['pool'] and have read_sample(index)"
            )
        try:
            other = pool.read_sample(np.random.randint(len(pool)))
        except UnreadableFile:
            return results  # counted and reported when it is drawn itself; this one is sound
        cut = self._cut(*other, results["img"].shape[:2])
        if cut is None:
            return results
        donor, alpha = cut
        place = self._place(alpha, results["gt_seg_map"])
        if place is None:
            return results
        image, mask = results["img"].copy(), results["gt_seg_map"].copy()
        window = image[place].astype(np.float32)
        weight = alpha[..., None]
        drawn = ((window - donor) * weight).sum((0, 1)) / weight.sum()
        image[place] = np.clip(
            np.rint(window + weight * (donor + self.match * drawn - window)), 0, 255
        )
        mask[place] |= alpha > 0.5
        results.update(img=image, gt_seg_map=mask)
        results.pop("gt_mask", None)
        return results

    def _cut(
        self, image: np.ndarray, mask: np.ndarray, shape: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The object (h, w, 3) and its share of each pixel (h, w), no larger than ``shape``."""
        x, y, width, height = cv2.boundingRect(mask)
        if not width:
            return None
        rows, cols = slice(y, y + height), slice(x, x + width)
        factor = math.exp(np.random.uniform(*np.log(self.scale)))
        factor *= math.sqrt(shape[0] * shape[1] / mask.size)
        factor = min(factor, shape[0] / height, shape[1] / width)
        size = max(int(width * factor), 1), max(int(height * factor), 1)
        method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        donor = cv2.resize(image[rows, cols], size, interpolation=method).astype(np.float32)
        alpha = cv2.resize(mask[rows, cols].astype(np.float32), size, interpolation=method)
        if self.feather:
            # Zero beyond the box: the rim of an object that fills its box is blended too.
            sigma = self.feather / 2
            alpha = cv2.GaussianBlur(alpha, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
            # From the outline inwards: outside it lies the other image's background.
            alpha = np.clip(2 * alpha - 1, 0, 1)
        if np.random.rand() < 0.5:
            donor, alpha = donor[:, ::-1], alpha[:, ::-1]
        return (donor, alpha) if (alpha > 0.5).any() else None

    def _place(self, alpha: np.ndarray, mask: np.ndarray) -> tuple[slice, slice] | None:
        (height, width), own = alpha.shape, max(int(mask.sum()), 1)
        for _ in range(TRIES):
            y = np.random.randint(mask.shape[0] - height + 1)
            x = np.random.randint(mask.shape[1] - width + 1)
            place = slice(y, y + height), slice(x, x + width)
            if mask[place][alpha > 0.5].sum() <= self.max_overlap * own:
                return place
        return None

"""Loads a pair of files as the keys that transforms work on."""

from __future__ import annotations

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from codmoe.datasets.reading import read_image, read_pair
from codmoe.registry import TRANSFORMS


def pair_results(image: np.ndarray, mask: np.ndarray | None) -> dict:
    """The keys that transforms work on; ``gt_seg_map`` is a copy: ``gt_mask`` must stay true.

    A mask of another size is the truth at that size; the one to be transformed is the image's.
    """
    results = {"img": image, "ori_shape": image.shape[:2], "img_shape": image.shape[:2]}
    if mask is not None:
        results.update(gt_mask=mask, gt_seg_map=mask.copy(), ori_shape=mask.shape)
        if mask.shape != image.shape[:2]:
            size = image.shape[1::-1]
            results["gt_seg_map"] = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    return results


@TRANSFORMS.register_module()
class LoadCODPair(BaseTransform):
    """Loads ``img_path`` and any ``mask_path``; a sample that has ``img`` passes through.

    A mask a few pixels larger or smaller than its image is taken where ``any_size`` is true.
    """

    def transform(self, results: dict) -> dict:
        """Adds ``img``, ``gt_seg_map``, ``gt_mask``, ``ori_shape`` and ``img_shape``."""
        if results.get("img") is None:
            image, mask = results["img_path"], results.get("mask_path")
            any_size = results.get("any_size", False)
            pair = read_pair(image, mask, any_size=any_size) if mask else (read_image(image), None)
            results.update(pair_results(*pair))
        return results

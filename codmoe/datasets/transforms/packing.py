"""Packs a sample's arrays into tensors for the network."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform

from codmoe.datasets.transforms.colour import contiguous
from codmoe.registry import TRANSFORMS
from codmoe.structures import CODDataSample

META_KEYS = ("img_path", "mask_path", "stem", "dataset", "ori_shape", "img_shape", "kind")


@TRANSFORMS.register_module()
class PackCODInputs(BaseTransform):
    """Packs a sample into ``dict(inputs=(3, H, W) uint8, data_samples=CODDataSample)``.

    Args:
        keep_original: Also pack ``gt_mask``, (H0, W0), which metrics are computed against.
    """

    def __init__(self, keep_original: bool = False) -> None:
        self.keep_original = keep_original

    def transform(self, results: dict) -> dict:
        """Packs copies, so that a cached or flipped (negatively strided) array does no harm."""
        image = contiguous(results["img"])
        planes = np.empty((image.shape[2], *image.shape[:2]), np.uint8)
        # Several times faster than numpy's copy of a transposed view.
        cv2.split(image, list(planes))
        sample = CODDataSample(
            metainfo={key: results[key] for key in META_KEYS if results.get(key) is not None}
        )
        if results.get("gt_seg_map") is not None:
            sample.target = _tensor(results["gt_seg_map"][None])
        if self.keep_original and results.get("gt_mask") is not None:
            sample.gt_mask = _tensor(results["gt_mask"])
        return {"inputs": torch.from_numpy(planes), "data_samples": sample}


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.uint8, order="C", copy=True))

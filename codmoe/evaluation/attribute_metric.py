"""Attributes of every test image, gathered beside the measures, so that results can be broken
down by them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np

from codmoe.evaluation.attributes import image_attributes
from codmoe.evaluation.cod_metric import (
    NO_MASK,
    PerImageMetric,
    as_mapping,
    identity,
    required,
    unique_stems,
)
from codmoe.evaluation.measures import as_array
from codmoe.registry import METRICS


@METRICS.register_module()
class AttributeMetric(PerImageMetric):
    """:func:`~codmoe.evaluation.attributes.image_attributes` of each image; logs nothing.

    ``table[dataset][stem]`` holds them, under the stems of ``CODMetric.table``, with ``kind`` where
    the data set tells one (synthetic images do). It is filled on rank 0 and empty elsewhere. Shape
    is that of the original mask; contrast is that of the network's input, brought to its size.

    Args:
        collect_device: ``"cpu"`` gathers through a shared folder, ``"gpu"`` through the network.
        prefix: Without effect; every metric of mmengine takes one.
    """

    def __init__(self, collect_device: str = "cpu", prefix: str | None = None):
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.table: dict[str, dict[str, dict[str, Any]]] = {}

    def process(self, data_batch: Any, data_samples: Iterable[Any]) -> None:
        """Keeps one record per image.

        Raises:
            ValueError: A sample has no ground truth.
        """
        inputs = (data_batch or {}).get("inputs")
        for i, sample in enumerate(map(as_mapping, data_samples)):
            mask = as_array(required(sample, "gt_mask", NO_MASK)).astype(np.uint8)
            image = None if inputs is None else _at_size(as_array(inputs[i]), mask.shape)
            record: dict[str, Any] = identity(sample)
            record["attributes"] = image_attributes(image, mask)
            if sample.get("kind") is not None:
                record["attributes"]["kind"] = str(sample["kind"])
            self.results.append(record)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Fills ``table``; there is nothing to log."""
        self.check_count(results)
        self.table = {}
        for dataset in dict.fromkeys(record["dataset"] for record in results):
            records = [record for record in results if record["dataset"] == dataset]
            stems = unique_stems(records)
            attributes = [record["attributes"] for record in records]
            self.table[dataset] = dict(zip(stems, attributes, strict=True))
        return {}


def _at_size(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Network input (3, h, w) uint8 as a picture of the mask's size, (H, W, 3)."""
    picture = np.ascontiguousarray(image.transpose(1, 2, 0))
    if picture.shape[:2] == size:
        return picture
    shrinks = picture.shape[0] > size[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(picture, size[::-1], interpolation=method)

"""Collates samples into batches, of one size or of a size drawn anew each time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS
from torch.utils.data import default_collate


@FUNCTIONS.register_module()
def stack_collate(batch: Sequence[dict]) -> dict[str, Any]:
    """Stacks images, and ground truths at network resolution, while still in the worker.

    Every tensor that a worker hands over costs the training process a file descriptor, a connection
    and a mapping; of mmengine's ``pseudo_collate`` there are two for each image, of this two for
    each batch. Images of unlike sizes stay a list, and the preprocessor says what is wrong.

    Args:
        batch: Packed samples.

    Returns:
        ``inputs`` (N, 3, H, W); ``data_samples``, a list, without their ``target``; and
        ``targets`` (N, 1, H, W), if all samples have one.
    """
    images, samples = ([item[key] for item in batch] for key in ("inputs", "data_samples"))
    if len({image.shape for image in images}) > 1:
        return pseudo_collate(batch)
    result = dict(inputs=default_collate(images), data_samples=samples)
    if all("target" in sample for sample in samples):
        # Copies, as a data set may hand out one sample twice.
        result["data_samples"] = samples = [sample.clone() for sample in samples]
        result["targets"] = default_collate([sample.pop("target") for sample in samples])
    return result


@FUNCTIONS.register_module()
def multiscale_collate(
    batch: Sequence[dict], *, sizes: Sequence[int], divisor: int = 32
) -> dict[str, Any]:
    """Resizes all images of a batch to one side, drawn anew for every batch.

    ``train_dataloader = dict(collate_fn=dict(type="multiscale_collate", sizes=(352, 448, 544)))``,
    PraNet's 0.75, 1 and 1.25 of 448 in multiples of 32. One side for the whole batch, as a batch is
    one tensor; another side on another rank does no harm. Of the pixels it interpolates a second
    time, so let the pipeline end at the largest of the sizes.

    Args:
        batch: Packed samples, their images square and of one size.
        sizes: Sides in pixels, drawn with equal chance.
        divisor: What the backbone needs sides to be multiples of: 32, or a ViT's patch (14).

    Returns:
        As :func:`stack_collate`; ground truths and ``img_shape`` go along with the images.

    Raises:
        ValueError: A size is no multiple of ``divisor``, or there are none.
    """
    if isinstance(sizes, int):
        raise ValueError(f"multiscale_collate: sizes={sizes}; give several, such as (352, 448)")
    wrong = [size for size in sizes if size < 1 or size % divisor]
    if wrong or not sizes:
        below = [size // divisor * divisor or divisor for size in wrong]
        raise ValueError(
            f"multiscale_collate: sizes={tuple(sizes)} must be multiples of divisor={divisor}"
            + (f"; near {wrong} lie {below}" if wrong else "")
        )
    side = int(sizes[np.random.randint(len(sizes))])
    resized = []
    for item in batch:
        image, sample = item["inputs"], item["data_samples"]
        if image.shape[-2:] != (side, side):
            smaller = side < image.shape[-1]
            image = F.interpolate(image[None], (side, side), mode="bilinear", antialias=smaller)[0]
            sample = sample.clone()
            if "target" in sample:
                target = F.interpolate(sample.target[None], (side, side), mode="nearest-exact")
                sample.target = target[0]
            sample.set_metainfo(dict(img_shape=(side, side)))
        resized.append(dict(item, inputs=image, data_samples=sample))
    return stack_collate(resized)

"""From samples to a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS


@FUNCTIONS.register_module()
def multiscale_collate(
    batch: Sequence[dict], *, sizes: Sequence[int], divisor: int = 32
) -> dict[str, list]:
    """Bring all images of a batch to one side, drawn anew for every batch.

    ``train_dataloader = dict(collate_fn=dict(type="multiscale_collate", sizes=(352, 448, 544)))``,
    PraNet's 0.75, 1 and 1.25 of 448 in multiples of 32. One side for the whole batch, as a batch is
    one tensor; another side on another rank does no harm. Of the pixels it interpolates a second
    time, so let the pipeline end at the largest of the sizes.

    Args:
        batch: Packed samples, their images square and of one size.
        sizes: Sides in pixels, drawn with equal chance.
        divisor: What the backbone needs sides to be multiples of: 32, or a ViT's patch (14).

    Returns:
        ``inputs`` and ``data_samples``, both lists, with ``target`` and ``img_shape`` resized too.

    Raises:
        ValueError: A size is no multiple of ``divisor``, or there are none.
    """
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
    return pseudo_collate(resized)

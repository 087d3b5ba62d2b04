"""Transforms between files and network input.

The keys that transforms share: ``img`` (H, W, 3) uint8 RGB; ``gt_seg_map`` (H, W) uint8 in {0, 1},
transformed along with it; ``gt_mask`` (H0, W0), the truth at the original resolution, never
transformed; ``ori_shape`` and ``img_shape``; ``pool``, the data set, for transforms that need other
samples. But for the last they are those of ``mmcv.transforms``, whose ``Resize`` and ``RandomFlip``
therefore work here as they are. Random numbers come from numpy's global generator, which training
seeds for each sample (:mod:`codmoe.datasets.streams`).
"""

from codmoe.datasets.transforms.colour import RandomBlur, RandomColour, RandomJPEG
from codmoe.datasets.transforms.copy_paste import CopyPaste, SamplePool
from codmoe.datasets.transforms.geometry import RandomWarp
from codmoe.datasets.transforms.loading import LoadCODPair, pair_results
from codmoe.datasets.transforms.packing import META_KEYS, PackCODInputs

__all__ = [
    "META_KEYS",
    "CopyPaste",
    "LoadCODPair",
    "PackCODInputs",
    "RandomBlur",
    "RandomColour",
    "RandomJPEG",
    "RandomWarp",
    "SamplePool",
    "pair_results",
]

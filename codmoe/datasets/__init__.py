"""Data sets of image/mask pairs, synthetic data, and the transforms between files and network."""

from codmoe.datasets.cache import SampleCache
from codmoe.datasets.cod import COD10K, CODBenchmark, CODDataset, DatasetGroup, TolerantDataset
from codmoe.datasets.collate import multiscale_collate, stack_collate
from codmoe.datasets.integrity import check_pairs
from codmoe.datasets.layouts import Pair, find_folders, find_pairs
from codmoe.datasets.reading import UnreadableFile
from codmoe.datasets.splits import split_indices
from codmoe.datasets.streams import DrawSampler
from codmoe.datasets.synthetic import CompositeCamouflage, SyntheticCamouflage
from codmoe.datasets.transforms import (
    CopyPaste,
    LoadCODPair,
    PackCODInputs,
    RandomBlur,
    RandomColour,
    RandomJPEG,
    RandomWarp,
)
from codmoe.datasets.views import FixedViews

__all__ = [
    "COD10K",
    "CODBenchmark",
    "CODDataset",
    "CompositeCamouflage",
    "CopyPaste",
    "DatasetGroup",
    "DrawSampler",
    "FixedViews",
    "LoadCODPair",
    "PackCODInputs",
    "Pair",
    "RandomBlur",
    "RandomColour",
    "RandomJPEG",
    "RandomWarp",
    "SampleCache",
    "SyntheticCamouflage",
    "TolerantDataset",
    "UnreadableFile",
    "check_pairs",
    "find_folders",
    "find_pairs",
    "multiscale_collate",
    "split_indices",
    "stack_collate",
]

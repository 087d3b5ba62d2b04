"""Datasets of image/mask pairs, synthetic data, and the transforms between files and network."""

from codmoe.datasets import synthetic as synthetic  # registers its datasets
from codmoe.datasets.benchmarks import COD10K, CODBenchmark
from codmoe.datasets.cod import CODDataset
from codmoe.datasets.group import DatasetGroup
from codmoe.datasets.integrity import UnreadableFile
from codmoe.datasets.layouts import Pair, check_pairs, find_folders, find_pairs
from codmoe.datasets.splits import split_indices
from codmoe.datasets.tolerant import TolerantDataset
from codmoe.datasets.transforms import LoadCODPair, PackCODInputs, RandomColour, RandomWarp

__all__ = [
    "COD10K",
    "CODBenchmark",
    "CODDataset",
    "DatasetGroup",
    "LoadCODPair",
    "PackCODInputs",
    "Pair",
    "RandomColour",
    "RandomWarp",
    "TolerantDataset",
    "UnreadableFile",
    "check_pairs",
    "find_folders",
    "find_pairs",
    "split_indices",
]

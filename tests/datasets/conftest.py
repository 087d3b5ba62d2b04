"""Fixtures of the data set tests; a conftest here also lets subfolders import `damage`."""

import pytest
from folders import add, cod10k_v3


@pytest.fixture
def polyp(tmp_path):
    """Twenty image/mask pairs named 0 to 19 in ``TrainDataset/{images,masks}``."""
    return add(tmp_path / "TrainDataset", "images", "masks", [str(i) for i in range(20)])


@pytest.fixture
def cod10k(tmp_path):
    return cod10k_v3(tmp_path / "COD10K-v3")


@pytest.fixture
def pair(tmp_path):
    """Twelve healthy images of 60 x 80, named 00 to 11."""
    return add(tmp_path / "set", "images", "masks", [f"{i:02d}" for i in range(12)], (60, 80))

"""Datasets end to end, under names."""

import pytest
from folders import add, cod10k_v3

from codmoe.datasets import DatasetGroup
from codmoe.registry import DATASETS

PIPELINE = [{"type": "LoadCODPair"}, {"type": "PackCODInputs", "keep_original": True}]


@pytest.fixture
def polyp(tmp_path):
    return add(tmp_path / "TrainDataset", "images", "masks", [str(i) for i in range(20)]).parent


@pytest.fixture
def cod10k(tmp_path):
    return cod10k_v3(tmp_path / "COD10K-v3", others=2)


def test_group_names_its_samples_and_drops_none(polyp, cod10k):
    common = {"type": "CODDataset", "pipeline": PIPELINE}
    group = DATASETS.build(
        {
            "type": "DatasetGroup",
            "datasets": {
                "polyp": dict(common, data_root=str(polyp / "TrainDataset")),
                "gone": None,
                "crabs": dict(common, type="COD10K", data_root=str(cod10k), subset="Test"),
            },
        }
    )
    assert len(group) == 23 and group.names == ("polyp", "crabs")
    assert [group[i]["data_samples"].dataset for i in (0, 19, 20, -1)] == [
        "polyp",
        "polyp",
        "crabs",
        "crabs",
    ]
    assert group.get_data_info(20)["dataset"] == "crabs"
    with pytest.raises(IndexError):
        group[23]


def test_group_mistakes(polyp):
    with pytest.raises(ValueError, match=r"names no dataset"):
        DatasetGroup({"a": None})
    with pytest.raises(ValueError, match=r"it must be \{name: config\}"):
        DatasetGroup([])
    with pytest.raises(FileNotFoundError, match=r"datasets\.a: data_root: "):
        DatasetGroup({"a": {"type": "CODDataset", "data_root": str(polyp / "no")}})
    with pytest.raises(ValueError, match=r"datasets\.a: CODDataset takes no argument 'mask_dri'"):
        DatasetGroup({"a": {"type": "CODDataset", "data_root": str(polyp), "mask_dri": "x"}})


def test_a_cache_for_all_entries_that_name_none(polyp, cod10k):
    entry = dict(type="COD10K", data_root=str(cod10k), pipeline=PIPELINE)
    group = DatasetGroup(dict(a=entry, b=dict(entry, cache=False)), cache=True)
    kept, plain = group.datasets
    path = kept.get_data_info(0)["img_path"]
    assert kept._cache.results(path)["img"].shape == (24, 32, 3) and plain._cache is None
    assert (group[0]["inputs"] == group[len(kept)]["inputs"]).all()

"""CODDataset on miniature folders."""

import cv2
import numpy as np
import pytest
from folders import add

from codmoe.datasets import CODDataset

PIPELINE = [{"type": "LoadCODPair"}, {"type": "PackCODInputs", "keep_original": True}]


@pytest.fixture
def polyp(tmp_path):
    return add(tmp_path / "TrainDataset", "images", "masks", [str(i) for i in range(20)]).parent


def test_finds_layout_and_describes_samples(polyp):
    data = CODDataset(data_root=str(polyp), split_dir="TrainDataset")
    info = data.get_data_info(0)
    assert len(data) == 20 and data.name == "TrainDataset"
    assert info["stem"] == "0" and info["dataset"] == "TrainDataset"
    assert info["img_path"].endswith("images/0.jpg") and info["mask_path"].endswith("masks/0.png")
    assert len(CODDataset(polyp / "TrainDataset", indices=3)) == 3


def test_folders_by_hand(polyp):
    root = polyp / "TrainDataset"
    (root / "masks").rename(root / "truth")
    with pytest.raises(FileNotFoundError, match=r"no known pair"):
        CODDataset(root)
    assert len(CODDataset(root, image_dir="images", mask_dir="truth")) == 20
    with pytest.raises(ValueError, match=r"mask_dir is not given"):
        CODDataset(root, image_dir="images")
    with pytest.raises(FileNotFoundError, match=r"mask_dir: .*'images', 'truth'"):
        CODDataset(root, image_dir="images", mask_dir="masks")


@pytest.mark.parametrize("cache", [False, True])
def test_sample_through_the_pipeline(polyp, cache):
    data = CODDataset(polyp / "TrainDataset", name="polyp", pipeline=PIPELINE, cache=cache)
    for _ in range(2):
        item = data[3]
        sample = item["data_samples"]
        assert item["inputs"].shape == (3, 24, 32) and sample.target.shape == (1, 24, 32)
        assert sample.gt_mask.sum() == 72 and sample.ori_shape == (24, 32)
        assert sample.dataset == "polyp" and sample.stem == "11"
        # What one reader does to a sample must not reach the next.
        item["inputs"].zero_()
        sample.gt_mask.zero_()
    assert data[3]["inputs"].any()


def test_cache_needs_no_files_later_and_follows_subsets(polyp):
    data = CODDataset(polyp / "TrainDataset", pipeline=PIPELINE, cache=True)
    expected = data[7]["inputs"]
    for path in (polyp / "TrainDataset" / "images").iterdir():
        path.unlink()
    assert (data.get_subset([7])[0]["inputs"] == expected).all()


def test_split_parts_are_disjoint(polyp):
    def stems(**split):
        data = CODDataset(polyp / "TrainDataset", split=split)
        return {data.get_data_info(i)["stem"] for i in range(len(data))}

    parts = [stems(use=name) for name in ("experts", "router", "val")]
    assert [len(p) for p in parts] == [15, 3, 2] and len(set.union(*parts)) == 20
    with pytest.raises(ValueError, match=r"split has no key 'sed'.*'seed'"):
        stems(sed=1, use="val")
    with pytest.raises(ValueError, match=r"split\.use is not given"):
        stems(seed=1)
    with pytest.raises(ValueError, match=r"is empty under the fractions"):
        stems(use="val", fractions={"val": 0.01})


def test_bad_files_are_known_before_the_first_step(polyp):
    bad = polyp / "TrainDataset" / "images" / "4.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    cv2.imwrite(str(polyp / "TrainDataset" / "masks" / "5.png"), np.zeros((9, 9), np.uint8))
    with pytest.raises(
        ValueError, match=r"2 of 20 .*4\.jpg is unreadable.*9x9, its image is 32x24"
    ):
        CODDataset(polyp / "TrainDataset")
    data = CODDataset(polyp / "TrainDataset", check_files=False, pipeline=PIPELINE)
    stems = [data.get_data_info(i)["stem"] for i in range(20)]
    with pytest.raises(ValueError, match=r"4\.jpg is unreadable"):
        data[stems.index("4")]
    with pytest.raises(ValueError, match=r"5\.png is a mask of another size"):
        data[stems.index("5")]
    # Only the files in use are checked.
    assert len(CODDataset(polyp / "TrainDataset", indices=3)) == 3


def test_nothing_left_is_an_error(polyp):
    with pytest.raises(ValueError, match=r"no images whose names start with 'zebra'"):
        CODDataset(polyp / "TrainDataset", prefix="zebra")


def test_relative_root_is_found_in_the_environment(polyp, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"data_root: .*CODMOE_DATA_ROOT"):
        CODDataset("TrainDataset")
    monkeypatch.setenv("CODMOE_DATA_ROOT", str(polyp))
    assert len(CODDataset("TrainDataset")) == 20


def test_a_test_set_named_by_the_root_is_not_split(tmp_path):
    add(tmp_path / "TestDataset" / "CAMO", "Imgs", "GT", ["1", "2"])
    assert len(CODDataset(tmp_path / "TestDataset" / "CAMO")) == 2
    with pytest.raises(ValueError, match="CAMO is a test set, of which nothing is held out"):
        CODDataset(tmp_path / "TestDataset" / "CAMO", split=dict(use="val"))


def test_known_duplicates_are_left_out_before_the_split(polyp):
    root = polyp / "TrainDataset"
    kept = CODDataset(root, exclude=["3", "7"])
    assert len(kept) == 18 and not {"3", "7"} & {kept.get_data_info(i)["stem"] for i in range(18)}
    parts = [
        CODDataset(root, exclude=["3", "7"], split=dict(seed=0, use=(part,)))
        for part in ("experts", "router", "val")
    ]
    assert sum(map(len, parts)) == 18
    with pytest.raises(ValueError, match=r"exclude names '33', which .* does not hold"):
        CODDataset(root, exclude=["3", "33"])
    with pytest.raises(ValueError, match=r"exclude='3' must be a list"):
        CODDataset(root, exclude="3")

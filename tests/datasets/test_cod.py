"""CODDataset, COD10K and DatasetGroup on miniature trees in the real layouts."""

import cv2
import numpy as np
import pytest

from codmoe.datasets import COD10K, CODDataset, DatasetGroup
from codmoe.registry import DATASETS

PIPELINE = [{"type": "LoadCODPair"}, {"type": "PackCODInputs", "keep_original": True}]


def add(root, image_dir, mask_dir, stems, size=(24, 32)):
    rng = np.random.default_rng(0)
    for folder in (root / image_dir, root / mask_dir):
        folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        mask = np.zeros(size, np.uint8)
        mask[6:12, 8:20] = 255
        cv2.imwrite(str(root / image_dir / f"{stem}.jpg"), image)
        cv2.imwrite(str(root / mask_dir / f"{stem}.png"), mask)
    return root


@pytest.fixture
def cod10k(tmp_path):
    for subset, counts in (("Train", (5, 4)), ("Test", (3, 2))):
        cam = [f"COD10K-CAM-1-Aquatic-3-Crab-{i}" for i in range(counts[0])]
        non = [f"COD10K-NonCAM-5-Background-{i}" for i in range(counts[1])]
        add(tmp_path / "COD10K-v3" / subset, "Image", "GT_Object", cam + non)
        (tmp_path / "COD10K-v3" / subset / "GT_Edge").mkdir()
    return tmp_path / "COD10K-v3"


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


def test_cod10k_keeps_the_camouflaged(cod10k, monkeypatch):
    said = []
    monkeypatch.setattr("codmoe.datasets.cod.print_log", lambda text, **_: said.append(text))
    train, test = COD10K(cod10k), COD10K(cod10k, subset="Test")
    assert (len(train), len(test), train.name) == (5, 3, "COD10K")
    assert "5 of 9 images kept, 4 left out" in said[0] and "3 of 5" in said[1]
    assert all("3,040 Train / 2,026 Test" in text for text in said)
    assert len(COD10K(cod10k, camouflaged_only=False)) == 9


def test_cod10k_mistakes(cod10k):
    with pytest.raises(ValueError, match=r"subset='train'"):
        COD10K(cod10k, subset="train")
    with pytest.raises(FileNotFoundError, match=r"data_root is not .*/Train; .*holds 'COD10K-v3'"):
        COD10K(cod10k.parent)


def test_cod10k_without_masks_for_the_others(cod10k):
    for path in (cod10k / "Train" / "GT_Object").glob("COD10K-NonCAM*"):
        path.unlink()
    assert len(COD10K(cod10k)) == 5
    with pytest.raises(ValueError, match=r"4 of 9 images have no mask"):
        COD10K(cod10k, camouflaged_only=False)


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

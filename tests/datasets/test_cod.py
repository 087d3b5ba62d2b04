"""Data sets of files: one, COD10K-v3, the COD papers' protocol, a group, one with bad files."""

import shutil

import cv2
import numpy as np
import pytest
from folders import (
    CAMO_TEST,
    CAMO_TRAIN,
    CHAMELEON,
    COD10K_TEST,
    COD10K_TRAIN,
    LAYOUTS,
    NC4K,
    PIPELINE,
    add,
    common_tree,
    picture,
    separate_downloads,
    stems,
)
from mmengine.logging import MMLogger
from torch.utils.data import DataLoader

from codmoe.datasets import (
    COD10K,
    CODBenchmark,
    CODDataset,
    DatasetGroup,
    TolerantDataset,
    UnreadableFile,
)
from codmoe.engine.config import load_config
from codmoe.engine.own_data import set_data
from codmoe.registry import DATASETS

# --- CODDataset ---


def test_finds_layout_and_describes_samples(polyp):
    data = CODDataset(data_root=str(polyp.parent), split_dir="TrainDataset")
    info = data.get_data_info(0)
    assert len(data) == 20 and data.name == "TrainDataset"
    assert info["stem"] == "0" and info["dataset"] == "TrainDataset"
    assert info["img_path"].endswith("images/0.jpg") and info["mask_path"].endswith("masks/0.png")
    assert len(CODDataset(polyp, indices=3)) == 3


def test_folders_by_hand(polyp):
    (polyp / "masks").rename(polyp / "truth")
    assert len(CODDataset(polyp, image_dir="images", mask_dir="truth")) == 20
    for options, error, message in (
        ({}, FileNotFoundError, r"no known pair"),
        ({"image_dir": "images"}, ValueError, r"mask_dir is not given"),
        (
            {"image_dir": "images", "mask_dir": "masks"},
            FileNotFoundError,
            r"mask_dir: .*'images', 'truth'",
        ),
    ):
        with pytest.raises(error, match=message):
            CODDataset(polyp, **options)


@pytest.mark.parametrize("cache", [False, True])
def test_sample_through_the_pipeline(polyp, cache):
    data = CODDataset(polyp, name="polyp", pipeline=PIPELINE, cache=cache)
    for _ in range(2):
        item = data[3]
        sample = item["data_samples"]
        assert item["inputs"].shape == (3, 24, 32) and sample.target.shape == (1, 24, 32)
        assert sample.gt_mask.sum() == 99 and sample.ori_shape == (24, 32)
        assert sample.dataset == "polyp" and sample.stem == "11"
        # What one reader does to a sample must not reach the next.
        item["inputs"].zero_()
        sample.gt_mask.zero_()
    assert data[3]["inputs"].any()


@pytest.mark.parametrize("exclude", [[], ["3", "7"]])
def test_parts_are_disjoint_and_leave_known_duplicates_out(polyp, exclude):
    parts = [
        stems(CODDataset(polyp, exclude=exclude, split=dict(seed=0, use=use)))
        for use in ("experts", ("router",), "val")
    ]
    together = {stem for part in parts for stem in part}
    assert together == {str(i) for i in range(20)} - set(exclude)
    assert [len(part) for part in parts] == ([14, 2, 2] if exclude else [15, 3, 2])


def test_an_image_without_a_mask_can_be_left_out(polyp):
    (polyp / "masks" / "7.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 20 images have no mask: '7'"):
        CODDataset(polyp)
    assert stems(CODDataset(polyp, exclude=["7"])) == sorted({str(i) for i in range(20)} - {"7"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(split=dict(sed=1, use="val")), r"split has no key 'sed'.*'seed'"),
        (dict(split=dict(seed=1)), r"split\.use is not given"),
        (dict(split=dict(use="val", fractions={"val": 0.01})), r"is empty under the fractions"),
        (dict(exclude=["3", "33"]), r"exclude names '33', which .* does not hold"),
        (dict(exclude="3"), r"exclude='3' must be a list"),
        (dict(prefix="zebra"), r"no images whose names start with 'zebra'"),
    ],
)
def test_mistakes_in_what_is_chosen(polyp, options, message):
    with pytest.raises(ValueError, match=message):
        CODDataset(polyp, **options)


def test_bad_files_are_known_before_the_first_step(polyp):
    bad = polyp / "images" / "4.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    cv2.imwrite(str(polyp / "masks" / "5.png"), np.zeros((9, 9), np.uint8))
    with pytest.raises(
        ValueError, match=r"2 of 20 .*4\.jpg is unreadable.*9x9, its image is 32x24"
    ):
        CODDataset(polyp)
    data = CODDataset(polyp, check_files=False, pipeline=PIPELINE)
    order = [data.get_data_info(i)["stem"] for i in range(20)]
    with pytest.raises(ValueError, match=r"4\.jpg is unreadable"):
        data[order.index("4")]
    with pytest.raises(ValueError, match=r"5\.png is a mask of another size"):
        data[order.index("5")]
    # Only the files in use are checked.
    assert len(CODDataset(polyp, indices=3)) == 3


def test_relative_root_is_found_in_the_environment(polyp, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"data_root: .*CODMOE_DATA_ROOT"):
        CODDataset("TrainDataset")
    monkeypatch.setenv("CODMOE_DATA_ROOT", str(polyp.parent))
    assert len(CODDataset("TrainDataset")) == 20


def test_a_test_set_is_never_split(tmp_path):
    root = add(tmp_path / "TestDataset" / "CAMO", "Imgs", "GT", ["1", "2"])
    assert len(CODDataset(root)) == 2
    for options in (dict(data_root=root), dict(data_root=tmp_path, split_dir="TestDataset/CAMO")):
        with pytest.raises(ValueError, match="CAMO is a test set, of which nothing is held out"):
            CODDataset(**options, split=dict(use="val"))


# --- COD10K and the protocol of the COD papers ---


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr("codmoe.datasets.layouts.print_log", lambda text, *_: lines.append(text))
    return lines


def test_cod10k_keeps_the_camouflaged(cod10k, said):
    train, test = COD10K(cod10k), COD10K(cod10k, subset="Test")
    assert (len(train), len(test), train.name) == (20, 3, "COD10K")
    assert "20 of 24 images kept, 4 left out" in said[0] and "3 of 7" in said[1]
    assert all("3,040 Train / 2,026 Test" in text for text in said)
    assert len(COD10K(cod10k, camouflaged_only=False)) == 24


def test_what_is_left_out_is_said_once_in_each_log(cod10k, said):
    """Of the parts of a training, each of which is opened to be checked and to be loaded."""
    for _ in range(2):
        for use in ("experts", "router", "val"):
            COD10K(cod10k, split=dict(use=use))
    assert len(said) == 1
    COD10K(shutil.copytree(cod10k, cod10k.with_name("other")))
    assert len(said) == 2
    MMLogger.get_instance("another", logger_name="mmengine")  # as a Runner's has its own
    try:
        COD10K(cod10k)
    finally:
        MMLogger._instance_dict.pop("another")
    assert len(said) == 3 and set(said) == {said[0]}


@pytest.mark.parametrize("kind", ["COD10K", "CODBenchmark"])
def test_what_is_excluded_still_counts_in_what_the_folder_holds(cod10k, said, kind):
    options = dict(data_root=cod10k, exclude=[COD10K_TRAIN[0]])
    if kind == "CODBenchmark":
        options |= dict(benchmark="COD10K", part="train")
    assert len(DATASETS.build(dict(type=kind, **options))) == 19
    assert "20 of 24 images kept, 4 left out whose names do not" in said[0]


def test_cod10k_without_masks_for_the_others(cod10k):
    for path in (cod10k / "Train" / "GT_Object").glob("COD10K-NonCAM*"):
        path.unlink()
    assert len(COD10K(cod10k)) == 20
    with pytest.raises(ValueError, match=r"4 of 24 images have no mask"):
        COD10K(cod10k, camouflaged_only=False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_images_in_either_layout(tmp_path, layout, said):
    LAYOUTS[layout](tmp_path)
    expected = {
        ("COD10K", "train"): COD10K_TRAIN,
        ("CAMO", "train"): CAMO_TRAIN,
        ("COD10K", "test"): COD10K_TEST,
        ("CAMO", "test"): CAMO_TEST,
        ("CHAMELEON", "test"): CHAMELEON,
        ("NC4K", "test"): NC4K,
    }
    for (name, part), wanted in expected.items():
        dataset = CODBenchmark(tmp_path, benchmark=name, part=part)
        assert stems(dataset) == sorted(wanted) and dataset.name == name
        assert dataset.get_data_info(0)["dataset"] == name
    text = "\n".join(said)
    assert "CAMO train: 10 images in" in text and "the protocol has 1,000" in text
    assert ("COD10K train: 20 of 24 images kept, 4 left out" in text) == (layout == "separate")


def test_with_the_images_that_are_not_camouflaged(tmp_path):
    options = dict(benchmark="COD10K", part="train", camouflaged_only=False)
    assert len(CODBenchmark(separate_downloads(tmp_path / "a"), **options)) == 24
    # In a mixed folder the start of the name still tells COD10K from CAMO.
    assert len(CODBenchmark(common_tree(tmp_path / "b"), **options)) == 20


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (COD10K, dict(subset="train"), r"subset='train'"),
        (COD10K, dict(data_root=".."), r"data_root is not .*/Train; .*holds 'COD10K-v3'"),
        (COD10K, dict(subset="Test", split={"use": "val"}), r"COD10K-v3/Test is a test set"),
        (CODBenchmark, dict(benchmark="NC5K", part="test"), r"no NC5K test .* holds COD10K train"),
        (CODBenchmark, dict(benchmark="CAMO", part="val"), r"part='val'"),
        (
            CODBenchmark,
            dict(benchmark="COD10K", part="test", split={"use": "val"}),
            r"COD10K test is a test set",
        ),
        (
            CODBenchmark,
            dict(benchmark="COD10K", part="test", image_dir="x", mask_dir="y"),
            r"takes no image_dir",
        ),
    ],
)
def test_mistakes_in_a_benchmark(cod10k, kind, options, message):
    options = {**options, "data_root": cod10k / options.get("data_root", ".")}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        kind(**options)


def test_the_environment_is_looked_through_too(tmp_path, monkeypatch):
    """A folder `data` with something else in it does not hide what the variable names."""
    common_tree(tmp_path / "sets")
    add(tmp_path / "work" / "data" / "polyp", "images", "masks", ["a"])
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("CODMOE_DATA_ROOT", raising=False)
    with pytest.raises(FileNotFoundError, match=r"in data, which holds polyp"):
        CODBenchmark("data", benchmark="NC4K", part="test")
    monkeypatch.setenv("CODMOE_DATA_ROOT", str(tmp_path / "sets"))
    assert stems(CODBenchmark("data", benchmark="NC4K", part="test")) == sorted(NC4K)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_shipped_configs_read_either_layout(tmp_path, monkeypatch, layout):
    monkeypatch.chdir(tmp_path)
    LAYOUTS[layout](tmp_path / "sets")
    used = {}
    for name in ("experts/joint_cod", "router/stage2_cod", "ensemble/stage3_cod"):
        cfg = load_config(name)
        set_data(cfg, str(tmp_path / "sets"))
        used[name] = {*stems(DATASETS.build(cfg.train_dataloader.dataset))}
    val = {*stems(DATASETS.build(cfg.val_dataloader.dataset))}
    assert len(val) == 3 and sum(stem.startswith("camo") for stem in val) == 1
    experts, router, both = used.values()
    assert (len(experts), len(router)) == (23, 4) and experts | router == both
    assert not experts & router and not both & val and len(both | val) == 30
    test = DATASETS.build(cfg.test_dataloader.dataset)
    assert test.names == ("CHAMELEON", "CAMO", "COD10K", "NC4K") and len(test) == 10
    assert (tmp_path / "checkpoints_moe" / "cod" / "split.json").is_file()


# --- DatasetGroup ---


def test_group_names_its_samples_and_drops_none(polyp, cod10k):
    common = {"type": "CODDataset", "pipeline": PIPELINE}
    entries = {
        "polyp": dict(common, data_root=str(polyp)),
        "gone": None,
        "crabs": dict(common, type="COD10K", data_root=str(cod10k), subset="Test"),
    }
    group = DATASETS.build({"type": "DatasetGroup", "datasets": entries})
    assert len(group) == 23 and group.names == ("polyp", "crabs")
    names = [group[i]["data_samples"].dataset for i in (0, 19, 20, -1)]
    assert names == ["polyp", "polyp", "crabs", "crabs"]
    assert group.get_data_info(20)["dataset"] == "crabs"
    with pytest.raises(IndexError):
        group[23]


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"a": None}, r"names no dataset"),
        ([], r"it must be \{name: config\}"),
        ({"a": {"type": "CODDataset", "data_root": "no"}}, r"datasets\.a: data_root: "),
        (
            {"a": {"type": "CODDataset", "data_root": "no", "mask_dri": "x"}},
            r"datasets\.a: CODDataset takes no argument 'mask_dri'",
        ),
    ],
)
def test_group_mistakes(datasets, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        DatasetGroup(datasets)


def test_a_cache_for_all_entries_that_name_none(cod10k):
    entry = dict(type="COD10K", data_root=str(cod10k), pipeline=PIPELINE)
    group = DatasetGroup(dict(a=entry, b=dict(entry, cache=False)), cache=True)
    kept, plain = group.datasets
    path = kept.get_data_info(0)["img_path"]
    assert kept._cache.results(path)["img"].shape == (24, 32, 3) and plain._cache is None
    assert (group[0]["inputs"] == group[len(kept)]["inputs"]).all()


# --- TolerantDataset ---


def damaged_folder(root, bad=(), count=20):
    """A data set of pairs named 000 to 019, the images of ``bad`` cut short."""
    add(root, "images", "masks", [f"{i:03d}" for i in range(count)])
    for i in bad:
        path = root / "images" / f"{i:03d}.jpg"
        path.write_bytes(path.read_bytes()[:100])
    return CODDataset(root, check_files=False, pipeline=PIPELINE[:1])


def test_a_bad_sample_is_replaced_and_remembered(tmp_path):
    data = TolerantDataset(damaged_folder(tmp_path, bad=[4, 7]), max_share=0.1)
    np.random.seed(0)
    drawn = [data[i]["stem"] for i in range(20)]
    assert [i for i in range(20) if drawn[i] != f"{i:03d}"] == [4, 7] == data.unreadable()
    assert not {drawn[4], drawn[7]} & {"004", "007"}
    assert data.allowed == 2 and data.complaint() is None
    assert data.reason(4).endswith("images/004.jpg is unreadable: truncated or not an image")


def test_the_list_above_the_share(tmp_path, monkeypatch):
    monkeypatch.setattr(np.random, "randint", lambda high: high - 1)
    data = TolerantDataset(damaged_folder(tmp_path, bad=range(7)), max_share=0.3)
    for i in range(6):
        data[i]
    assert data.allowed == 6 and data.complaint() is None
    data[6]
    text = data.complaint()
    assert text.startswith("7 of 20 training samples are unreadable, and max_unreadable=0.3 allows")
    assert "004.jpg" in text and "005.jpg" not in text and "and 2 more" in text


def test_workers_share_the_count(tmp_path):
    data = TolerantDataset(damaged_folder(tmp_path, bad=[0, 9, 19]), max_share=0.5)
    loader = DataLoader(data, 5, num_workers=2, collate_fn=list, persistent_workers=True)
    for _ in range(2):
        assert sum(len(batch) for batch in loader) == 20
        assert data.unreadable() == [0, 9, 19]


def test_other_errors_are_not_swallowed(tmp_path):
    def broken(results):
        raise ValueError("size=-1; it must be positive")

    source = CODDataset(damaged_folder(tmp_path).root, pipeline=[broken])
    with pytest.raises(ValueError, match="it must be positive"):
        TolerantDataset(source)[0]
    # A mask of class indices is no mask, and counts as a bad file.
    mask = tmp_path / "masks" / "003.png"
    mask.write_bytes(mask.read_bytes()[:60])
    data = TolerantDataset(CODDataset(tmp_path, check_files=False, pipeline=PIPELINE[:1]))
    assert data[3]["stem"] != "003" and data.unreadable() == [3]


def test_all_bad_ends(tmp_path):
    data = TolerantDataset(damaged_folder(tmp_path, bad=range(5), count=5))
    with pytest.raises(UnreadableFile, match=r"5 of 5 training samples are unreadable"):
        data[0]


def test_without_tolerance_and_in_a_worker_the_error_is_one_line(tmp_path):
    loader = DataLoader(damaged_folder(tmp_path, bad=[2]), 1, num_workers=1, collate_fn=list)
    with pytest.raises(UnreadableFile) as error:
        list(loader)
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_of_a_group_and_what_came_back(tmp_path):
    damaged = {"a": damaged_folder(tmp_path / "a", [1]), "b": damaged_folder(tmp_path / "b", [0])}
    data = TolerantDataset(DatasetGroup(damaged), max_share=0.05)
    assert len(data) == 40 and data.get_data_info(20)["dataset"] == "b"
    data[1], data[20]
    assert data.unreadable() == [1, 20] and data.complaint() is None
    add(tmp_path / "b", "images", "masks", ["000"])
    assert "could not be read, but now it can" in data.reason(20)
    with pytest.raises(ValueError, match=r"max_unreadable=2; it is a share"):
        TolerantDataset(damaged["a"], max_share=2)


def test_a_bad_donor_of_copy_paste_does_not_blame_a_sound_sample(tmp_path):
    root = damaged_folder(tmp_path, bad=[4]).root
    pipeline = [{"type": "LoadCODPair"}, {"type": "CopyPaste", "prob": 1.0}]
    data = TolerantDataset(CODDataset(root, check_files=False, pipeline=pipeline), 0.5)
    np.random.seed(0)
    for _ in range(5):
        for i in range(20):
            data[i]
    assert data.unreadable() == [4]


@pytest.mark.parametrize("cache", [False, True])
def test_masks_a_few_pixels_off_are_measured_but_not_trained_on(polyp, cache):
    truth = cv2.resize(picture(0)[1], (33, 23), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(polyp / "masks" / "0.png"), truth)
    sample = CODDataset(polyp, pipeline=PIPELINE, cache=cache)[0]["data_samples"]
    assert sample.gt_mask.shape == sample.ori_shape == (23, 33)
    assert sample.target.shape == (1, 24, 32) and sample.gt_mask.sum() == (truth > 0).sum()
    training = [PIPELINE[0], {"type": "PackCODInputs"}]
    with pytest.raises(ValueError, match=r"0\.png is a mask of another size \(33x23"):
        CODDataset(polyp, pipeline=training, cache=cache)

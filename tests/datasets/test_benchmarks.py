"""COD10K-v3 and the protocol of the COD papers on miniature trees in the real layouts."""

import pytest
from folders import (
    CAMO_TEST,
    CAMO_TRAIN,
    CHAMELEON,
    COD10K_TEST,
    COD10K_TRAIN,
    LAYOUTS,
    NC4K,
    add,
    cod10k_v3,
    common_tree,
    separate_downloads,
)

from codmoe.datasets import COD10K, CODBenchmark
from codmoe.engine.config import load_config
from codmoe.engine.launch import set_data_root
from codmoe.registry import DATASETS


@pytest.fixture
def cod10k(tmp_path):
    return cod10k_v3(tmp_path / "COD10K-v3")


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr("codmoe.datasets.cod.print_log", lambda text, **_: lines.append(text))
    return lines


def stems(dataset):
    return sorted(dataset.get_data_info(i)["stem"] for i in range(len(dataset)))


def test_cod10k_keeps_the_camouflaged(cod10k, said):
    train, test = COD10K(cod10k), COD10K(cod10k, subset="Test")
    assert (len(train), len(test), train.name) == (20, 3, "COD10K")
    assert "20 of 24 images kept, 4 left out" in said[0] and "3 of 7" in said[1]
    assert all("3,040 Train / 2,026 Test" in text for text in said)
    assert len(COD10K(cod10k, camouflaged_only=False)) == 24


def test_cod10k_mistakes(cod10k):
    with pytest.raises(ValueError, match=r"subset='train'"):
        COD10K(cod10k, subset="train")
    with pytest.raises(FileNotFoundError, match=r"data_root is not .*/Train; .*holds 'COD10K-v3'"):
        COD10K(cod10k.parent)
    with pytest.raises(ValueError, match=r"COD10K-v3/Test is a test set"):
        COD10K(cod10k, subset="Test", split={"use": "val"})


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


def test_mistakes(tmp_path):
    common_tree(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no NC5K test set .* holds COD10K train, CAMO tr"):
        CODBenchmark(tmp_path, benchmark="NC5K", part="test")
    with pytest.raises(ValueError, match=r"part='val'"):
        CODBenchmark(tmp_path, benchmark="CAMO", part="val")
    with pytest.raises(ValueError, match=r"CAMO test is a test set"):
        CODBenchmark(tmp_path, benchmark="CAMO", part="test", split={"use": "val"})
    with pytest.raises(ValueError, match=r"takes no image_dir"):
        CODBenchmark(tmp_path, benchmark="CAMO", part="test", image_dir="x", mask_dir="y")


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
        set_data_root(cfg, str(tmp_path / "sets"))
        used[name] = {*stems(DATASETS.build(cfg.train_dataloader.dataset))}
    val = {*stems(DATASETS.build(cfg.val_dataloader.dataset))}
    assert len(val) == 3 and sum(stem.startswith("camo") for stem in val) == 1
    experts, router, both = used.values()
    assert (len(experts), len(router)) == (23, 4) and experts | router == both
    assert not experts & router and not both & val and len(both | val) == 30
    test = DATASETS.build(cfg.test_dataloader.dataset)
    assert test.names == ("CHAMELEON", "CAMO", "COD10K", "NC4K") and len(test) == 10
    assert (tmp_path / "checkpoints_moe" / "cod" / "split.json").is_file()

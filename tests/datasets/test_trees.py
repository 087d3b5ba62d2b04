"""Layouts are recognised by themselves, whatever folder of them is given."""

import pytest
from folders import (
    NC4K,
    add,
    cod10k_v3,
    common_tree,
    separate_downloads,
)

from codmoe.datasets.layouts import outsiders, recognise

COUNTS = {
    ("COD10K", "train"): 3040,
    ("CAMO", "train"): 1000,
    ("COD10K", "test"): 2026,
    ("CAMO", "test"): 250,
    ("CHAMELEON", "test"): 76,
    ("NC4K", "test"): 4121,
}


def labels(root):
    return sorted(part.label for part in recognise(root).parts)


ALL = sorted(f"{name} {role}" for name, role in COUNTS)


def test_separate_downloads(tmp_path):
    tree = recognise(separate_downloads(tmp_path))
    assert labels(tmp_path) == ALL
    assert {(p.name, p.role): p.expected for p in tree.parts} == COUNTS
    assert set(tree.layout.split(", ")) == {"COD10K-v3", "CAMO-V.1.0", "CHAMELEON", "NC4K"}
    cod10k, camo = tree.find("COD10K", "train"), tree.find("CAMO", "test")
    assert cod10k.folders.mask == tmp_path / "COD10K-v3" / "Train" / "GT_Object"
    assert cod10k.prefix == "COD10K-CAM-" and camo.folders.shared_masks
    assert camo.folders.image == tmp_path / "CAMO-V.1.0-CVIU2019" / "Images" / "Test"


@pytest.mark.parametrize("names", [("Imgs", "GT"), ("image", "mask"), ("images", "masks")])
def test_the_tree_of_the_papers(tmp_path, names):
    tree = recognise(common_tree(tmp_path, *names))
    assert labels(tmp_path) == ALL and tree.layout == "TrainDataset + TestDataset"
    assert {(p.name, p.role): p.expected for p in tree.parts} == COUNTS
    assert tree.find("CAMO", "train").prefix == "camourflage_"
    assert tree.find("CAMO", "test").prefix is None
    add(tmp_path / "TrainDataset", *names, ["zebra"])
    assert outsiders(tree.find("CAMO", "train"), tree.parts) == ["zebra.jpg"]
    assert outsiders(tree.find("CAMO", "test"), tree.parts) == []


def test_polyps_as_pranet_gives_them_out(tmp_path):
    add(tmp_path / "TrainDataset", "image", "mask", ["1", "cju0"])
    for name in ("Kvasir", "CVC-300", "Mine"):
        add(tmp_path / "TestDataset" / name, "images", "masks", ["1"])
    expected = {part.label: part.expected for part in recognise(tmp_path).parts}
    assert expected == {
        "TrainDataset train": 1450,
        "Kvasir test": 100,
        "CVC-300 test": 60,
        "Mine test": None,
    }


@pytest.mark.parametrize(
    "sub, expected",
    [
        ("COD10K-v3", ["COD10K test", "COD10K train"]),
        ("COD10K-v3/Train", ["COD10K train"]),
        ("CHAMELEON", ["CHAMELEON test"]),
        ("CAMO-V.1.0-CVIU2019", ["CAMO test", "CAMO train"]),
    ],
)
def test_from_any_folder_of_it(tmp_path, sub, expected):
    separate_downloads(tmp_path)
    assert labels(tmp_path / sub) == expected


def test_nested_archives_and_folders_of_parts(tmp_path):
    cod10k_v3(tmp_path / "COD10K-v3" / "COD10K-v3")
    add(tmp_path / "crabs" / "train", "images", "masks", ["a"])
    add(tmp_path / "crabs" / "Test", "images", "masks", ["b"])
    add(tmp_path / "more" / "frogs", "Imgs", "GT", ["c"])
    assert labels(tmp_path) == ["COD10K test", "COD10K train", "crabs test", "crabs train", "frogs"]


def test_what_is_not_there_or_twice(tmp_path):
    tree = recognise(add(tmp_path / "a" / "NC4K", "Imgs", "GT", NC4K).parent)
    with pytest.raises(FileNotFoundError, match=r"no CAMO test set in .*holds NC4K test"):
        tree.find("CAMO", "test")
    add(tmp_path / "b" / "NC4K", "Imgs", "GT", NC4K)
    with pytest.raises(ValueError, match=r"2 NC4K test sets in .*a/NC4K/Imgs and .*b/NC4K/Imgs"):
        recognise(tmp_path).find("NC4K", "test")


def test_nothing_known_says_what_is_there_and_what_would_be_right(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        recognise(tmp_path)
    text = str(error.value)
    assert "holds 'pictures'" in text and "image_dir and mask_dir" in text
    for known in ("Image+GT_Object", "TrainDataset", "Images/Train", "images+masks", "NC4K"):
        assert known in text
    with pytest.raises(FileNotFoundError, match="no folder"):
        recognise(tmp_path / "absent")


def test_something_else_beside_the_data_is_left_out(tmp_path):
    separate_downloads(tmp_path)
    for image, mask in (("Imgs", "GT"), ("images", "masks")):
        add(tmp_path / "other", image, mask, ["1"])
    assert labels(tmp_path) == ALL
    with pytest.raises(ValueError, match="fits more than one layout"):
        recognise(tmp_path / "other")

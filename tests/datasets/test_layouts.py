"""Roots, known layouts, pairs of files, and the recognition of whole trees of data sets."""

import shutil
from pathlib import Path

import pytest
from folders import (
    CAMO_TRAIN,
    NC4K,
    add,
    cod10k_v3,
    common_tree,
    found,
    look,
    separate_downloads,
    write,
)

from codmoe.datasets.cod import CODDataset
from codmoe.datasets.doctor.diagnosis import examine
from codmoe.datasets.layouts import (
    PROTOCOL,
    find_folders,
    find_pairs,
    nested_files,
    outsiders,
    recognise,
    resolve_root,
)

# --- Pairs and folders ---


def test_pairs_by_stem_sorted_whatever_the_extension(tmp_path):
    for name in ("b.JPG", "a.png", "c.tiff"):
        write(tmp_path / "Imgs" / name)
        write(tmp_path / "GT" / f"{name[0]}.png")
    (tmp_path / "Imgs" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "Imgs" / "._a.png").write_bytes(b"x")
    pairs = find_pairs(tmp_path / "Imgs", tmp_path / "GT")
    assert [p.stem for p in pairs] == ["a", "b", "c"]
    assert [p.image.name for p in pairs] == ["a.png", "b.JPG", "c.tiff"]
    assert all(p.mask.stem == p.stem for p in pairs)


def test_prefix_filters_images_and_masks(tmp_path):
    add(tmp_path, "Imgs", "GT", ["x1", "x2"])
    write(tmp_path / "GT" / "y1.png")
    pairs = find_pairs(tmp_path / "Imgs", tmp_path / "GT", prefix="x")
    assert [p.stem for p in pairs] == ["x1", "x2"]


def test_lone_images_and_masks_are_counted_and_five_named(tmp_path):
    add(tmp_path, "Imgs", "GT", ["ok"])
    for i in range(7):
        write(tmp_path / "Imgs" / f"im{i}.jpg")
    write(tmp_path / "GT" / "m0.png")
    with pytest.raises(ValueError) as error:
        find_pairs(tmp_path / "Imgs", tmp_path / "GT")
    text = str(error.value)
    assert "7 of 8 images have no mask" in text and "1 of 2 masks have no image" in text
    assert "'im4'" in text and "'im5'" not in text and "2 more" in text and "'m0'" in text


def test_what_is_excluded_is_no_fault(tmp_path):
    add(tmp_path, "Imgs", "GT", ["a", "b", "caf\u00e9"])
    write(tmp_path / "Imgs" / "lonely.jpg")
    write(tmp_path / "Imgs" / "a.png")
    folders = tmp_path / "Imgs", tmp_path / "GT"
    (pair,) = find_pairs(*folders, exclude=["lonely", "a", "cafe\u0301"])
    assert pair.stem == "b"
    with pytest.raises(ValueError, match="1 of 2 images have no mask: 'lonely'"):
        find_pairs(*folders, exclude=["a", "caf\u00e9"])


def test_what_only_another_set_holds_cannot_be_excluded(tmp_path):
    """As where both sets have their masks in one folder."""
    add(tmp_path, "Train", "GT", ["a", "b"])
    add(tmp_path, "Test", "GT", ["c"])
    options = dict(shared_masks=True, exclude=["c"])
    with pytest.raises(ValueError, match=r"exclude names 'c', which .*Train does not hold"):
        find_pairs(tmp_path / "Train", tmp_path / "GT", **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda root: find_pairs(root / "GT", root / "Masks"),
            r"mask_dir: .*Masks; .*'GT', 'Imgs'",
        ),
        (lambda root: find_pairs(root / "Imgs", root / "GT"), r"'a\.jpg' and 'a\.png'.*same stem"),
        (
            lambda root: find_pairs(root / "Imgs", root / "GT" / ".." / "Imgs"),
            r"Imgs is given for images and for masks, .* move the masks",
        ),
        (
            lambda root: examine(root, image_dir="Imgs", mask_dir="Imgs"),
            r"Imgs is given for images and for masks, .* move the masks",
        ),
        (lambda root: find_folders(root / "nowhere"), r"data_root: .*nowhere"),
        (lambda root: find_folders(root, "Trian"), r"split_dir: .*Trian; .*holds 'GT', 'Imgs'"),
        (lambda root: find_folders(root / "GT" / "a.png"), r"data_root: .*a\.png is a file"),
        (lambda root: find_folders(root / "pictures"), r"holds 'holiday'.*known are Image"),
        (lambda root: find_folders(root / "two"), r"more than one layout"),
    ],
)
def test_mistakes_name_key_and_what_is_there(tmp_path, call, message):
    add(tmp_path, "Imgs", "GT", ["a"])
    write(tmp_path / "Imgs" / "a.png")
    for name in ("pictures/holiday", "two/images", "two/masks", "two/Imgs", "two/GT"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call(tmp_path)


@pytest.mark.parametrize(
    "image_dir, mask_dir",
    [
        ("Image", "GT_Object"),
        ("Imgs", "GT"),
        ("images", "masks"),
        ("image", "mask"),
        ("image", "masks"),
        ("Images", "GT"),
        ("IMAGES", "Masks"),
    ],
)
@pytest.mark.parametrize("split_dir", [None, "TrainDataset"])
def test_known_layouts_are_found(tmp_path, image_dir, mask_dir, split_dir):
    base = tmp_path / (split_dir or "")
    for name in (image_dir, mask_dir, "Edge"):
        (base / name).mkdir(parents=True)
    folders = find_folders(tmp_path, split_dir)
    assert (folders.image, folders.mask) == (base / image_dir, base / mask_dir)
    assert not folders.shared_masks


def test_camo_keeps_all_masks_in_one_folder(tmp_path):
    add(tmp_path, "Images/Train", "GT", ["camourflage_1", "camourflage_2"])
    add(tmp_path, "Images/Test", "GT", ["camourflage_3"])
    folders = find_folders(tmp_path, "Test")
    pairs = find_pairs(folders.image, folders.mask, shared_masks=folders.shared_masks)
    assert [p.stem for p in pairs] == ["camourflage_3"]


def test_folders_of_camo_named_by_hand(tmp_path):
    """Masks of the test images lie beside those of training; a mask of nothing is none of them."""
    camo = separate_downloads(tmp_path) / "CAMO-V.1.0-CVIU2019"
    pairs = find_pairs(camo / "Images/Train", camo / "GT")
    assert [pair.stem for pair in pairs] == sorted(CAMO_TRAIN)
    write(camo / "GT" / "extra.png")
    with pytest.raises(ValueError, match=r"1 of \d+ masks have no image: 'extra'"):
        find_pairs(camo / "Images/Train", camo / "GT")


def test_root_expands_and_falls_back_to_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SOMEWHERE", str(tmp_path / "s"))
    assert resolve_root("~/d") == tmp_path / "d"
    assert resolve_root("$SOMEWHERE/d") == tmp_path / "s" / "d"
    base = tmp_path / "all"
    monkeypatch.setenv("CODMOE_DATA_ROOT", str(base))
    monkeypatch.chdir(tmp_path)
    assert resolve_root("data/x") == base / "data" / "x"
    assert resolve_root("/abs") == Path("/abs")
    (tmp_path / "data" / "x").mkdir(parents=True)
    assert str(resolve_root("data/x")) == str(Path("data/x"))
    # It stands for the folder data ...
    (base / "COD10K-v3").mkdir(parents=True)
    (tmp_path / "data" / "x").rmdir(), (tmp_path / "data").rmdir()
    assert resolve_root("data/COD10K-v3") == base / "COD10K-v3" and resolve_root("data") == base
    # ... or for the data set itself.
    monkeypatch.setenv("CODMOE_DATA_ROOT", str(base / "COD10K-v3"))
    assert resolve_root("data/COD10K-v3") == base / "COD10K-v3"


# --- Trees ---

ALL = sorted(f"{name} {role}" for name, role in PROTOCOL)


def labels(root):
    return sorted(part.label for part in recognise(root).parts)


def test_the_numbers_of_the_protocol():
    assert PROTOCOL == {
        ("COD10K", "train"): 3040,
        ("CAMO", "train"): 1000,
        ("COD10K", "test"): 2026,
        ("CAMO", "test"): 250,
        ("CHAMELEON", "test"): 76,
        ("NC4K", "test"): 4121,
    }


def test_separate_downloads(tmp_path):
    tree = recognise(separate_downloads(tmp_path))
    assert labels(tmp_path) == ALL
    assert {(p.name, p.role): p.expected for p in tree.parts} == PROTOCOL
    assert set(tree.layout.split(", ")) == {"COD10K-v3", "CAMO-V.1.0", "CHAMELEON", "NC4K"}
    cod10k, camo = tree.find("COD10K", "train"), tree.find("CAMO", "test")
    assert cod10k.folders.mask == tmp_path / "COD10K-v3" / "Train" / "GT_Object"
    assert cod10k.prefix == "COD10K-CAM-" and camo.folders.shared_masks
    assert camo.folders.image == tmp_path / "CAMO-V.1.0-CVIU2019" / "Images" / "Test"
    # From any folder of it.
    for sub, expected in (
        ("COD10K-v3", ["COD10K test", "COD10K train"]),
        ("COD10K-v3/Train", ["COD10K train"]),
        ("CHAMELEON", ["CHAMELEON test"]),
        ("CAMO-V.1.0-CVIU2019", ["CAMO test", "CAMO train"]),
    ):
        assert labels(tmp_path / sub) == expected
    # Something else beside the data is left out.
    for name in ("Imgs", "GT", "images", "masks"):
        (tmp_path / "other" / name).mkdir(parents=True)
    assert labels(tmp_path) == ALL
    with pytest.raises(ValueError, match="fits more than one layout"):
        recognise(tmp_path / "other")


@pytest.mark.parametrize("names", [("Imgs", "GT"), ("image", "mask"), ("images", "masks")])
def test_the_tree_of_the_papers(tmp_path, names):
    tree = recognise(common_tree(tmp_path, *names))
    assert labels(tmp_path) == ALL and tree.layout == "TrainDataset + TestDataset"
    assert {(p.name, p.role): p.expected for p in tree.parts} == PROTOCOL
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


def test_nested_archives_and_folders_of_parts(tmp_path):
    cod10k_v3(tmp_path / "COD10K-v3" / "COD10K-v3")
    add(tmp_path / "crabs" / "train", "images", "masks", ["a"])
    add(tmp_path / "crabs" / "Test", "images", "masks", ["b"])
    add(tmp_path / "more" / "frogs", "Imgs", "GT", ["c"])
    assert labels(tmp_path) == ["COD10K test", "COD10K train", "crabs test", "crabs train", "frogs"]


@pytest.mark.parametrize("names", [("img_dir", "ann_dir"), ("images", "masks")])
def test_parts_within_the_two_folders_as_mmsegmentation_has_them(tmp_path, names):
    """They were one set without images."""
    for part, stem in (("train", "a"), ("Val", "b"), ("test", "c")):
        add(tmp_path / "crabs", *(f"{name}/{part}" for name in names), [stem])
    (tmp_path / "crabs" / names[0] / "raw").mkdir()
    tree = recognise(tmp_path)
    assert [part.label for part in tree.parts] == ["crabs val", "crabs test", "crabs train"]
    for part in tree.parts:
        assert len(find_pairs(part.folders.image, part.folders.mask)) == 1
    # Folders that hold images themselves are a set, whatever lies below.
    add(tmp_path / "crabs", *names, ["d"])
    assert labels(tmp_path) == ["crabs"]


def test_images_in_sub_folders_are_told(tmp_path, monkeypatch):
    """They were left out without a word: a training saw 25 of 40 images."""
    root = add(tmp_path, "Imgs", "GT", ["a"])
    for folder in ("day/one", "@eaDir"):
        add(root, f"Imgs/{folder}", f"GT/{folder}", ["b", "c"])
    told = []
    monkeypatch.setattr("codmoe.datasets.layouts.print_log", lambda text, *_: told.append(text))
    for _ in range(2):
        assert [pair.stem for pair in find_pairs(root / "Imgs", root / "GT")] == ["a"]
    assert len(told) == 2, "once a folder"
    assert told[0].startswith(f"2 image files below {root / 'Imgs'} are not read")
    assert "sub-folders (day/one)" in told[0]
    # Masks that lie in a folder among the images are none of these.
    assert {path.parent.name for path in nested_files(root, root / "GT")} == {"Imgs", "one"}
    (root / "GT" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 1 images have no mask.*2 image files below .*GT"):
        find_pairs(root / "Imgs", root / "GT")
    with pytest.raises(ValueError, match=r"no images in .*day; 2 image files below .*\(one\)"):
        CODDataset(root, image_dir="Imgs/day", mask_dir="GT/day", pipeline=[])


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


def test_what_systems_leave_beside_data_is_never_data(tmp_path):
    root = separate_downloads(tmp_path)
    camo = root / "CAMO-V.1.0-CVIU2019"
    for copy in ("__MACOSX", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN", "#recycle"):
        shutil.copytree(camo, root / copy / camo.name)
    images = camo / "Images" / "Train"
    for name in ("._camourflage_00000.jpg", "Thumbs.db", "desktop.ini", ".hidden.png"):
        (images / name).write_bytes(b"x")
    (images / "@eaDir").mkdir()
    tree = recognise(root)
    assert sum(part.name == "CAMO" for part in tree.parts) == 2
    folders = tree.find("CAMO", "train").folders
    pairs = find_pairs(folders.image, folders.mask, shared_masks=True)
    assert [pair.stem for pair in pairs] == CAMO_TRAIN


def test_accents_pair_however_they_are_encoded(tmp_path):
    add(tmp_path, "images", "masks", ["caf\u00e9"])
    image = tmp_path / "images" / "caf\u00e9.jpg"
    image.rename(tmp_path / "images" / "cafe\u0301.jpg")
    (pair,) = find_pairs(tmp_path / "images", tmp_path / "masks", prefix="caf\u00e9")
    assert pair.stem == "caf\u00e9" and pair.image.name == "cafe\u0301.jpg"
    assert found(look(tmp_path)) == {}
    add(tmp_path, "images", "masks", ["caf\u00e9"])
    with pytest.raises(ValueError, match=r"for how their accents are encoded \(NFC and NFD\)"):
        find_pairs(tmp_path / "images", tmp_path / "masks")


def test_a_folder_called_like_an_image_is_named(tmp_path):
    add(tmp_path, "images", "masks", ["a"])
    (tmp_path / "images" / "1.png").mkdir()
    with pytest.raises(ValueError, match=r"1\.png is a folder called like an image"):
        find_pairs(tmp_path / "images", tmp_path / "masks")

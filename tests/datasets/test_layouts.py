"""Pairing, known layouts and the check of files before training."""

import cv2
import numpy as np
import pytest

from codmoe.datasets.integrity import check_pairs
from codmoe.datasets.layouts import Pair, find_folders, find_pairs, resolve_root


def write(path, shape=(24, 32), value=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full(shape, value, np.uint8))
    return path


def tree(root, image_dir, mask_dir, stems, image_ext=".jpg"):
    for stem in stems:
        write(root / image_dir / f"{stem}{image_ext}", (24, 32, 3))
        write(root / mask_dir / f"{stem}.png")
    return root


def test_pairs_by_stem_sorted_whatever_the_extension(tmp_path):
    for name in ("b.JPG", "a.png", "c.tiff"):
        write(tmp_path / "Imgs" / name, (24, 32, 3))
        write(tmp_path / "GT" / f"{name[0]}.png")
    (tmp_path / "Imgs" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "Imgs" / "._a.png").write_bytes(b"x")
    pairs = find_pairs(tmp_path / "Imgs", tmp_path / "GT")
    assert [p.stem for p in pairs] == ["a", "b", "c"]
    assert [p.image.name for p in pairs] == ["a.png", "b.JPG", "c.tiff"]
    assert all(p.mask.stem == p.stem for p in pairs)


def test_prefix_filters_images_and_masks(tmp_path):
    tree(tmp_path, "Imgs", "GT", ["x1", "x2"])
    write(tmp_path / "GT" / "y1.png")
    pairs = find_pairs(tmp_path / "Imgs", tmp_path / "GT", prefix="x")
    assert [p.stem for p in pairs] == ["x1", "x2"]


def test_lone_images_and_masks_are_counted_and_five_named(tmp_path):
    tree(tmp_path, "Imgs", "GT", ["ok"])
    for i in range(7):
        write(tmp_path / "Imgs" / f"im{i}.jpg", (24, 32, 3))
    write(tmp_path / "GT" / "m0.png")
    with pytest.raises(ValueError) as error:
        find_pairs(tmp_path / "Imgs", tmp_path / "GT")
    text = str(error.value)
    assert "7 of 8 images have no mask" in text and "1 of 2 masks have no image" in text
    assert "'im4'" in text and "'im5'" not in text and "2 more" in text and "'m0'" in text


def test_two_files_of_one_stem(tmp_path):
    tree(tmp_path, "Imgs", "GT", ["a"])
    write(tmp_path / "Imgs" / "a.png", (24, 32, 3))
    with pytest.raises(ValueError, match=r"'a\.jpg' and 'a\.png'.*same stem"):
        find_pairs(tmp_path / "Imgs", tmp_path / "GT")


def test_missing_folder_names_key_and_what_is_there(tmp_path):
    tree(tmp_path, "Imgs", "GT", ["a"])
    with pytest.raises(FileNotFoundError, match=r"mask_dir: .*Masks; .*'GT', 'Imgs'"):
        find_pairs(tmp_path / "Imgs", tmp_path / "Masks")
    with pytest.raises(FileNotFoundError, match=r"data_root: .*nowhere"):
        find_folders(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"split_dir: .*Trian; .*holds 'GT', 'Imgs'"):
        find_folders(tmp_path, "Trian")


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
    tree(base, image_dir, mask_dir, ["a"])
    (base / "Edge").mkdir()
    folders = find_folders(tmp_path, split_dir)
    assert (folders.image, folders.mask) == (base / image_dir, base / mask_dir)
    assert not folders.shared_masks


def test_camo_keeps_all_masks_in_one_folder(tmp_path):
    tree(tmp_path, "Images/Train", "GT", ["camourflage_1", "camourflage_2"])
    tree(tmp_path, "Images/Test", "GT", ["camourflage_3"])
    folders = find_folders(tmp_path, "Test")
    pairs = find_pairs(folders.image, folders.mask, shared_masks=folders.shared_masks)
    assert [p.stem for p in pairs] == ["camourflage_3"]


def test_no_layout_and_two_layouts(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds 'pictures'.*known are Image"):
        find_folders(tmp_path)
    tree(tmp_path, "images", "masks", ["a"])
    tree(tmp_path, "Imgs", "GT", ["a"])
    with pytest.raises(ValueError, match=r"more than one layout"):
        find_folders(tmp_path)


def test_root_expands_and_falls_back_to_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SOMEWHERE", str(tmp_path / "s"))
    assert resolve_root("~/d") == tmp_path / "d"
    assert resolve_root("$SOMEWHERE/d") == tmp_path / "s" / "d"
    monkeypatch.setenv("CODMOE_DATA_ROOT", str(tmp_path / "all"))
    monkeypatch.chdir(tmp_path)
    assert resolve_root("data/x") == tmp_path / "all" / "data" / "x"
    (tmp_path / "data" / "x").mkdir(parents=True)
    assert str(resolve_root("data/x")) == str(type(tmp_path)("data/x"))
    assert resolve_root("/abs") == type(tmp_path)("/abs")


def test_the_environment_stands_for_the_folder_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODMOE_DATA_ROOT", str(tmp_path / "all"))
    (tmp_path / "all" / "COD10K-v3").mkdir(parents=True)
    assert resolve_root("data/COD10K-v3") == tmp_path / "all" / "COD10K-v3"
    assert resolve_root("data") == tmp_path / "all"
    # Or it names the data set itself.
    monkeypatch.setenv("CODMOE_DATA_ROOT", str(tmp_path / "all" / "COD10K-v3"))
    assert resolve_root("data/COD10K-v3") == tmp_path / "all" / "COD10K-v3"


def test_check_names_unreadable_truncated_and_misfit_files_at_once(tmp_path):
    rng = np.random.default_rng(0)
    pairs = []
    for stem in "abcdefg":
        image, mask = tmp_path / f"i_{stem}.jpg", tmp_path / f"m_{stem}.png"
        cv2.imwrite(str(image), rng.integers(0, 255, (40, 60, 3), dtype=np.uint8))
        cv2.imwrite(str(mask), rng.integers(0, 2, (40, 60), dtype=np.uint8) * 255)
        pairs.append(Pair(stem, image, mask))
    check_pairs(pairs)
    pairs[0].image.write_bytes(b"not an image")
    pairs[1].image.write_bytes(pairs[1].image.read_bytes()[:-200])
    pairs[2].mask.write_bytes(pairs[2].mask.read_bytes()[:-40])
    pairs[3].mask.write_bytes(b"")
    write(pairs[4].mask, (20, 30))
    with pytest.raises(ValueError) as error:
        check_pairs(pairs)
    text = str(error.value)
    assert text.startswith("5 of 7 image/mask pairs cannot be used")
    assert "; mend, replace or remove them (python tools/data/doctor.py ROOT says" in text
    for name in ("i_a.jpg is unreadable", "i_b.jpg is unreadable (truncated)"):
        assert name in text
    assert "m_c.png is unreadable (truncated)" in text
    assert "m_d.png is unreadable (empty file)" in text
    assert "m_e.png is a mask of another size (30x20, its image is 60x40)" in text
    pairs[5].image.unlink()
    with pytest.raises(ValueError, match=r"6 of 7.*and 1 more"):
        check_pairs(pairs)


def test_bytes_behind_the_end_are_harmless(tmp_path):
    image, mask = write(tmp_path / "a.jpg", (24, 32, 3)), write(tmp_path / "a.png")
    image.write_bytes(image.read_bytes() + b"\0" * 20)
    check_pairs([Pair("a", image, mask)])
    bmp, webp = write(tmp_path / "b.bmp", (24, 32, 3)), write(tmp_path / "c.webp", (24, 32, 3))
    check_pairs([Pair("b", bmp, mask), Pair("c", webp, mask)])

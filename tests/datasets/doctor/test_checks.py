"""Checks of the files: what cannot be used, what is peculiar, what is there twice."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from folders import add, found, look, picture
from PIL import Image


def test_files_that_cannot_be_used(pair):
    images, masks = pair / "images", pair / "masks"
    (images / "00.jpg").write_bytes((images / "00.jpg").read_bytes()[:-300])
    (images / "01.jpg").write_bytes(b"")
    (masks / "02.png").write_bytes((masks / "02.png").read_bytes()[:60])
    cv2.imwrite(str(masks / "03.png"), np.full((60, 80), 7, np.uint8))
    cv2.imwrite(str(masks / "04.png"), np.zeros((30, 40), np.uint8))
    (masks / "05.png").unlink()
    (images / "06.jpg").unlink()
    (images / "07.png").write_bytes((images / "07.jpg").read_bytes())
    report = look(pair)
    errors = [(f.check, [Path(p).name for row in f.files for p in row]) for f in report.findings]
    assert ("unusable images", ["00.jpg"]) in errors and ("unusable images", ["01.jpg"]) in errors
    assert ("unusable masks", ["02.png"]) in errors and ("unusable masks", ["03.png"]) in errors
    assert ("masks of another size", ["04.jpg", "04.png"]) in errors
    assert ("images without mask", ["05.jpg"]) in errors
    assert ("masks without image", ["06.png"]) in errors
    assert ("two images of one stem", ["07.jpg", "07.png"]) in errors
    assert report.errors == 8 == sum(f.level == "error" for f in report.findings)
    seven = next(f for f in report.findings if "value 7 everywhere" in f.what)
    assert seven.files == [(str(masks / "03.png"),)]
    assert all(f.advice and f.what and f.where == "set" for f in report.findings)
    size = next(f for f in report.findings if f.check == "masks of another size")
    assert "40x30, its image 80x60" in size.what


def test_peculiar_masks(pair):
    masks = pair / "masks"
    box = picture(0, (60, 80))[1]
    dot = box * 0
    dot[3, 4] = 255
    large = box * 0
    large[:, 20:60] = 255
    coloured = np.zeros((60, 80, 3), np.uint8)
    coloured[20:30, 20:30] = (0, 0, 200)
    several = coloured.copy()
    several[40:50, 20:30] = (0, 90, 0)
    palette = Image.fromarray(box // 255, mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    files = [box * 0, box | 255, box // 255, cv2.GaussianBlur(large, (0, 0), 4), coloured]
    files += [palette, several, 255 - box, dot, (box > 0) * np.uint16(300)]
    for number, file in enumerate(files):
        path = str(masks / f"{number:02d}.png")
        _ = file.save(path) if file is palette else cv2.imwrite(path, file)
    report = look(pair)
    misfits = found(report, "error").pop(
        "masks that do not fit their image"
    )  # of another image, as they are
    assert {("02.png",), ("05.png",)} < set(misfits) and report.errors == 1
    assert found(report, "warning") == {
        "empty masks": [("00.png",)],
        "all-white masks": [("01.png",)],
        "masks that look inverted": [("07.png",)],
        "masks of a few pixels": [("08.png",)],
        "soft masks": [("03.png",)],
        "masks of several colours": [("06.png",)],
        "equal masks": [("02.png", "05.png", "09.png")],
    }
    assert found(report, "note") == {
        "masks of 0 and 1": [("02.png",)],
        "coloured masks": [("04.png",), ("05.png",)],
        "masks of 0 and a value that is neither 1 nor white": [("09.png",)],
    }


def test_a_set_without_objects_or_of_inverted_masks_is_not_ready(pair):
    for path in (pair / "masks").iterdir():
        cv2.imwrite(str(path), 255 - cv2.imread(str(path), 0))
    report = look(pair)
    assert len(found(report, "error")["masks that look inverted"]) == 12
    for path in (pair / "masks").iterdir():
        cv2.imwrite(str(path), np.zeros((60, 80), np.uint8))
    assert len(found(look(pair), "error")["empty masks"]) == 12
    for path in (pair / "masks").iterdir():
        cv2.imwrite(str(path), np.full((60, 80), 255, np.uint8))
    assert len(found(look(pair), "error")["all-white masks"]) == 12


def test_masks_where_images_should_be(pair):
    for path in (pair / "images").iterdir():
        path.with_suffix(".png").write_bytes((pair / "masks" / f"{path.stem}.png").read_bytes())
        path.unlink()
    assert len(found(look(pair), "error")["images of black and white alone"]) == 12


def test_images_of_one_colour(pair):
    cv2.imwrite(str(pair / "images" / "03.jpg"), np.full((60, 80, 3), (9, 90, 200), np.uint8))
    assert found(look(pair), "error") == {"images of one colour": [("03.jpg",)]}


def test_masks_a_few_pixels_off_are_errors_in_training_alone(tmp_path):
    for role in ("train", "test"):
        root = add(tmp_path / "crabs" / role, "images", "masks", [f"{role}{i}" for i in range(3)])
        cv2.imwrite(str(root / "masks" / f"{role}1.png"), picture(0, (25, 31))[1])
    report = look(tmp_path)
    assert found(report, "error") == {"masks of another size": [("train1.jpg", "train1.png")]}
    near = found(report, "warning")["masks of nearly the image's size"]
    assert near == [("test1.jpg", "test1.png")]


def test_peculiar_images(pair):
    images = pair / "images"

    def replace(stem, image, suffix=".png", **options):
        (images / f"{stem}.jpg").unlink()
        image.save(images / f"{stem}{suffix}", **options)

    def rgb(stem):
        return Image.open(images / f"{stem}.jpg").convert("RGB")

    exif = Image.Exif()
    exif[0x0112] = 6
    replace("00", rgb("00"), ".jpg", exif=exif)
    replace("01", rgb("01"), ".jpg", exif=exif)
    mask = cv2.imread(str(pair / "masks" / "01.png"), 0)
    cv2.imwrite(str(pair / "masks" / "01.png"), mask.T)
    see_through = rgb("02").convert("RGBA")
    see_through.putpixel((3, 3), (1, 2, 3, 0))
    replace("02", see_through)
    replace("03", rgb("03").convert("RGBA"))
    replace("04", rgb("04").convert("P"))
    replace("05", rgb("05").convert("CMYK"), ".jpg")
    deep = cv2.imread(str(images / "06.jpg")).astype(np.uint16) * 257
    (images / "06.jpg").unlink()
    cv2.imwrite(str(images / "06.png"), deep)
    replace("07", rgb("07").convert("L"), ".jpg")  # grey is nothing to speak of
    report = look(pair)
    assert found(report, "error") == {"masks of the turned image": [("01.jpg", "01.png")]}
    assert found(report, "warning") == {
        "images with EXIF rotation": [("00.jpg",), ("01.jpg",)],
        "images with transparent pixels": [("02.png",)],
        "CMYK images": [("05.jpg",)],
    }
    assert found(report, "note") == {
        "images with an alpha channel": [("03.png",)],
        "images with a palette": [("04.png",)],
        "images of 16 bits": [("06.png",)],
    }


def test_duplicates_within_and_between_training_and_test(tmp_path):
    root = tmp_path / "crabs"
    for role in ("train", "test"):
        add(root / role, "images", "masks", [f"{role}{i}" for i in range(6)], (60, 80))

    def copy(source, target, **encoding):
        image = cv2.imread(str(root / source[0] / "images" / f"{source[1]}.jpg"))
        add(root / target[0], "images", "masks", [target[1]], (60, 80))
        mask = root / source[0] / "masks" / f"{source[1]}.png"
        shutil.copy(mask, root / target[0] / "masks" / f"{target[1]}.png")
        path = root / target[0] / "images" / f"{target[1]}"
        path.with_suffix(".jpg").unlink()
        quality = [cv2.IMWRITE_JPEG_QUALITY, encoding["quality"]] if encoding else []
        cv2.imwrite(f"{path}.jpg" if encoding else f"{path}.png", image, quality)

    copy(("train", "train0"), ("test", "leak"))  # another format, the same pixels
    copy(("train", "train1"), ("test", "near"), quality=40)
    copy(("train", "train2"), ("train", "twin"))
    copy(("test", "test3"), ("test", "alike"), quality=40)
    report = look(root)
    leaks = {
        "the same images in training and test": [("train0.jpg", "leak.png")],
        "copies in training and test": [("train1.jpg", "near.jpg")],
    }
    assert found(report, "error") == leaks
    assert found(report, "warning") == {
        "images that are there twice": [("train2.jpg", "twin.png")],
        "images that look alike": [("alike.jpg", "test3.jpg")],
        "equal masks": [("alike.png", "test3.png")],
    }
    del leaks["copies in training and test"]
    assert found(look(root, waived=["near"]), "error") == leaks
    assert found(look(root, waived=["near.jpg", "train0"]), "error") == {}
    with pytest.raises(ValueError, match="--waive names 'nearly', which is not there"):
        look(root, waived=["nearly"])

"""The doctor finds each ailment it is asked to, and none in healthy sets."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from folders import add, common_tree, picture, separate_downloads
from PIL import Image

from codmoe.datasets.doctor.diagnosis import examine, print_report

ROOT = Path(__file__).resolve().parents[2]


def look(root, **options):
    return examine(root, workers=2, progress=False, **options)


def found(report, level=None):
    """``{check: names of files}``."""
    return {
        f.check: [tuple(Path(p).name for p in row) for row in f.files]
        for f in report.findings
        if level in (None, f.level)
    }


@pytest.fixture
def pair(tmp_path):
    """Twelve healthy images of 60 x 80, named 00 to 11."""
    return add(tmp_path / "set", "images", "masks", [f"{i:02d}" for i in range(12)], (60, 80))


def test_a_healthy_set_has_nothing(pair):
    report = look(pair)
    assert report.findings == [] and report.images == 12 and report.errors == 0
    (row,) = report.sets
    assert row["images"] == 12 and row["image_dir"] == str(pair / "images")


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
    assert ("unusable images", ["00.jpg", "01.jpg"]) in errors
    assert ("unusable masks", ["02.png"]) in errors and ("unusable masks", ["03.png"]) in errors
    assert ("masks of another size", ["04.jpg", "04.png"]) in errors
    assert ("images without mask", ["05.jpg"]) in errors
    assert ("masks without image", ["06.png"]) in errors
    assert ("two images of one stem", ["07.jpg", "07.png"]) in errors
    assert report.errors == 7 == sum(f.level == "error" for f in report.findings)
    seven = next(f for f in report.findings if "up to 7" in f.what)
    assert seven.files == [(str(masks / "03.png"),)]
    assert all(f.advice and f.what and f.where == "set" for f in report.findings)
    size = next(f for f in report.findings if f.check == "masks of another size")
    assert "40x30, its image 80x60" in size.what


def test_peculiar_masks(pair):
    masks = pair / "masks"
    cv2.imwrite(str(masks / "00.png"), np.zeros((60, 80), np.uint8))
    cv2.imwrite(str(masks / "01.png"), np.full((60, 80), 255, np.uint8))
    box = picture(0, (60, 80))[1]
    cv2.imwrite(str(masks / "02.png"), box // 255)
    cv2.imwrite(str(masks / "03.png"), cv2.GaussianBlur(box, (0, 0), 9))
    coloured = np.zeros((60, 80, 3), np.uint8)
    coloured[20:30, 20:30] = (0, 0, 200)
    cv2.imwrite(str(masks / "04.png"), coloured)
    palette = Image.fromarray(box // 255, mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    palette.save(masks / "05.png")
    report = look(pair)
    assert found(report, "error") == {}
    assert found(report, "warning") == {
        "empty masks": [("00.png",)],
        "all-white masks": [("01.png",)],
        "soft masks": [("03.png",)],
        "coloured masks": [("04.png",)],
    }
    notes = {"masks of 0 and 1": [("02.png",)], "masks with a palette": [("05.png",)]}
    assert found(report, "note") == notes


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


def test_a_hole_in_the_data_of_a_jpeg(pair):
    path = pair / "images" / "03.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    path.write_bytes(data[:middle] + data[-2:])  # it ends as it should, and decodes
    assert found(look(pair)) == {"damaged images": [("03.jpg",)]}


def test_names(pair, tmp_path):
    (pair / "masks" / "00.png").rename(pair / "masks" / "00.tmp")
    for stem in ("a", "B"):
        add(pair, "images", "masks", [stem], (60, 80))
    (pair / "masks" / "B.png").rename(pair / "masks" / "b.png")
    add(pair, "images", "masks", ["A"], (60, 80))
    (pair / "images" / "notes.txt").write_text("x")
    (pair / "images" / "._01.jpg").write_bytes(b"x")
    report = look(pair)
    assert found(report, "error") == {
        "stems of image and mask differ by case": [("B.jpg", "b.png")],
        "images without mask": [("00.jpg",)],
    }
    assert found(report, "warning") == {
        "images whose names differ by case alone": [("A.jpg", "a.jpg")],
        "masks whose names differ by case alone": [("A.png", "a.png")],
    }
    other = add(tmp_path / "other", "images", "masks", ["x", "y", "z"])
    for path in (other / "masks").iterdir():
        path.rename(path.with_name(f"{path.stem}_segm.png"))
    advice = {f.check: f.advice for f in look(other).findings}
    assert "the masks end in '_segm': rename" in advice["images without mask"]


def test_duplicates_within_and_between_training_and_test(tmp_path):
    root = tmp_path / "crabs"
    for role in ("train", "test"):
        add(root / role, "images", "masks", [f"{role}{i}" for i in range(6)], (60, 80))

    def copy(source, target, **encoding):
        image = cv2.imread(str(root / source[0] / "images" / f"{source[1]}.jpg"))
        add(root / target[0], "images", "masks", [target[1]], (60, 80))
        path = root / target[0] / "images" / f"{target[1]}"
        path.with_suffix(".jpg").unlink()
        quality = [cv2.IMWRITE_JPEG_QUALITY, encoding["quality"]] if encoding else []
        cv2.imwrite(f"{path}.jpg" if encoding else f"{path}.png", image, quality)

    copy(("train", "train0"), ("test", "leak"))  # another format, the same pixels
    copy(("train", "train1"), ("test", "near"), quality=40)
    copy(("train", "train2"), ("train", "twin"))
    copy(("test", "test3"), ("test", "alike"), quality=40)
    report = look(root)
    assert found(report, "error") == {
        "the same images in training and test": [("leak.png", "train0.jpg")]
    }
    assert found(report, "warning") == {
        "images that are there twice": [("train2.jpg", "twin.png")],
        "images that look alike": [("alike.jpg", "test3.jpg")],
        "images that look alike in training and test": [("near.jpg", "train1.jpg")],
    }


@pytest.mark.parametrize("layout", [separate_downloads, common_tree])
def test_counts_against_the_protocol(tmp_path, layout):
    report = look(layout(tmp_path))
    numbers = {f.where: f.what for f in report.findings if f.check == "number of images"}
    assert numbers["CAMO train"].startswith("10 of the protocol's 1,000")
    assert len(numbers) == 6 and set(found(report)) == {"number of images"}
    left_out = {row["name"] + row["role"]: row["left_out"] for row in report.sets}
    assert left_out["COD10Ktrain"] == (4 if layout is separate_downloads else 10)
    if layout is common_tree:
        add(tmp_path / "TrainDataset", "Imgs", "GT", ["zebra"])
        assert found(look(tmp_path))["images of neither set"] == [("zebra.jpg",)]


def test_too_many_images_are_a_warning(tmp_path):
    add(tmp_path / "CHAMELEON", "Image", "GT", [f"animal-{i}" for i in range(77)])
    report = look(tmp_path / "CHAMELEON")
    assert found(report, "warning") == {"number of images": [("Image",)]}
    assert "77 where the protocol has 76" in report.findings[0].what


def test_folders_of_other_names(pair):
    (pair / "masks").rename(pair / "truth")
    with pytest.raises(FileNotFoundError, match="no known layout"):
        look(pair)
    assert look(pair, image_dir="images", mask_dir="truth").images == 12
    with pytest.raises(ValueError, match="both --image-dir and --mask-dir"):
        look(pair, image_dir="images")
    with pytest.raises(FileNotFoundError, match=r"--mask-dir: .*'images', 'truth'"):
        look(pair, image_dir="images", mask_dir="masks")


def test_the_report_names_files_and_remedy(pair, capsys):
    for stem in ("00", "01", "02", "03", "04"):
        (pair / "masks" / f"{stem}.png").unlink()
    print_report(look(pair))
    text = capsys.readouterr().out
    for part in ("set: 5 images without mask", "images/00.jpg", "images/02.jpg", "and 2 more"):
        assert part in text
    assert "download the masks again" in text and "images/03.jpg" not in text
    assert "1 kind of error, 0 kinds of warning" in text and "Mend the errors" in text


def run(*arguments):
    command = [sys.executable, str(ROOT / "tools/data/doctor.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True)


def test_the_tool(pair, tmp_path):
    cv2.imwrite(str(pair / "masks" / "00.png"), np.zeros((60, 80), np.uint8))
    file = tmp_path / "doctor.json"
    done = run(pair, "--json", file, "--workers", 1)
    assert done.returncode == 0, done.stderr
    payload = json.loads(file.read_text())
    assert payload["errors"] == 0 and payload["images"] == 12
    (finding,) = payload["findings"]
    assert finding["level"] == "warning" and finding["check"] == "empty masks"
    assert finding["files"] == [[str(pair / "masks" / "00.png")]] and finding["advice"]
    (pair / "images" / "01.jpg").write_bytes(b"x")
    done = run(pair, "--json", file)
    assert done.returncode == 1 and "unusable images" in done.stdout
    assert json.loads(file.read_text())["errors"] == 1
    assert len(list(tmp_path.glob("doctor.*.json"))) == 1  # the first report is kept
    done = run(tmp_path / "absent")
    assert done.returncode == 1 and done.stderr.startswith("error: data_root: there is no folder")


def test_damaged_files_of_every_format_are_findings(tmp_path):
    """No damage ends the examination."""
    from damage import DAMAGES, FORMATS, damaged, encoded

    rng = np.random.default_rng(0)
    names = [(f, how) for f in FORMATS for how in DAMAGES]
    add(tmp_path, "images", "masks", [f"{i:03d}" for i in range(len(names))], (32, 40))
    for i, (name, how) in enumerate(names):
        (tmp_path / "images" / f"{i:03d}.jpg").unlink()
        path = tmp_path / "images" / f"{i:03d}.{name.split('.')[-1]}"
        path.write_bytes(damaged(encoded(name, seed=i), how, rng))
        (tmp_path / "masks" / f"{i:03d}.png").write_bytes(damaged(encoded("mask.png"), how, rng))
    report = look(tmp_path)
    bad = [row for f in report.findings if f.check == "unusable images" for row in f.files]
    assert report.images == 98 and 40 < len(bad) < 98

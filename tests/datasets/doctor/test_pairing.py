"""Findings about names and numbers of files."""

import pytest
from folders import CAMO_TRAIN, add, common_tree, found, look, separate_downloads, write

from codmoe.datasets.doctor import print_report


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


def test_images_in_sub_folders_are_named(pair):
    """A set of which the most lies in sub-folders was "ready to train on"."""
    add(pair, "images/lab", "masks/lab", ["x", "y"])
    report = look(pair)
    assert found(report) == {
        "images in sub-folders": [("x.jpg",), ("y.jpg",)],
        "masks in sub-folders": [("x.png",), ("y.png",)],
    }
    nothing = look(pair, image_dir="images", mask_dir="masks/lab")
    assert "masks in sub-folders" not in found(nothing)
    for path in pair.glob("*/*.*"):
        path.unlink()
    (none,) = [f for f in look(pair).findings if f.check == "no images"]
    assert none.advice == "see what lies in sub-folders"


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


def test_folders_of_camo_named_by_hand(tmp_path):
    camo = separate_downloads(tmp_path) / "CAMO-V.1.0-CVIU2019"
    report = look(camo, image_dir="Images/Train", mask_dir="GT")
    assert "masks without image" not in found(report) and report.images == len(CAMO_TRAIN)
    write(camo / "GT" / "extra.png")
    report = look(camo, image_dir="Images/Train", mask_dir="GT")
    assert found(report)["masks without image"] == [("extra.png",)]


def test_too_many_images_are_a_warning(tmp_path, capsys):
    add(tmp_path / "CHAMELEON", "Image", "GT", [f"animal-{i}" for i in range(77)])
    report = look(tmp_path / "CHAMELEON")
    assert found(report, "warning") == {"number of images": [("Image",)]}
    assert "77 where the protocol has 76" in report.findings[0].what
    print_report(report)
    assert "CHAMELEON test: number of images, 77 where" in capsys.readouterr().out

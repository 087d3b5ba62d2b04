"""The examination as a whole: healthy sets, folders by hand, the printed report, the tool."""

import json

import cv2
import numpy as np
import pytest
from folders import add, look
from miniature import call

from codmoe.datasets.doctor import print_report


def test_a_healthy_set_has_nothing(pair):
    report = look(pair)
    assert report.findings == [] and report.images == 12 and report.errors == 0
    (row,) = report.sets
    assert row["images"] == 12 and row["image_dir"] == str(pair / "images")


def test_folders_of_other_names(pair):
    (pair / "masks").rename(pair / "truth")
    with pytest.raises(FileNotFoundError, match="no known layout"):
        look(pair)
    assert look(pair, image_dir="images", mask_dir="truth").images == 12
    elsewhere = look(".", image_dir=str(pair / "images"), mask_dir=str(pair / "truth"))
    assert [each["name"] for each in elsewhere.sets] == [pair.name]
    with pytest.raises(ValueError, match="both --images and --masks"):
        look(pair, image_dir="images")
    with pytest.raises(FileNotFoundError, match=r"--masks: .*'images', 'truth'"):
        look(pair, image_dir="images", mask_dir="masks")


def test_the_report_names_files_and_remedy(pair, capsys):
    for stem in ("00", "01", "02", "03", "04"):
        (pair / "masks" / f"{stem}.png").unlink()
    print_report(look(pair))
    text = capsys.readouterr().out
    for part in ("set: images without mask (5)", "images/00.jpg", "images/02.jpg", "and 2 more"):
        assert part in text
    assert "download the masks again" in text and "images/03.jpg" not in text
    assert "1 kind of error, 0 kinds of warning" in text and "Mend the errors" in text


def test_the_tool(pair, tmp_path, monkeypatch, capsys):
    cv2.imwrite(str(pair / "masks" / "00.png"), np.zeros((60, 80), np.uint8))
    file = tmp_path / "doctor.json"
    assert call(monkeypatch, "data/doctor", pair, "--json", file, "--workers", 1) == 0
    payload = json.loads(file.read_text())
    assert payload["errors"] == 0 and payload["images"] == 12
    (finding,) = payload["findings"]
    assert finding["level"] == "warning" and finding["check"] == "empty masks"
    assert finding["files"] == [[str(pair / "masks" / "00.png")]] and finding["advice"]
    (pair / "images" / "01.jpg").write_bytes(b"x")
    assert call(monkeypatch, "data/doctor", pair, "--json", file) == 1
    assert "unusable images" in capsys.readouterr().out
    assert json.loads(file.read_text())["errors"] == 1
    assert len(list(tmp_path.glob("doctor.*.json"))) == 1  # the first report is kept
    refused = call(monkeypatch, "data/doctor", tmp_path / "absent")
    assert refused.startswith("error: data_root: there is no folder")


def test_a_copy_of_a_test_image_fails_unless_waived(tmp_path, monkeypatch):
    for role in ("train", "test"):
        add(
            tmp_path / "crabs" / role, "images", "masks", [f"{role}{i}" for i in range(4)], (60, 80)
        )
    folders = [tmp_path / "crabs" / role for role in ("train", "test")]
    image = cv2.imread(str(folders[1] / "images" / "test2.jpg"))
    copy = cv2.resize(image[3:-3, -4:3:-1], (80, 60))  # cropped and mirrored
    cv2.imwrite(str(folders[0] / "images" / "train3.jpg"), copy)
    arguments = (tmp_path / "crabs", "--workers", 1)
    assert call(monkeypatch, "data/doctor", *arguments) == 1
    assert call(monkeypatch, "data/doctor", *arguments, "--waive", "train3.jpg") == 0

"""Damage that decoders pass over or stumble over."""

import cv2
import numpy as np
from damage import DAMAGES, FORMATS, damaged, encoded
from folders import add, found, look


def test_a_hole_in_the_data_of_a_jpeg(pair):
    path = pair / "images" / "03.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    path.write_bytes(data[:middle] + data[-2:])  # it ends as it should, and decodes
    assert found(look(pair)) == {"damaged images": [("03.jpg",)]}


def test_bytes_too_many_in_the_data_of_a_jpeg(pair):
    path = pair / "images" / "05.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[:-2] + bytes(range(40, 90)) + data[-2:])  # "50 extraneous bytes", no more
    assert found(look(pair)) == {"damaged images": [("05.jpg",)]}


def test_damaged_files_of_every_format_are_findings(tmp_path):
    """No damage ends the examination."""
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

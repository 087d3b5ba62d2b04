"""The check of files before training."""

import cv2
import numpy as np
import pytest
from folders import add, picture, write

from codmoe.datasets.integrity import check_pairs
from codmoe.datasets.layouts import Pair


def test_check_names_unreadable_truncated_and_misfit_files_at_once(tmp_path):
    rng = np.random.default_rng(0)
    pairs = [Pair(s, tmp_path / f"i_{s}.jpg", tmp_path / f"m_{s}.png") for s in "abcdefg"]
    for pair in pairs:
        cv2.imwrite(str(pair.image), picture(list(pair.stem.encode()), (40, 60))[0])
        cv2.imwrite(str(pair.mask), rng.integers(0, 2, (40, 60), dtype=np.uint8) * 255)
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
    assert "; mend, replace or remove them (codmoe doctor --images" in text
    for fault in (
        "i_a.jpg is unreadable",
        "i_b.jpg is unreadable (truncated)",
        "m_c.png is unreadable: truncated or",
        "m_d.png is unreadable: the file is empty",
        "m_e.png is a mask of another size (30x20, its image is 60x40)",
    ):
        assert fault in text
    pairs[5].image.unlink()
    with pytest.raises(ValueError, match=r"6 of 7.*and 1 more"):
        check_pairs(pairs)


def test_other_formats_and_bytes_behind_the_end_are_harmless(tmp_path):
    images = [write(tmp_path / name) for name in ("a.jpg", "b.bmp", "c.webp")]
    images[0].write_bytes(images[0].read_bytes() + b"\0" * 20)
    mask = write(tmp_path / "a.png")
    check_pairs([Pair(image.stem, image, mask) for image in images])


def checked(root, stems, monkeypatch, **options):
    """What the check logs."""
    said = []
    monkeypatch.setattr("codmoe.datasets.layouts.print_log", lambda text, *_: said.append(text))
    pairs = [Pair(s, root / "images" / f"{s}.jpg", root / "masks" / f"{s}.png") for s in stems]
    check_pairs(pairs, name="mine", **options)
    return said


def test_masks_that_may_be_meant_are_named_by_set(tmp_path, monkeypatch):
    stems = list("abcdef")
    add(tmp_path, "images", "masks", stems, (60, 80))
    assert checked(tmp_path, stems, monkeypatch) == []
    box = picture(0, (60, 80))[1]
    dot = box * 0
    dot[3, 4] = 255
    for stem, mask in (("a", box * 0), ("b", 255 - box), ("c", dot), ("d", box | 255)):
        cv2.imwrite(str(tmp_path / "masks" / f"{stem}.png"), mask)
    assert checked(tmp_path, stems, monkeypatch) == [
        "mine: 1 of 6 masks: no pixel is object (a.png)",
        "mine: 1 of 6 masks: every pixel is object (d.png)",
        "mine: 1 of 6 masks: the object is most of the image and most of its border: inverted? "
        "(b.png)",
        "mine: 1 of 6 masks: the object is a few pixels (c.png)",
    ]
    assert checked(tmp_path, stems, monkeypatch) == []  # said already
    with pytest.raises(ValueError, match=r"mine: 1 of 2 masks: .*inverted.*mend the masks"):
        checked(tmp_path, ["b", "e"], monkeypatch)
    cv2.imwrite(str(tmp_path / "masks" / "b.png"), box * 0)
    with pytest.raises(ValueError, match=r"2 of 2 masks: no pixel is object \(a\.png, b\.png\)"):
        checked(tmp_path, ["a", "b"], monkeypatch)


def test_masks_a_few_pixels_off_are_counted_in_evaluation_alone(tmp_path, monkeypatch):
    add(tmp_path, "images", "masks", ["a", "b"], (60, 80))
    cv2.imwrite(str(tmp_path / "masks" / "b.png"), picture(0, (61, 79))[1])
    (said,) = checked(tmp_path, ["a", "b"], monkeypatch, any_size=True)
    assert said.startswith("mine: 1 of 2 masks: a few pixels larger") and "(b.png)" in said
    with pytest.raises(ValueError, match=r"b\.png is a mask of another size \(79x61"):
        checked(tmp_path, ["a", "b"], monkeypatch)

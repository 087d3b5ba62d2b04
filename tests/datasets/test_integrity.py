"""The check of files before training, and the readers on damaged files of every format."""

import os
import resource

import cv2
import numpy as np
import pytest
from damage import DAMAGES, FORMATS, damaged, encoded
from folders import picture, write
from PIL import Image

from codmoe.datasets.integrity import UnreadableFile, check_pairs, has_plausible_header
from codmoe.datasets.layouts import Pair
from codmoe.datasets.transforms import read_image, read_mask

ROUNDS = int(os.environ.get("CODMOE_FUZZ_ROUNDS", "6"))


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
    assert "; mend, replace or remove them (python tools/data/doctor.py ROOT says" in text
    for fault in (
        "i_a.jpg is unreadable",
        "i_b.jpg is unreadable (truncated)",
        "m_c.png is unreadable (truncated)",
        "m_d.png is unreadable (empty file)",
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


@pytest.mark.filterwarnings("ignore")  # of Pillow, about the damage
@pytest.mark.parametrize("name", FORMATS)
def test_only_value_errors_that_name_the_file(tmp_path, name):
    rng = np.random.default_rng(list(name.encode()))
    path = tmp_path / f"picture.{name}"
    whole = encoded(name)
    path.write_bytes(whole)
    assert read_image(str(path)).shape == (32, 40, 3)
    refused = dict.fromkeys(DAMAGES, 0)
    for _ in range(ROUNDS):
        for how in DAMAGES:
            path.write_bytes(damaged(whole, how, rng))
            try:
                image = read_image(str(path))
                assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            except ValueError as error:
                assert isinstance(error, UnreadableFile) and str(error).startswith(str(path))
                refused[how] += 1
            try:
                assert set(np.unique(read_mask(str(path)))) <= {0, 1}
            except ValueError as error:
                assert isinstance(error, UnreadableFile) and str(error).startswith(str(path))
            try:
                check_pairs([Pair("picture", path, path)], workers=1)
            except ValueError as error:
                assert str(path) in str(error)
    assert refused["empty"] == refused["garbage"] == ROUNDS
    # A bitmap or the end of some others may lose bytes that say nothing; the common two may not.
    if name.endswith(("jpg", "png")):
        assert refused["truncated"] == ROUNDS


def test_damage_does_not_cost_gigabytes(tmp_path):
    """Lengths and sizes in a damaged header are promises that OpenCV would allocate for."""
    png, jpg = bytearray(encoded("png")), bytearray(encoded("jpg"))
    chunk = png.copy()
    chunk[8] = 0x70  # the first chunk claims 1.8 GB
    size = png.copy()
    size[16:24] = bytes([0, 0, 0x7F, 0xFF] * 2)  # 32,767 x 32,767 pixels
    start = jpg.index(b"\xff\xc0") + 5
    huge = jpg.copy()
    huge[start : start + 4] = b"\x7f\xff\x7f\xff"
    assert has_plausible_header(png) and has_plausible_header(jpg)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, data in (("chunk.png", chunk), ("size.png", size), ("size.jpg", huge)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableFile, match=name):
            read_image(str(tmp_path / name))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.jpg", {"quality": 1}),
        ("a.webp", {"lossless": True}),
        ("a.tif", {"compression": "group4"}),
    ],
)
def test_an_even_area_packs_tightly_and_is_fine(tmp_path, name, options):
    image = Image.new("1" if name.endswith(("png", "tif")) else "RGB", (3000, 3000))
    image.save(tmp_path / name, **options)
    assert read_image(str(tmp_path / name)).shape == (3000, 3000, 3)

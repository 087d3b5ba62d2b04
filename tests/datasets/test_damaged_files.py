"""Whatever is done to a file, reading it gives an image or a ValueError that names the file."""

import os
import resource

import numpy as np
import pytest
from damage import DAMAGES, FORMATS, damaged, encoded

from codmoe.datasets.integrity import UnreadableFile, check_pairs, has_plausible_header
from codmoe.datasets.layouts import Pair
from codmoe.datasets.transforms import read_image, read_mask

ROUNDS = int(os.environ.get("CODMOE_FUZZ_ROUNDS", "6"))


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


def test_an_even_area_packs_tightly_and_is_fine(tmp_path):
    from PIL import Image

    for name, options in (
        ("a.png", {}),
        ("a.jpg", {"quality": 1}),
        ("a.webp", {"lossless": True}),
        ("a.tif", {"compression": "group4"}),
    ):
        image = Image.new("1" if name.endswith(("png", "tif")) else "RGB", (3000, 3000))
        image.save(tmp_path / name, **options)
        assert read_image(str(tmp_path / name)).shape == (3000, 3000, 3)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(UnreadableFile, match=r"gone\.png cannot be read: No such file"):
        read_image(str(tmp_path / "gone.png"))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UnreadableFile, match=r"folder\.png cannot be read"):
        read_mask(str(tmp_path / "folder.png"))

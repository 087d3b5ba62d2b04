"""Images that weights were trained on are known again, and no others are taken for them."""

import shutil

import numpy as np
from PIL import Image

from codmoe.datasets.recognition import marks, read, written


def test_a_moved_or_renamed_image_is_known_and_no_other(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.bmp" for number in range(3)]  # of one length, under one header
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(path)
    seen = read(written(mark for mark in marks(paths[:2]) if mark))
    assert len(seen) == 2
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(paths[0], tmp_path / "elsewhere" / "renamed.bmp")
    assert [mark in seen for mark in marks([copy, *paths])] == [True, True, True, False]


def test_what_cannot_be_read_is_no_image_and_no_mark(tmp_path):
    assert marks([tmp_path / "absent.png"]) == [None]
    (tmp_path / "empty.png").touch()
    assert marks([tmp_path / "empty.png"])[0]
    for text in (None, "", "?", 5, {}):
        assert read(text) == set()

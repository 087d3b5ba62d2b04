"""Masks of other images, told by their outlines."""

import cv2
import numpy as np
import pytest
from folders import add, found, look, picture

from codmoe.datasets.doctor.fitting import UNFIT, fit


def fits(number, mask_of, change=lambda mask: mask):
    image, mask = picture(number, (60, 80))[0], picture(mask_of, (60, 80))[1]
    return fit(image[..., ::-1].copy(), change(mask) // 255)


def test_right_masks_lie_on_edges_and_others_seldom():
    right = [fits(number, number) for number in range(20)]
    wrong = np.array([fits(number, number + 100) for number in range(20)])
    mirrored = np.array([fits(n, n, lambda mask: mask[:, ::-1].copy()) for n in range(20)])
    assert min(right) > 5 > np.median(wrong) + 3
    assert (wrong < UNFIT).mean() >= 0.5 and (mirrored < UNFIT).mean() >= 0.3


@pytest.mark.parametrize("value", [0, 1])
def test_a_mask_without_outline_says_nothing(value):
    image = picture(0, (60, 80))[0]
    assert np.isnan(fit(image, np.full((60, 80), value, np.uint8)))


def test_a_few_are_named_and_a_set_of_them_is_an_error(tmp_path):
    add(tmp_path, "images", "masks", [f"{number:02d}" for number in range(16)], (60, 80))
    masks = sorted((tmp_path / "masks").iterdir())
    good = [mask.read_bytes() for mask in masks]
    # Each mask under the next one's name, as where lists are sorted in two ways.
    for mask, content in zip(masks, good[1:] + good[:1], strict=True):
        mask.write_bytes(content)
    (worst, *_), *_ = misfits = found(look(tmp_path), "error")["masks that do not fit their image"]
    assert len(misfits) >= 4
    for mask, content in zip(masks, good, strict=True):
        mask.write_bytes(content)
    assert found(look(tmp_path)) == {}
    turned = cv2.rotate(cv2.imread(str(tmp_path / "masks" / worst), 0), cv2.ROTATE_180)
    cv2.imwrite(str(tmp_path / "masks" / worst), turned)
    assert look(tmp_path).errors == 0

"""Pasted objects: in image and mask, drawn to the background, never over most of the own object."""

import cv2
import numpy as np
import pytest
from folders import disc

from codmoe.datasets.synthetic import SyntheticCamouflage
from codmoe.datasets.transforms import CopyPaste, pair_results


class Pool:
    """One donor."""

    def __init__(self, image, mask):
        self.image, self.mask = image, mask

    def __len__(self):
        return 1

    def read_sample(self, index):
        return self.image, self.mask


def test_pasted_object_is_in_image_and_mask_and_its_truth_is_dropped():
    np.random.seed(0)
    donor = Pool(*disc(240, 320, (0.6, 0.4), 40, value=200))
    for _ in range(20):
        image, mask = disc(value=90)
        results = dict(pair_results(image, mask.copy()), pool=donor)
        out = CopyPaste(prob=1, scale=(0.5, 1.5), match=0, max_overlap=0)(results)
        new = out["gt_seg_map"] & ~mask
        # Relative to its image the donor's disc has a fortieth of 320 x 240 pixels and more.
        relative = new.sum() / new.size / (donor.mask.mean())
        assert 0.2 < relative < 2.6
        assert (out["gt_seg_map"][mask == 1] == 1).all()  # own object not covered
        core = cv2.erode(new, np.ones((7, 7), np.uint8)) == 1
        assert (out["img"][core] > 190).all() and (out["img"][mask == 1] >= 89).mean() > 0.9
        elsewhere = cv2.dilate(out["gt_seg_map"], np.ones((9, 9), np.uint8)) == 0
        assert not out["img"][elsewhere].any()
        assert "gt_mask" not in out
        # Neither the donor nor the arrays that came in were written to.
        assert donor.image.max() == 200 and image.max() == 90


def test_pasted_colours_are_drawn_to_the_background():
    np.random.seed(0)
    donor = Pool(*disc(value=220))
    back = np.full((120, 160, 3), 100, np.uint8)
    means = []
    for match in (0, 0.5, 1):
        results = dict(pair_results(back, np.zeros((120, 160), np.uint8)), pool=donor)
        out = CopyPaste(prob=1, match=match, scale=(1, 1))(results)
        means.append(out["img"][out["gt_seg_map"] == 1].mean())
    assert means[0] > 205 and means[1] == pytest.approx(160, abs=8) and means[2] < 104


@pytest.mark.parametrize("value", [0, 1], ids=["empty sample", "whole object"])
def test_nothing_is_pasted_over_most_of_the_object_or_from_an_empty_sample(value):
    image, mask = np.zeros((40, 40, 3), np.uint8), np.full((40, 40), value, np.uint8)
    results = dict(pair_results(image, mask), pool=Pool(image + 255, mask))
    out = CopyPaste(prob=1, scale=(1, 1))(results)
    assert not out["img"].any() and "gt_mask" in out


def test_copy_paste_reads_the_data_set_it_is_used_in():
    pipeline = [dict(type="CopyPaste", prob=1.0, max_overlap=1.0), dict(type="PackCODInputs")]
    arguments = dict(length=6, image_size=64, kinds=["figure"])
    pasted = SyntheticCamouflage(**arguments, pipeline=pipeline)
    plain = SyntheticCamouflage(**arguments, pipeline=pipeline[1:])
    np.random.seed(0)
    larger = [
        int(a["data_samples"].target.sum()) > int(b["data_samples"].target.sum())
        for a, b in zip(pasted, plain, strict=True)
    ]
    assert sum(larger) >= 4 and "pool" not in pasted[0]
    with pytest.raises(ValueError, match=r"CopyPaste finds no other samples.*read_sample"):
        CopyPaste(prob=1)(pair_results(*disc()))

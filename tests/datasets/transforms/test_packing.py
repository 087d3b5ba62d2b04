"""Packed samples: types, shapes, metainfo, and copies of whatever arrays come."""

import numpy as np
import pytest
import torch
from folders import disc

from codmoe.datasets.transforms import PackCODInputs, RandomColour, RandomWarp, pair_results


def test_types_shapes_and_metainfo():
    results = dict(img_path="a.jpg", mask_path="a.png", stem="a", dataset="d", kind="k")
    results.update(pair_results(*disc()))
    packed = PackCODInputs(keep_original=True)(RandomWarp(size=(64, 48))(results))
    inputs, data = packed["inputs"], packed["data_samples"]
    assert inputs.dtype == data.target.dtype == data.gt_mask.dtype == torch.uint8
    assert inputs.shape == (3, 48, 64) and data.target.shape == (1, 48, 64)
    assert data.gt_mask.shape == data.ori_shape == (120, 160) and data.img_shape == (48, 64)
    assert (data.stem, data.dataset, data.kind, data.img_path) == ("a", "d", "k", "a.jpg")
    assert "gt_mask" not in PackCODInputs()(results)["data_samples"]
    inputs.zero_(), data.target.zero_()
    assert results["img"].any() and results["gt_seg_map"].any()


@pytest.mark.parametrize("view", [np.s_[:], np.s_[:, ::-1], np.s_[::-1], np.s_[::-1, ::-1]])
def test_mirrored_views_are_packed_and_coloured_as_they_look(view):
    image = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)[view]
    packed = PackCODInputs()(pair_results(image, np.zeros((9, 7), np.uint8)))
    assert np.array_equal(packed["inputs"].numpy().transpose(1, 2, 0), image)
    still = RandomColour(0, 0, 0, 0)({"img": image})["img"]
    assert np.abs(still.astype(int) - image).max() <= 1

"""A pair of files as the keys that transforms work on."""

import cv2
import numpy as np
import pytest
from folders import disc

from codmoe.datasets.transforms import LoadCODPair, PackCODInputs, pair_results


def test_load_without_mask_and_with_image_at_hand(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    results = LoadCODPair()({"img_path": str(tmp_path / "a.png")})
    assert "gt_mask" not in results and "target" not in PackCODInputs()(results)["data_samples"]
    made = pair_results(*disc())
    assert LoadCODPair()(made) is made


def test_a_mask_a_few_pixels_off_is_the_truth_at_its_own_size(tmp_path):
    image, mask = disc(120, 160)
    info = {"img_path": str(tmp_path / "a.png"), "mask_path": str(tmp_path / "m.png")}
    cv2.imwrite(info["img_path"], image)
    cv2.imwrite(info["mask_path"], cv2.resize(mask, (162, 119)) * 255)
    results = LoadCODPair()({**info, "any_size": True})
    assert results["gt_mask"].shape == results["ori_shape"] == (119, 162)
    assert results["gt_seg_map"].shape == results["img_shape"] == (120, 160)
    assert (results["gt_seg_map"] != mask).mean() < 0.01
    with pytest.raises(ValueError, match=r"m\.png .*\(162x119, its image is 160x120\)"):
        LoadCODPair()(dict(info))
    for size in ((160, 90), (120, 160), (80, 120)):
        cv2.imwrite(info["mask_path"], np.zeros(size[::-1], np.uint8))
        with pytest.raises(ValueError, match="another size"):
            LoadCODPair()({**info, "any_size": True})

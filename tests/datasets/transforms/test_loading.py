"""Reading of images and masks in whatever form they are stored."""

import cv2
import numpy as np
import pytest
from folders import disc

from codmoe.datasets import UnreadableFile
from codmoe.datasets.transforms import (
    LoadCODPair,
    PackCODInputs,
    pair_results,
    read_image,
    read_mask,
)


def load(tmp_path, image, mask, image_name="a.png", mask_name="m.png"):
    paths = {"img_path": str(tmp_path / image_name), "mask_path": str(tmp_path / mask_name)}
    cv2.imwrite(paths["img_path"], image)
    cv2.imwrite(paths["mask_path"], mask)
    return LoadCODPair()(paths)


def test_load_gives_rgb_and_binary_masks(tmp_path):
    image = np.zeros((5, 7, 3), np.uint8)
    image[..., 0] = 200  # blue, as OpenCV writes it
    mask = np.zeros((5, 7), np.uint8)
    mask[1:3, 2:6] = 1
    for truth in (mask, mask * 255, np.repeat(mask[..., None] * 255, 3, 2)):
        results = load(tmp_path, image, truth)
        assert results["img"][0, 0].tolist() == [0, 0, 200]
        assert results["gt_mask"].dtype == np.uint8 and (results["gt_mask"] == mask).all()
        assert results["gt_seg_map"] is not results["gt_mask"]
        assert results["ori_shape"] == results["img_shape"] == (5, 7)


def test_mask_values(tmp_path):
    image = np.zeros((1, 4, 3), np.uint8)
    grey = np.array([[0, 128, 129, 255]], np.uint8)  # PySODMetrics' limit
    red = np.zeros((1, 4, 3), np.uint8)
    red[0, 2:, 2] = 128  # the first object of a DAVIS palette
    for truth in (grey, grey.astype(np.uint16), grey.astype(np.uint16) * 257, red):
        assert load(tmp_path, image, truth)["gt_mask"].tolist() == [[0, 0, 1, 1]]
    assert not load(tmp_path, image, grey * 0)["gt_mask"].any()
    with pytest.raises(ValueError, match=r"m\.png has values up to 3"):
        load(tmp_path, image, np.array([[0, 1, 2, 3]], np.uint8))


def test_grey_alpha_and_16_bit_images(tmp_path):
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (6, 5, 3), dtype=np.uint8)
    mask = np.zeros((6, 5), np.uint8)
    grey = load(tmp_path, rgb[..., 0], mask)["img"]
    assert grey.shape == (6, 5, 3) and (grey == rgb[..., :1]).all()
    alpha = np.dstack([rgb[..., ::-1], np.full((6, 5), 9, np.uint8)])
    assert (load(tmp_path, alpha, mask)["img"] == rgb).all()
    deep = rgb[..., ::-1].astype(np.uint16) * 257
    assert (load(tmp_path, deep, mask)["img"] == rgb).all()
    assert load(tmp_path, rgb, mask)["img"].dtype == np.uint8


def test_load_without_mask_and_with_image_at_hand(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    results = LoadCODPair()({"img_path": str(tmp_path / "a.png")})
    assert "gt_mask" not in results and "target" not in PackCODInputs()(results)["data_samples"]
    made = pair_results(*disc())
    assert LoadCODPair()(made) is made


@pytest.mark.parametrize("extension", ["jpg", "png"])
@pytest.mark.parametrize("keep", [0, 0.3, 0.9])
def test_unreadable_and_truncated_files_name_the_path(tmp_path, extension, keep):
    path = tmp_path / f"bad.{extension}"
    rng = np.random.default_rng(0)
    cv2.imwrite(str(path), rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ValueError, match=r"bad\.(jpg|png) is unreadable"):
        LoadCODPair()({"img_path": str(path)})


def test_mask_of_another_size_names_both(tmp_path):
    with pytest.raises(ValueError, match=r"m\.png .*\(5x4, its image is 7x6\)"):
        load(tmp_path, np.zeros((6, 7, 3), np.uint8), np.zeros((4, 5), np.uint8))


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(UnreadableFile, match=r"gone\.png cannot be read: No such file"):
        read_image(str(tmp_path / "gone.png"))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UnreadableFile, match=r"folder\.png cannot be read"):
        read_mask(str(tmp_path / "folder.png"))

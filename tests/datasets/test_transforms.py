"""Loading of odd files, geometry of image and mask together, and packing."""

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import RandomFlip, Resize

from codmoe.datasets.transforms import (
    LoadCODPair,
    PackCODInputs,
    RandomColour,
    RandomWarp,
    pair_results,
)
from codmoe.registry import TRANSFORMS


def blob(height=203, width=301):
    """A white ellipse off the centre, and its mask: (H, W, 3) and (H, W)."""
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (width // 3, height // 2), (width // 5, height // 4), 20, 0, 360, 1, -1)
    return np.repeat(mask[..., None] * 255, 3, axis=2), mask


def sample(*shape):
    return pair_results(*blob(*shape))


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


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
    made = sample()
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


@pytest.mark.parametrize("shape", [(203, 301), (97, 33), (448, 448)])
def test_mmcv_resize_and_flip_work_as_they_are(shape):
    pipeline = [Resize(scale=(448, 448), keep_ratio=False), RandomFlip(prob=1.0)]
    results = sample(*shape)
    for transform in pipeline:
        results = transform(results)
    assert results["img"].shape == (448, 448, 3) and results["gt_seg_map"].shape == (448, 448)
    assert results["gt_mask"].shape == shape and results["ori_shape"] == shape
    assert iou(results["img"][..., 0] > 127, results["gt_seg_map"] > 0) > 0.97
    assert results["img"][:, :224].sum() < results["img"][:, 224:].sum()  # the blob was left
    packed = PackCODInputs()(RandomColour()(results))
    assert packed["inputs"].is_contiguous() and packed["data_samples"].target.is_contiguous()


@pytest.mark.parametrize("shape", [(203, 301), (97, 33), (640, 480)])
def test_still_warp_is_a_resize(shape):
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 255, (*shape, 3), dtype=np.uint8), (0, 0), 3)
    mask = (image[..., 0] > 127).astype(np.uint8)
    still = RandomWarp(size=(160, 112), scale=(1, 1), rotate=0, translate=0)
    for warp in (still, RandomWarp(size=(160, 112), prob=0)):
        results = warp(pair_results(image, mask))
        expected = cv2.resize(image, (160, 112), interpolation=cv2.INTER_LINEAR)
        assert np.abs(results["img"].astype(int) - expected).max() <= 2
        nearest = cv2.resize(mask, (160, 112), interpolation=cv2.INTER_NEAREST_EXACT)
        assert (results["gt_seg_map"] != nearest).mean() < 0.02
        assert results["img_shape"] == (112, 160)


@pytest.mark.parametrize("shape", [(203, 301), (97, 33), (640, 480)])
def test_warp_moves_image_and_mask_together(shape):
    np.random.seed(0)
    warp = RandomWarp(size=(224, 160), scale=(0.5, 1.5), rotate=30, aspect=0.3, translate=0.2)
    seen = set()
    for _ in range(20):
        results = warp(sample(*shape))
        assert set(np.unique(results["gt_seg_map"])) <= {0, 1}
        assert iou(results["img"][..., 0] > 127, results["gt_seg_map"] > 0) > 0.97
        assert results["gt_mask"].shape == shape
        seen.add(int(results["gt_seg_map"].sum()))
    assert len(seen) > 15


def test_warp_scales_rotates_and_shifts_as_far_as_told():
    np.random.seed(0)
    areas = []
    for _ in range(40):
        warp = RandomWarp(size=(200, 200), scale=(0.8, 1.25), rotate=10, translate=0.1)
        matrix = warp.matrix(200, 200)
        linear = matrix[:, :2]
        areas.append(np.sqrt(np.linalg.det(linear)))
        assert abs(np.degrees(np.arctan2(linear[1, 0], linear[0, 0]))) <= 10
        assert (np.abs(linear @ [99.5, 99.5] + matrix[:, 2] - 99.5) <= 20 + 1e-6).all()
    assert 0.8 <= min(areas) < 0.9 and 1.1 < max(areas) <= 1.25


def test_colour_jitter_leaves_shape_type_and_grey():
    np.random.seed(0)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (31, 17, 3), dtype=np.uint8)
    jitter = RandomColour(brightness=0.4, contrast=0.4, saturation=0.5, hue=0.1)
    out = jitter({"img": image.copy()})["img"]
    assert out.dtype == np.uint8 and out.shape == image.shape and (out != image).any()
    grey = np.repeat(image[..., :1], 3, axis=2)
    changed = jitter({"img": grey})["img"].astype(int)
    assert (changed.max(axis=2) - changed.min(axis=2)).max() <= 1
    for still in (RandomColour(0, 0, 0, 0), RandomColour(prob=0)):
        assert np.abs(still({"img": image})["img"].astype(int) - image).max() <= 1
    assert jitter({"img": image[:, ::-1]})["img"].shape == image.shape


def test_hue_turns_red_into_green():
    jitter = RandomColour(0, 0, 0, hue=1 / 3)
    red = np.tile(np.array([255, 0, 0], np.uint8), (2, 2, 1))
    np.random.seed(0)
    hues = []
    for _ in range(300):
        pixel = jitter({"img": red})["img"][0, 0].astype(int)
        hues.append(pixel)
    greenest = max(hues, key=lambda p: p[1] - p[0] - p[2])
    assert greenest[1] > 240 and greenest[0] < 25


def test_transforms_follow_numpys_global_seed():
    def run():
        np.random.seed(7)
        return RandomColour()(RandomWarp()(sample()))["img"]

    assert (run() == run()).all()


def test_pack_types_shapes_and_metainfo():
    results = dict(sample(), img_path="a.jpg", mask_path="a.png", stem="a", dataset="d", kind="k")
    packed = PackCODInputs(keep_original=True)(RandomWarp(size=(64, 48))(results))
    inputs, data = packed["inputs"], packed["data_samples"]
    assert inputs.dtype == data.target.dtype == data.gt_mask.dtype == torch.uint8
    assert inputs.shape == (3, 48, 64) and data.target.shape == (1, 48, 64)
    assert data.gt_mask.shape == data.ori_shape == (203, 301) and data.img_shape == (48, 64)
    assert (data.stem, data.dataset, data.kind, data.img_path) == ("a", "d", "k", "a.jpg")
    assert "gt_mask" not in PackCODInputs()(results)["data_samples"]
    inputs.zero_(), data.target.zero_()
    assert results["img"].any() and results["gt_seg_map"].any()


@pytest.mark.parametrize(
    "config, message",
    [
        ({"type": "RandomWarp", "size": 448}, r"size=448.*\(width, height\)"),
        ({"type": "RandomWarp", "scale": (1.5, 0.5)}, r"scale=.*\(low, high\)"),
        ({"type": "RandomWarp", "rotate": -5}, "rotate=-5"),
        ({"type": "RandomColour", "hue": 0.7}, r"hue=0\.7.*\[0, 0\.5\]"),
        ({"type": "RandomColor"}, "RandomColour"),
        ({"type": "RandomWarp", "rotation": 5}, "'rotate'"),
    ],
)
def test_user_mistakes(config, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(config)

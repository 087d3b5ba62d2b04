"""The warp: what it draws, what it keeps of the object, and what lies beyond the border."""

import cv2
import numpy as np
import pytest
from folders import disc
from mmcv.transforms import RandomFlip, Resize

from codmoe.datasets.transforms import PackCODInputs, RandomColour, RandomWarp, pair_results

SHAPES = [(203, 301), (97, 33), (640, 480)]
STILL = dict(scale=(1, 1), rotate=0, translate=0)


def blob(height, width):
    """A sample of a white ellipse left of the middle."""
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (width // 3, height // 2), (width // 5, height // 4), 20, 0, 360, 1, -1)
    return pair_results(np.repeat(mask[..., None] * 255, 3, axis=2), mask)


def noise(height, width, sigma=3):
    """A smooth random image and where it is bright, for comparisons with OpenCV."""
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    image = cv2.GaussianBlur(pixels, (0, 0), sigma)
    return image, (image[..., 0] > 127).astype(np.uint8)


def iou(results):
    a, b = results["img"][..., 0] > 127, results["gt_seg_map"] > 0
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("shape", [*SHAPES, (448, 448)])
def test_mmcv_resize_and_flip_work_as_they_are(shape):
    results = blob(*shape)
    for transform in (Resize(scale=(448, 448), keep_ratio=False), RandomFlip(prob=1.0)):
        results = transform(results)
    assert results["img"].shape == (448, 448, 3) and results["gt_seg_map"].shape == (448, 448)
    assert results["gt_mask"].shape == shape and results["ori_shape"] == shape
    assert iou(results) > 0.97
    assert results["img"][:, :224].sum() < results["img"][:, 224:].sum()  # the blob was left
    packed = PackCODInputs()(RandomColour()(results))
    assert packed["inputs"].is_contiguous() and packed["data_samples"].target.is_contiguous()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [STILL, dict(prob=0)])
def test_still_warp_is_a_resize(shape, options):
    image, mask = noise(*shape)
    results = RandomWarp(size=(160, 112), **options)(pair_results(image, mask))
    expected = cv2.resize(image, (160, 112), interpolation=cv2.INTER_LINEAR)
    assert np.abs(results["img"].astype(int) - expected).max() <= 2
    nearest = cv2.resize(mask, (160, 112), interpolation=cv2.INTER_NEAREST_EXACT)
    assert (results["gt_seg_map"] != nearest).mean() < 0.02
    assert results["img_shape"] == (112, 160)


@pytest.mark.parametrize("shape", SHAPES)
def test_warp_moves_image_and_mask_together(shape):
    np.random.seed(0)
    warp = RandomWarp(size=(224, 160), scale=(0.5, 1.5), rotate=30, aspect=0.3, translate=0.2)
    seen = set()
    for _ in range(20):
        results = warp(blob(*shape))
        assert set(np.unique(results["gt_seg_map"])) <= {0, 1}
        assert iou(results) > 0.97 and results["gt_mask"].shape == shape
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


def share_kept(matrix, mask, size):
    """By brute force, of every pixel of the object."""
    y, x = np.nonzero(mask)
    u, v = matrix[:, :2] @ np.stack([x, y]) + matrix[:, 2:]
    return ((u > -0.5) & (v > -0.5) & (u < size[0] - 0.5) & (v < size[1] - 0.5)).mean()


@pytest.mark.parametrize("radius", [2, 18, 58])
def test_crop_keeps_the_stated_share_of_the_object(radius):
    np.random.seed(0)
    _, mask = disc(centre=(0.7, 0.5), radius=radius)
    wild = dict(size=(64, 64), scale=(1, 3), rotate=30, crop=True)
    keeping, free = RandomWarp(**wild, keep_object=0.75), RandomWarp(**wild)
    kept, zooms, lost = [], [], 0
    for _ in range(150):
        matrix = keeping.matrix(120, 160, mask)
        kept.append(share_kept(matrix, mask, (64, 64)))
        zooms.append(np.sqrt(np.linalg.det(matrix[:, :2]) * 160 * 120 / 64**2))
        lost += share_kept(free.matrix(120, 160, mask), mask, (64, 64)) < 0.75
    # Points are float32, so a pixel on the very edge may count otherwise.
    assert min(kept) > 0.745
    assert lost > 30  # what it guards against does happen
    assert len(set(np.round(zooms, 3))) > 40  # and it is still random


def test_crop_of_an_image_without_object_is_any_crop():
    np.random.seed(0)
    empty = np.zeros((120, 160), np.uint8)
    warp = RandomWarp(size=(64, 64), scale=(2, 2), rotate=0, translate=0, crop=True, keep_object=1)
    corners = np.array([warp.matrix(120, 160, empty)[:, 2] for _ in range(200)])
    # The window of half the side reaches from one border of the image to the other.
    low, high = corners.min(0), corners.max(0)
    assert np.all(high > -4) and np.all(low < -60) and np.all(high < 1) and np.all(low > -66)


@pytest.mark.parametrize(("key", "code"), [("flip", 1), ("flip_vertical", 0)])
def test_flips_inside_the_warp_are_flips(key, code):
    image, mask = noise(120, 160)
    out = RandomWarp(size=(160, 120), **STILL, **{key: 1.0})(pair_results(image, mask))
    assert np.array_equal(out["img"], cv2.flip(image, code))
    assert np.array_equal(out["gt_seg_map"], cv2.flip(mask, code))
    np.random.seed(0)
    half = RandomWarp(size=(160, 120), **STILL, **{key: 0.5})
    turned = [not np.array_equal(half(pair_results(image, mask))["img"], image) for _ in range(60)]
    assert 15 < sum(turned) < 45


@pytest.mark.parametrize("scale", [0.1, 0.7, 1.0, 1.6])
def test_beyond_the_border_lies_the_mirrored_image(scale):
    np.random.seed(0)
    image, mask = noise(50, 70, 2)
    warp = RandomWarp(size=(96, 64), scale=(scale, scale), rotate=25, translate=0.2)
    for _ in range(10):
        state = np.random.get_state()
        out = warp(pair_results(image, mask))
        np.random.set_state(state)
        matrix = warp.matrix(50, 70)
        for source, result, method in (
            (image, out["img"], cv2.INTER_LINEAR),
            (mask, out["gt_seg_map"], cv2.INTER_NEAREST),
        ):
            expected = cv2.warpAffine(
                source, matrix, (96, 64), flags=method, borderMode=cv2.BORDER_REFLECT
            )
            difference = np.abs(result.astype(int) - expected)
            # Coordinates are rounded to 1/32 pixel: another origin may round the other way.
            assert difference.mean() < 0.6 and (difference > 12).mean() < 0.01


def test_transforms_follow_numpys_global_seed():
    def run():
        np.random.seed(7)
        return RandomColour()(RandomWarp()(blob(203, 301)))["img"]

    assert (run() == run()).all()

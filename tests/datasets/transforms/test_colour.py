"""Colour jitter, blur and JPEG."""

import numpy as np
import pytest

from codmoe.datasets.transforms import RandomBlur, RandomColour, RandomJPEG


def test_colour_jitter_leaves_shape_type_and_grey():
    np.random.seed(0)
    image = np.random.default_rng(0).integers(0, 255, (31, 17, 3), dtype=np.uint8)
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
    hues = [jitter({"img": red})["img"][0, 0].astype(int) for _ in range(300)]
    greenest = max(hues, key=lambda p: p[1] - p[0] - p[2])
    assert greenest[1] > 240 and greenest[0] < 25


def test_blur_spreads_as_far_as_told_and_keeps_brightness():
    np.random.seed(0)
    image = np.zeros((61, 61, 3), np.uint8)
    image[30, 30] = 255
    image = np.repeat(np.repeat(image, 3, 0), 3, 1)  # bright enough to be measured after blurring
    y, x = np.mgrid[:183, :183] - 91.0
    lines = 0
    for _ in range(20):
        out = RandomBlur(sigma=(4, 4), prob=1)({"img": image.copy()})["img"][..., 0].astype(float)
        spread = np.cov(np.stack([x.ravel(), y.ravel()]), aweights=out.ravel() + 1e-9)
        wide, thin = np.linalg.eigvalsh(spread)[::-1]
        assert wide == pytest.approx(16 + 0.67, rel=0.25)
        lines += thin < 4
    assert 4 < lines < 16  # half of them blur along a line
    grey = np.full((40, 40, 3), 77, np.uint8)
    assert (RandomBlur(prob=1)({"img": grey})["img"] == 77).all()


def test_jpeg_loses_detail_with_quality_but_not_colour():
    np.random.seed(0)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    errors = [
        np.abs(RandomJPEG((q, q), 1)({"img": noise})["img"].astype(int) - noise).mean()
        for q in (20, 60, 95)
    ]
    assert errors[0] > errors[1] > errors[2] > 0
    red = np.tile(np.array([200, 30, 60], np.uint8), (32, 32, 1))
    out = RandomJPEG((60, 60), 1)({"img": red})["img"].astype(int)
    assert out.shape == red.shape and np.abs(out - red).max() < 8

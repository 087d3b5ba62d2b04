"""Copies are found whatever was done to them, and unlike images are not."""

import cv2
import numpy as np
import pytest
from folders import picture

from codmoe.datasets.doctor.similarity import copies, groups, sketch

PICTURES = [picture(seed, (240, 320))[0] for seed in range(30)]
SKETCHES = np.stack([sketch(image) for image in PICTURES])


def jpeg(image, quality=80):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)


def half(image):
    return cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def hue(image):
    turned = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    turned[..., 0] = (turned[..., 0].astype(int) + 60) % 180
    return cv2.cvtColor(turned, cv2.COLOR_HSV2BGR)


def caption(image):
    bar = np.full((29, 320, 3), 255, np.uint8)
    cv2.putText(bar, "A crab hides", (9, 20), 0, 0.6, (0, 0, 0), 2)
    return np.vstack([image, bar])


ALWAYS = {"quality": lambda i: jpeg(i, 30), "size": half, "channels": lambda i: i[..., ::-1]}
ALWAYS |= {"hue": hue}
ALTERED = {
    "darker": lambda i: (255 * (i / 255) ** 1.6).astype(np.uint8),
    "mirrored": lambda i: i[:, ::-1],
    "cropped": lambda i: i[12:-12, 16:-16],
    "cropped at one side": lambda i: i[:, 16:],
    "captioned": caption,
    "all at once": lambda i: jpeg(half(hue(caption(i[:, ::-1]))), 60),
}


@pytest.mark.parametrize("change", ALWAYS | ALTERED)
def test_a_copy_in_training_is_found(change):
    changed = np.stack([sketch((ALWAYS | ALTERED)[change](image)) for image in PICTURES])
    pairs = copies(changed, SKETCHES, altered=True).tolist()
    assert pairs == [[i, i] for i in range(30)]


@pytest.mark.parametrize("change", ALWAYS)
def test_what_looks_alike_within_a_set_is_found(change):
    both = np.concatenate([SKETCHES, [sketch(ALWAYS[change](image)) for image in PICTURES]])
    assert copies(both, both, altered=False).tolist() == [[i, i + 30] for i in range(30)]


def test_even_images_have_no_look():
    rng = np.random.default_rng(0)
    even = [np.clip(128 + rng.integers(-2, 3, (60, 80, 3)), 0, 255) for _ in range(50)]
    even = np.stack([sketch(image.astype(np.uint8)) for image in even])
    assert not len(copies(even, even, altered=True))


def test_groups():
    assert groups(np.array([[0, 3], [3, 9], [1, 2]])) == [[0, 3, 9], [1, 2]]
    assert groups(np.empty((0, 2), int)) == []

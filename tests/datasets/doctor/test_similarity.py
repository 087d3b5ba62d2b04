"""Look-alikes are found whatever was done to the file, and unlike images are not."""

import time

import cv2
import numpy as np
import pytest
from folders import picture

from codmoe.datasets.doctor.similarity import bit_count, groups, look_alikes, perceptual_hash


def measured(images):
    small = [
        cv2.resize(cv2.cvtColor(i, cv2.COLOR_BGR2GRAY), (32, 32), interpolation=3) for i in images
    ]
    return np.array([perceptual_hash(s) for s in small], np.uint64), np.stack(small)


def jpeg(image, quality):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)


PICTURES = [picture(seed, (240, 320))[0] for seed in range(40)]


@pytest.mark.parametrize(
    "change",
    [
        lambda i: jpeg(i, 30),
        lambda i: cv2.resize(i, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA),
        lambda i: cv2.convertScaleAbs(i, alpha=0.8, beta=15),
        lambda i: cv2.cvtColor(cv2.cvtColor(i, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR),
    ],
    ids=["quality", "size", "brightness", "grey"],
)
def test_a_copy_is_found(change):
    pairs = look_alikes(*measured([*PICTURES, *map(change, PICTURES)]))
    assert pairs.tolist() == [[i, i + 40] for i in range(40)]


def test_unlike_and_turned_images_are_not():
    turned = [image[::-1, ::-1] for image in PICTURES]
    assert not len(look_alikes(*measured([*PICTURES, *turned])))


def test_even_images_have_no_look():
    rng = np.random.default_rng(0)
    noise = rng.integers(-2, 3, (50, 60, 80, 3))
    even = [np.clip(128 + n, 0, 255).astype(np.uint8) for n in noise]
    assert not len(look_alikes(*measured([*even, np.zeros_like(even[0]), np.zeros_like(even[0])])))


def test_as_all_pairs_would_find():
    rng = np.random.default_rng(1)
    base = rng.integers(0, 2**63, 60, dtype=np.uint64)
    flips = [sum(1 << int(b) for b in rng.choice(64, n, replace=False)) for n in range(8)] * 8
    codes = np.concatenate([base, base ^ np.array(flips[:60], np.uint64)])
    # One thumbnail for all, so that the hashes alone decide.
    thumbnails = np.repeat(measured(PICTURES[:1])[1], 120, axis=0)
    far = bit_count(codes[:, None] ^ codes[None])
    expected = [[i, j] for i in range(120) for j in range(i + 1, 120) if far[i, j] <= 5]
    assert look_alikes(codes, thumbnails).tolist() == expected and len(expected) == 46


def test_twenty_thousand_in_seconds():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (20_000, 4, 4), dtype=np.uint8)
    thumbnails = np.stack([cv2.resize(c, (32, 32), interpolation=cv2.INTER_CUBIC) for c in coarse])
    thumbnails[-10:] = thumbnails[:10]
    codes = np.array([perceptual_hash(t) for t in thumbnails], np.uint64)
    started = time.process_time()
    pairs = look_alikes(codes, thumbnails)
    assert time.process_time() - started < 10
    assert {(i, 19_990 + i) for i in range(10)} <= {tuple(pair) for pair in pairs.tolist()}


def test_groups():
    assert groups(np.array([[0, 3], [3, 9], [1, 2]])) == [[0, 3, 9], [1, 2]]
    assert groups(np.empty((0, 2), int)) == []
    assert bit_count(np.array([0, 1, 2**64 - 1], np.uint64)).tolist() == [0, 1, 64]

import cv2
import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt

from codmoe.evaluation.measures.truth import GroundTruthCache, boundary_band, ground_truth


def masks(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield rng.random(rng.integers(1, 40, 2)) < rng.choice([0.002, 0.02, 0.1, 0.3, 0.6, 0.95])


def test_distances_and_nearest_pixels_are_scipys():
    seen = 0
    for mask in masks(400):
        truth = ground_truth(mask)
        assert np.array_equal(truth.mask, mask) and truth.area == mask.sum()
        if not mask.any():
            assert not truth.squared_distance.any() and not len(truth.nearness.band)
            assert not truth.weight.any()
            continue
        distance, indices = distance_transform_edt(~mask, return_indices=True)
        assert np.array_equal(np.rint(distance**2), truth.squared_distance)
        weight = np.where(mask, 0, 2 - 0.5 ** (distance / 5))
        np.testing.assert_allclose(truth.weight, weight, rtol=0, atol=2e-7)
        flat = (indices[0] * mask.shape[1] + indices[1]).ravel()
        assert np.array_equal(flat[truth.nearness.band], truth.nearness.nearest)
        padded = cv2.dilate(np.pad(mask.astype(np.uint8), 3), np.ones((7, 7)))
        near = padded[3:-3, 3:-3].astype(bool) & ~mask
        assert np.array_equal(np.flatnonzero(near), truth.nearness.band)
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        assert truth.box == (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
        seen += len(truth.nearness.band)
    assert seen > 10_000


def test_far_distances_are_capped():
    mask = np.zeros((4, 400), bool)
    mask[:, 0] = True
    squared = ground_truth(mask).squared_distance
    assert squared[0, 127] == 127**2 and (squared[0, 128:] == 128**2).all()
    assert abs(ground_truth(mask).weight[0, 128:] - 2).max() < 5e-8


def test_boundary_band_is_the_mask_less_its_erosion():
    for mask in masks(60, seed=1):
        for width in (1, 2, 5):
            eroded = binary_erosion(mask, np.ones((3, 3)), iterations=width)
            assert np.array_equal(boundary_band(mask.astype(np.uint8), width), mask & ~eroded)
    # 2 % of the diagonal, rounded: 26.5 pixels here.
    assert ground_truth(np.ones((1060, 800), bool)).boundary_width == 27
    assert ground_truth(np.ones((1050, 800), bool)).boundary_width == 26


def test_the_centroid_is_rounded_as_numpy_rounds_it():
    for mask in masks(100, seed=2):
        if mask.any():
            row, column = np.argwhere(mask).mean(0).round()
            assert ground_truth(mask).split == (row + 1, column + 1)


def test_the_cache_knows_masks_by_content():
    cache = GroundTruthCache()
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:20] = True
    first = cache(mask)
    assert cache(mask.astype(np.uint8)) is first and cache(mask.copy()) is first
    other = mask.copy()
    other[0, 0] = True
    # The same bytes in another shape are another mask.
    assert cache(other) is not first and cache(mask.reshape(30, 20)).shape == (30, 20)
    assert (cache.hits, cache.misses) == (2, 3)


def squares(count):
    masks = [np.ones((50, 50), bool) for _ in range(count)]
    for i, mask in enumerate(masks):
        mask[0, :i] = False
    return masks


def test_the_cache_keeps_within_its_memory():
    cache = GroundTruthCache(max_bytes=10 * 2500)
    truths = [cache(mask) for mask in squares(8)]
    assert len(cache) == 8 and cache.nbytes == 8 * 2500
    for truth in truths:
        assert truth.weight.shape == (50, 50)  # now of 12,500 bytes
    for mask in squares(8):
        cache(mask)
    assert 1 <= len(cache) < 8 and cache.nbytes <= cache.max_bytes


def test_a_set_larger_than_the_memory_is_kept_in_part():
    cache = GroundTruthCache(max_bytes=30 * 2500)
    for _ in range(4):  # epochs
        for mask in squares(40):
            cache(mask)
    assert cache.hits >= 3 * 30 and len(cache) == 30


def test_masks_of_a_set_that_is_over_make_room():
    cache = GroundTruthCache(max_bytes=10 * 2500)
    for mask in squares(10):
        cache(~mask)
    for _ in range(12):
        for mask in squares(10):
            cache(mask)
    hits = cache.hits
    for mask in squares(10):
        cache(mask)
    assert cache.hits - hits == 10

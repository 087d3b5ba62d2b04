import numpy as np
import pytest
import torch
from pairs import random_pairs, reference

from codmoe.evaluation.measures import CURVES, ground_truth, measure_maps

SHARED = ("Sm", "wFm", "MAE", "BER", "adpEm", "adpFm", "adpIoU", "adpDice", "curves")
TOLERANCE = 1e-6


def as_maps(pairs):
    maps = [torch.from_numpy(level) / 255 for level, _ in pairs]
    return maps, [ground_truth(truth) for _, truth in pairs]


def close(ours, theirs):
    # The E-measure of a one-pixel image is 4.5e15 in PySODMetrics: relative where above 1.
    return np.all(np.abs(ours - theirs) <= TOLERANCE * np.maximum(1, np.abs(theirs)))


def test_equals_pysodmetrics_on_2000_pairs():
    pairs = list(random_pairs(2000))
    results = measure_maps(*as_maps(pairs))
    undefined = 0
    for pair, ours in zip(pairs, results, strict=True):
        theirs = reference([pair])
        for key in SHARED:
            if key == "Sm" and np.isnan(theirs["Sm"]):
                # Purposely different: a quadrant without pixels counts nothing, not NaN.
                row, column = ground_truth(pair[1]).split
                assert row == pair[1].shape[0] or column == pair[1].shape[1]
                assert 0 <= ours["Sm"] <= 1
                undefined += 1
            else:
                assert close(ours[key], theirs[key]), (key, pair)
    assert 50 < undefined < 500


def test_an_empty_quadrant_counts_nothing():
    # The same object one column further from the border: the quadrants at the right exist.
    truth = np.zeros((12, 9), bool)
    truth[3:9, -2:] = True
    level = np.where(truth, 230, 20).astype(np.uint8)
    level[5, 5] = 90
    (wide,) = measure_maps(*as_maps([(level, truth)]))
    truth[:, -2] = False
    (narrow,) = measure_maps(*as_maps([(level, truth)]))
    assert np.isnan(reference([(level, truth)])["Sm"]) and 0.5 < narrow["Sm"] < wide["Sm"] < 1


@pytest.mark.parametrize(
    ("level", "chosen"),
    [
        # 2 * mean is exactly the middle level, of which numpy's rounded mean takes or leaves all.
        ([0, 144, 128, 144, 0, 144, 144, 0, 0, 0, 0], 4),
        ([0, 14, 12, 12, 14, 0, 0, 14, 0, 0, 0], 3),
        ([0, 200, 100, 0, 0, 0, 0, 100, 100, 0], 4),
    ],
)
def test_the_adaptive_threshold_at_a_level(level, chosen):
    level, truth = np.array([level], np.uint8), np.ones((1, len(level)), bool)
    (ours,) = measure_maps(*as_maps([(level, truth)]))
    assert ours["adpIoU"] == pytest.approx(chosen / level.size)
    assert ours["adpIoU"] == pytest.approx(reference([(level, truth)])["adpIoU"])
    # Beside a larger map, the pixels outside of it are not in the mean.
    larger = (np.full((5, 20), 90, np.uint8), np.ones((5, 20), bool))
    ours, _ = measure_maps(*as_maps([(level, truth), larger]), chunk_pixels=10**6)
    assert ours["adpIoU"] == pytest.approx(chosen / level.size)


@pytest.mark.parametrize("full", [True, False])
def test_maps_of_all_sizes_share_a_canvas(full):
    pairs = list(random_pairs(120, seed=7, largest=90))
    maps, truths = as_maps(pairs)
    alone = measure_maps(maps, truths, full=full)
    together = measure_maps(maps, truths, full=full, chunk_pixels=90 * 90 * 25)
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            tolerance = 2e-7 if key == "wFm" else 1e-12  # float32 on the host
            np.testing.assert_allclose(value, other[key], rtol=0, atol=tolerance, err_msg=key)


def test_boundary_iou_by_hand():
    # 50 x 50: the band is round(0.02 * 70.7) = 1 pixel wide.
    truth = np.zeros((50, 50), bool)
    truth[10:20, 10:20] = True  # 36 pixels of boundary
    shifted = np.roll(truth, 1, axis=1)  # the two rings share 2 * 9 + 0 pixels
    (measures,) = measure_maps(*as_maps([(shifted * np.uint8(255), truth)]))
    assert measures["BIoU"] == pytest.approx(18 / (36 + 36 - 18))
    assert measures["IoU"] == pytest.approx(90 / 110)


def test_masks_by_hand():
    level = np.array([[255, 255, 0, 0, 0]], np.uint8)
    truth = np.array([[False, True, True, False, False]])
    (measures,) = measure_maps(*as_maps([(level, truth)]))
    assert measures["IoU"] == pytest.approx(1 / 3) and measures["Dice"] == pytest.approx(1 / 2)
    assert measures["FBIoU"] == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert measures["BER"] == pytest.approx(1 - (1 / 2 + 2 / 3) / 2)
    assert measures["MAE"] == pytest.approx(2 / 5)
    assert measures["counts"].tolist()[:4] == [1, 1, 2, 5]
    precision = measures["curves"][CURVES.index("Precision")]
    assert precision[0] == pytest.approx(1 / 2) and precision[-1] == pytest.approx(2 / 5)


def test_maps_are_normalised():
    level = np.array([[60, 50, 0, 0]], np.uint8)
    truth = np.array([[True, True, False, False]])
    (measures,) = measure_maps(*as_maps([(level, truth)]))
    assert measures["MAE"] == pytest.approx((1 - 50 / 60) / 4)
    recall = measures["curves"][CURVES.index("Recall")]
    assert recall[0] == 0.5 and recall[255 - 213] == 0.5 and recall[255 - 212] == 1


def test_the_headline_reads_the_probability_and_not_the_8_bit_map():
    truth = np.ones((1, 2), bool)
    # Both round to level 128; only the second is above one half.
    for dtype in (torch.float32, torch.float64):
        above = torch.nextafter(torch.tensor(0.5, dtype=dtype), torch.tensor(1.0, dtype=dtype))
        prob = torch.stack([torch.full_like(above, 0.5), above])[None]
        for chunk_pixels in (None, 0):
            (measures,) = measure_maps([prob], [ground_truth(truth)], chunk_pixels=chunk_pixels)
            assert measures["IoU"] == 0.5


def test_nothing_is_changed_in_place():
    (pair,) = random_pairs(1, seed=3)
    maps, truths = as_maps([pair])
    kept, codes = maps[0].clone(), truths[0].codes.copy()
    first = measure_maps(maps, truths)
    assert torch.equal(maps[0], kept) and np.array_equal(truths[0].codes, codes)
    again = measure_maps(maps, truths)
    assert first[0]["wFm"] == again[0]["wFm"] and measure_maps([], []) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_agrees():
    maps, truths = as_maps(list(random_pairs(300, seed=11, largest=120)))
    here = measure_maps(maps, truths)
    there = measure_maps([prob.cuda() for prob in maps], truths)
    for one, other in zip(here, there, strict=True):
        for key, value in one.items():
            np.testing.assert_allclose(value, other[key], rtol=0, atol=1e-6, err_msg=key)

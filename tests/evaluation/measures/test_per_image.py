import numpy as np
import pytest
import torch
from pairs import reference

from codmoe.evaluation.conventions import AGGREGATE_KEYS, EXTRA_KEYS
from codmoe.evaluation.measures import (
    CURVES,
    GroundTruthCache,
    aggregate,
    batch_measures,
    best_expert,
    find_truths,
    image_measures,
    image_scalars,
    iou_and_dice,
    mean_curves,
    uniform_probability,
)


def blobs(seed, height, width):
    """A smooth probability map and a mask that overlaps with it."""
    noise = np.random.default_rng(seed).random((2, height, width))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    gt = ((x - 0.1) ** 2 + (y + 0.1 * seed / 3) ** 2 < 0.3).astype(np.uint8)
    prob = 1 / (1 + np.exp(8 * (x**2 + y**2 - 0.3) + 2 * noise[0]))
    # Not reaching 0 and 1, so that normalisation makes a difference.
    return (0.1 + 0.7 * prob).astype(np.float32), gt


def eight_bit(pairs):
    return [(np.round(prob * 255).astype(np.uint8), gt.astype(bool)) for prob, gt in pairs]


@pytest.mark.parametrize("backend", ["torch", "pysodmetrics"])
def test_equals_pysodmetrics_over_several_images(backend):
    pairs = [blobs(seed, 37 + 4 * seed, 53 - 3 * seed) for seed in range(4)]
    pairs += [(blobs(9, 21, 33)[0], np.zeros((21, 33), np.uint8))]
    pairs += [(blobs(9, 21, 33)[0], np.ones((21, 33), np.uint8))]
    pairs += [(np.zeros((21, 33), np.float32), blobs(1, 21, 33)[1])]
    images = batch_measures(*zip(*pairs, strict=True), backend=backend)
    row, expected = aggregate(images), reference(eight_bit(pairs))
    assert [*row] == [key for key in AGGREGATE_KEYS if key not in EXTRA_KEYS]
    assert row["n"] == len(pairs)
    curves = dict(zip(CURVES, expected.pop("curves"), strict=True))
    expected.pop("BER")  # PySODMetrics' is of the 8-bit map
    for key, value in expected.items():
        assert row[key] == pytest.approx(value, abs=1e-6), key
    found = mean_curves(images)
    assert list(found) == ["threshold", *CURVES]
    assert found["threshold"][0] == 1 and found["threshold"][255] == 0
    for name, curve in curves.items():
        np.testing.assert_allclose(found[name], curve, atol=2e-6, err_msg=name)


def test_the_backends_agree_on_everything():
    pairs = [blobs(seed, 60, 47) for seed in range(5)] + [(blobs(1, 8, 9)[0], np.zeros((8, 9)))]
    ours, theirs = (
        batch_measures(*zip(*pairs, strict=True), backend=backend)
        for backend in ("torch", "pysodmetrics")
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_allclose(one[key], other[key], atol=1e-6, err_msg=key)
    one, other = aggregate(ours), aggregate(theirs)
    assert one == pytest.approx(other, abs=1e-6)
    with pytest.raises(ValueError, match="backend='matlab' is unknown; use one of torch, pysod"):
        image_measures(*pairs[0], backend="matlab")


def test_pooled_measures_are_of_all_pixels_together():
    pairs = [blobs(seed, 20 + 9 * seed, 31) for seed in range(4)]
    row = aggregate([image_measures(prob, gt) for prob, gt in pairs])
    masks = np.concatenate([prob.ravel() > 0.5 for prob, _ in pairs])
    truth = np.concatenate([gt.ravel() > 0 for _, gt in pairs])
    iou = (masks & truth).sum() / (masks | truth).sum()
    background = (~masks & ~truth).sum() / (~masks | ~truth).sum()
    assert row["IoU_pooled"] == pytest.approx(iou) != row["IoU"]
    assert row["Dice_pooled"] == pytest.approx(2 * iou / (1 + iou))
    assert row["FBIoU_pooled"] == pytest.approx((iou + background) / 2)
    rates = masks[truth].mean() + (~masks[~truth]).mean()
    assert row["BER_pooled"] == pytest.approx(1 - rates / 2)
    counts = np.sum([image_measures(prob, gt)["counts"] for prob, gt in pairs], axis=0)
    assert row["BIoU_pooled"] == pytest.approx(counts[4] / counts[5]) != row["BIoU"]
    error = [image_measures(prob, gt, full=False)["MAE"] * gt.size for prob, gt in pairs]
    assert row["MAE_pooled"] == pytest.approx(sum(error) / len(truth))


@pytest.mark.parametrize(
    ("prob", "gt", "iou", "dice"),
    [
        ([[0.9, 0.9, 0.1, 0.1]], [[0, 1, 1, 0]], 1 / 3, 1 / 2),
        ([[0.9, 0.6, 0.4, 0.1]], [[1, 1, 0, 0]], 1, 1),
        ([[0.5, 0.5, 0.5, 0.5]], [[1, 1, 0, 0]], 0, 0),  # strictly above 0.5
        ([[0.1, 0.2, 0.3, 0.4]], [[0, 0, 0, 0]], 1, 1),  # both empty
        ([[0.1, 0.2, 0.3, 0.9]], [[0, 0, 0, 0]], 0, 0),
        ([[0.1, 0.2, 0.3, 0.4]], [[0, 0, 0, 1]], 0, 0),  # normalised it would be 1/2 and 2/3
    ],
)
def test_iou_and_dice_by_hand(prob, gt, iou, dice):
    prob, gt = torch.tensor(prob), torch.tensor(gt, dtype=torch.uint8)
    assert iou_and_dice(prob, gt) == pytest.approx((iou, dice))
    measures = image_measures(prob, gt, full=False)
    assert (measures["IoU"], measures["Dice"]) == pytest.approx((iou, dice))


def test_fast_measures_have_the_same_values():
    prob, gt = blobs(2, 41, 27)
    fast, full = image_measures(prob, gt, full=False), image_measures(prob, gt)
    assert {k: fast[k] for k in fast if k != "by_threshold"} == {
        key: full[key] for key in ("IoU", "Dice", "MAE")
    }
    assert list(aggregate([fast, fast])) == ["MAE", "IoU", "Dice", "n"]
    with pytest.raises(ValueError, match="together"):
        aggregate([fast, full])
    with pytest.raises(ValueError, match="no image"):
        aggregate([])


def test_scalars_of_one_image_average_to_the_row():
    images = [image_measures(*blobs(seed, 30, 31)) for seed in range(3)]
    row, scalars = aggregate(images), [image_scalars(image) for image in images]
    of_a_set = {"maxEm", "maxFm", "maxIoU", "maxDice", "meanFm_PR", "maxFm_PR", "n"}
    of_a_set |= {key for key in row if key.endswith("_pooled")}
    assert set(scalars[0]) == set(row) - of_a_set
    for key in scalars[0]:
        assert row[key] == pytest.approx(np.mean([image[key] for image in scalars]), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.bool])
def test_dtypes(dtype):
    prob, gt = (torch.tensor(array) for array in blobs(0, 20, 24))
    measures = image_measures((prob > 0.5).to(dtype), gt.bool())
    assert measures["IoU"] == pytest.approx(image_measures(prob, gt)["IoU"])


@pytest.mark.parametrize(
    ("prob", "gt", "words"),
    [
        (np.zeros((4, 5)), np.zeros((5, 4)), "the same \\(H, W\\)"),
        (np.zeros((1, 4, 5)), np.zeros((1, 4, 5)), "must be \\(H, W\\)"),
        (np.zeros((0, 5)), np.zeros((0, 5)), "must be \\(H, W\\)"),
        (np.full((4, 5), -3.0), np.zeros((4, 5)), "sigmoid"),
        (np.full((4, 5), np.nan), np.zeros((4, 5)), "sigmoid"),
        (np.zeros((4, 5)), np.full((4, 5), 255), "0/255"),
        (np.zeros((1, 3)), np.array([[0, 0.3, 1]]), "0 and 1 only"),
    ],
)
def test_mistakes_are_named(prob, gt, words):
    with pytest.raises(ValueError, match=words):
        image_measures(prob, gt)


def test_arrays_of_any_layout():
    prob, gt = blobs(3, 40, 30)
    expected = image_measures(prob, gt)
    flipped = image_measures(prob[::-1], gt[::-1])
    assert flipped["IoU"] == expected["IoU"] and flipped["MAE"] == pytest.approx(expected["MAE"])
    prob.flags.writeable = False
    for same in (np.asfortranarray(prob), prob.astype(np.longdouble), prob):
        assert image_measures(same, gt)["wFm"] == pytest.approx(expected["wFm"])


def test_masks_are_looked_up_once_each_and_by_several_threads():
    cache = GroundTruthCache()
    masks = [blobs(seed, 40, 30)[1] for seed in range(6)]
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = find_truths([mask for mask in masks for _ in range(7)], cache=cache)
    finally:
        torch.set_num_threads(threads)
    assert (cache.hits, cache.misses) == (0, 6) and len(found) == 42
    assert [truth.area for truth in found[::7]] == [mask.sum() for mask in masks]
    assert all(truth is found[i // 7 * 7] for i, truth in enumerate(found))


def test_uniform_and_oracle_by_hand():
    probs = {"a": torch.tensor([[0.2, 0.8]]), "b": torch.tensor([[0.6, 1.0]])}
    np.testing.assert_allclose(uniform_probability(probs), [[0.4, 0.9]], atol=1e-6)
    assert best_expert({"a": 0.3, "b": 0.7, "c": 0.7}) == "b"

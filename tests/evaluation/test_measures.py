import numpy as np
import py_sod_metrics as sod
import pytest
import torch

from codmoe.evaluation.measures import (
    AGGREGATE_KEYS,
    CONVENTIONS,
    aggregate,
    best_expert,
    image_measures,
    image_scalars,
    iou_and_dice,
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


def reference(pairs):
    """PySODMetrics as its users run it: one object over all images, then get_results."""
    handlers = {
        "fm": sod.FmeasureHandler(with_dynamic=True, with_adaptive=True, beta=0.3),
        "iou": sod.IOUHandler(with_dynamic=True, with_adaptive=False),
        "dice": sod.DICEHandler(with_dynamic=True, with_adaptive=False),
    }
    s, w, e, a, f = (
        sod.Smeasure(),
        sod.WeightedFmeasure(),
        sod.Emeasure(),
        sod.MAE(),
        sod.FmeasureV2(handlers),
    )
    for prob, gt in pairs:
        for metric in (s, w, e, a, f):
            metric.step(np.round(prob * 255).astype(np.uint8), gt * 255)
    em, results = e.get_results()["em"], f.get_results()
    fm, iou, dice = (results[key] for key in ("fm", "iou", "dice"))
    return {
        "Sm": s.get_results()["sm"],
        "wFm": w.get_results()["wfm"],
        "MAE": a.get_results()["mae"],
        "meanEm": em["curve"].mean(),
        "maxEm": em["curve"].max(),
        "adpEm": em["adp"],
        "meanFm": fm["dynamic"].mean(),
        "maxFm": fm["dynamic"].max(),
        "adpFm": fm["adaptive"],
        "mIoU": iou["dynamic"].mean(),
        "maxIoU": iou["dynamic"].max(),
        "mDice": dice["dynamic"].mean(),
    }


def test_equals_pysodmetrics_over_several_images():
    pairs = [blobs(seed, 37 + 4 * seed, 53 - 3 * seed) for seed in range(4)]
    pairs += [(blobs(9, 21, 33)[0], np.zeros((21, 33), np.uint8))]
    pairs += [(blobs(9, 21, 33)[0], np.ones((21, 33), np.uint8))]
    pairs += [(np.zeros((21, 33), np.float32), blobs(1, 21, 33)[1])]
    row = aggregate([image_measures(prob, gt) for prob, gt in pairs])
    assert tuple(row) == AGGREGATE_KEYS
    assert row["n"] == len(pairs)
    for key, value in reference(pairs).items():
        assert row[key] == pytest.approx(value, abs=1e-6), key


def test_every_number_has_its_convention():
    assert set(CONVENTIONS) == set(AGGREGATE_KEYS)
    assert all("\n" not in line for line in CONVENTIONS.values())


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
    assert fast == {key: full[key] for key in ("IoU", "Dice", "MAE")}
    assert list(aggregate([fast, fast])) == ["MAE", "IoU", "Dice", "n"]
    with pytest.raises(ValueError, match="together"):
        aggregate([fast, full])
    with pytest.raises(ValueError, match="no image"):
        aggregate([])


def test_scalars_of_one_image_average_to_the_row():
    images = [image_measures(*blobs(seed, 30, 31)) for seed in range(3)]
    row, scalars = aggregate(images), [image_scalars(image) for image in images]
    assert set(scalars[0]) == set(row) - {"maxEm", "maxFm", "maxIoU", "n"}
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
        (np.zeros((1, 4, 5)), np.zeros((1, 4, 5)), "the same \\(H, W\\)"),
        (np.full((4, 5), -3.0), np.zeros((4, 5)), "sigmoid"),
        (np.full((4, 5), np.nan), np.zeros((4, 5)), "sigmoid"),
        (np.zeros((4, 5)), np.full((4, 5), 255), "0/255"),
    ],
)
def test_mistakes_are_named(prob, gt, words):
    with pytest.raises(ValueError, match=words):
        image_measures(prob, gt)


def test_uniform_and_oracle_by_hand():
    probs = {"a": torch.tensor([[0.2, 0.8]]), "b": torch.tensor([[0.6, 1.0]])}
    np.testing.assert_allclose(uniform_probability(probs), [[0.4, 0.9]], atol=1e-6)
    assert best_expert({"a": 0.3, "b": 0.7, "c": 0.7}) == "b"

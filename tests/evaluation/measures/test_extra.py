"""The measures that the field has added since, held against PySODMetrics."""

import warnings

import numpy as np
import pytest
from pairs import random_pairs

from codmoe.evaluation import aggregate, image_measures
from codmoe.evaluation.conventions import AGGREGATE_KEYS, CONVENTIONS
from codmoe.evaluation.measures import EXTRA, image_scalars
from codmoe.evaluation.measures.extra import object_boxes
from codmoe.evaluation.measures.reference import reference_extra

PLAIN = image_measures(np.zeros((2, 2)), np.zeros((2, 2))).keys()


def ours(level, truth, names, image=None):
    found = image_measures(level / np.float32(255), truth, extra=names, image=image)
    curves = found.pop("extra_curves", {})
    return {k: v for k, v in found.items() if k not in PLAIN} | curves


def theirs(level, truth, names, image=None):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = reference_extra(level, truth, names, image)
    curves = found.pop("extra_curves", {})
    return found | curves


def assert_equal(level, truth, names, image=None):
    mine, reference = ours(level, truth, names, image), theirs(level, truth, names, image)
    assert mine.keys() == reference.keys()
    for key, value in reference.items():
        np.testing.assert_allclose(mine[key], value, rtol=0, atol=1e-6, err_msg=f"{key} {names}")


def photo_like(count=6, seed=1):
    """Maps as networks make them, of one to three objects, in odd sizes."""
    from benchmarks.metrics import sample_pairs

    maps, masks = sample_pairs(count, 160, seed)
    for i, (prob, mask) in enumerate(zip(maps, masks, strict=True)):
        part = np.s_[i : 160 - 3 * i, : 160 - 7 * i]
        yield np.rint(prob[part] * 255).astype(np.uint8), mask[part]


def many_edges():
    """More of them than half precision counts one by one, as in most masks of real size."""
    y, x = np.mgrid[:260, :300]
    truth = (y // 26 + x // 31) % 2 > 0
    return np.where(np.roll(truth, 3, 1), 220, 40).astype(np.uint8), truth


@pytest.mark.parametrize("name", ["CM", "MSIoU", "SIMAE", "SIFm"])
def test_equals_pysodmetrics(name):
    compared = 0
    for level, truth in [*random_pairs(150), *photo_like(), many_edges()]:
        if name in ("SIMAE", "SIFm"):
            boxes = object_boxes(truth)
            # PySODMetrics numbers objects by the bits of a float, and stops at a full mask.
            if len(boxes) > 50 or truth.all():
                continue
            if name == "SIMAE" and boxes:
                outside = np.ones(truth.shape, bool)
                for box in boxes:
                    outside[box] = False
                if not outside.any():  # NaN there: nothing divided by nothing
                    assert 0 <= ours(level, truth, [name])["SIMAE"] <= 1
                    continue
        if name == "CM":
            try:
                if not np.isfinite(theirs(level, truth, [name])["CM"]):
                    raise np.linalg.LinAlgError
            except np.linalg.LinAlgError:  # a diagonal line
                assert 0 <= ours(level, truth, [name])["CM"] <= 1 + 1e-6
                continue
        assert_equal(level, truth, [name])
        compared += 1
    assert compared > 80


@pytest.mark.parametrize("name", ["MSIoU_curve", "HCE", "CCM"])
def test_equals_pysodmetrics_where_it_is_slow(name):
    rng = np.random.default_rng(0)
    pairs = [*photo_like(1)]
    if name == "MSIoU_curve":
        pairs += random_pairs(6, seed=4)
    for level, truth in pairs:
        image = rng.integers(0, 256, (*truth.shape, 3), np.uint8)
        assert_equal(level, truth, [name], image)


@pytest.mark.parametrize(
    "truth",
    [
        np.zeros((7, 9), bool),
        np.ones((7, 9), bool),
        np.arange(63).reshape(7, 9) == 31,
        np.eye(9, dtype=bool),
        np.ones((1, 1), bool),
        np.arange(5)[None] > 2,
    ],
    ids=["empty", "full", "one pixel", "diagonal", "one pixel image", "one row"],
)
def test_every_mask_has_a_number(truth):
    for level in (truth * np.uint8(255), np.full(truth.shape, 90, np.uint8)):
        found = ours(level, truth, ["CM", "MSIoU", "MSIoU_curve", "SIMAE", "SIFm"])
        for key, value in found.items():
            assert np.isfinite(value).all() and np.min(value) >= 0, key
    assert ours(truth * np.uint8(255), truth, ["SIMAE"])["SIMAE"] == 0


def test_rows_hold_what_was_asked_for_and_conventions_say_what_it_is():
    pairs = list(photo_like(2))
    images = [
        image_measures(level / 255, truth, extra="all", image=np.zeros((*truth.shape, 3), np.uint8))
        for level, truth in pairs
    ]
    row = aggregate(images)
    assert list(row) == list(AGGREGATE_KEYS) and set(row) == set(CONVENTIONS)
    curves = [theirs(*pair, ["SIFm"])["SIFm"] for pair in pairs]
    assert row["maxSIFm"] == pytest.approx(np.mean(curves, axis=0).max(), abs=1e-6)
    assert image_scalars(images[0])["meanSIFm"] == pytest.approx(curves[0].mean(), abs=1e-6)
    default = aggregate([image_measures(level / 255, truth) for level, truth in pairs])
    assert not {"CM", "CCM", "MSIoU", "SIMAE", "meanSIFm", "HCE"} & set(default)
    assert all(row[key] == default[key] for key in default)


def test_f_of_the_mean_curves_is_not_the_mean_of_the_f_curves():
    pairs = list(photo_like(3))
    images = [image_measures(level / 255, truth) for level, truth in pairs]
    precision, recall = np.mean([image["curves"][:2] for image in images], axis=0)
    f = 1.3 * precision * recall / np.maximum(0.3 * precision + recall, 1e-12)
    row = aggregate(images)
    assert row["meanFm_PR"] == pytest.approx(f.mean(), abs=1e-6)
    assert row["maxFm_PR"] == pytest.approx(f.max(), abs=1e-6)
    assert abs(row["maxFm_PR"] - row["maxFm"]) > 1e-4


def test_mistakes_are_named():
    prob, truth = np.full((4, 5), 0.5), np.ones((4, 5))
    with pytest.raises(ValueError, match="extra='msiou' is no measure; did you mean 'MSIoU'"):
        image_measures(prob, truth, extra=["msiou"])
    with pytest.raises(ValueError, match="extra=CM needs full=True"):
        image_measures(prob, truth, extra="CM", full=False)
    with pytest.raises(ValueError, match="'CCM' reads the image"):
        image_measures(prob, truth, extra="CCM")
    assert set(EXTRA) >= {"CM", "HCE"}

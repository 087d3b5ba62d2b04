import math

import numpy as np
import pytest
from scipy import stats

from codmoe.evaluation import bootstrap
from codmoe.evaluation.bootstrap import Interval, bootstrap_means, paired_intervals


def test_the_ends_are_scipys():
    random = np.random.default_rng(1)
    method, baseline = random.beta(5, 2, (200, 2)), random.beta(5, 2.2, (200, 2))
    method[:, 1] = baseline[:, 1] + random.normal(0.02, 0.05, 200)
    ours = paired_intervals(method, baseline, samples=2000, seed=7)
    theirs = stats.bootstrap(
        (method, baseline),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        paired=True,
        axis=0,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(7),
    ).confidence_interval
    for column, interval in enumerate(ours):
        assert interval.difference == pytest.approx((method - baseline)[:, column].mean())
        assert interval.low == pytest.approx(theirs.low[column], rel=1e-9)
        assert interval.high == pytest.approx(theirs.high[column], rel=1e-9)
    # Pairing is what makes the second narrow although its columns vary as much as the first's.
    assert ours[1].high - ours[1].low < 0.4 * (ours[0].high - ours[0].low)
    assert ours[1].excludes_zero and not Interval(0.1, -0.1, 0.3, 9).excludes_zero


def test_means_by_hand():
    # Two images: their mean is 0, 0.5 or 1 with probability 1/4, 1/2, 1/4.
    means = bootstrap_means(np.array([[0.0], [1.0]]), samples=40_000)[:, 0]
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0, 0.5, 1]
    assert counts / 40_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.01)


def test_all_columns_are_read_on_the_same_draws_and_the_seed_decides(monkeypatch):
    values = np.random.default_rng(0).random((50, 1))
    both = bootstrap_means(np.hstack([values, 2 * values]), samples=500, seed=3)
    assert both[:, 1] == pytest.approx(2 * both[:, 0])
    assert np.array_equal(
        both, bootstrap_means(np.hstack([values, 2 * values]), samples=500, seed=3)
    )
    assert not np.array_equal(both[:, :1], bootstrap_means(values, samples=500, seed=4))
    monkeypatch.setattr(bootstrap, "_CHUNK", 200)  # four draws at a time
    assert bootstrap_means(values, samples=501, seed=3).shape == (501, 1)
    assert bootstrap_means(values, samples=501).mean() == pytest.approx(values.mean(), abs=0.01)


def test_a_missing_value_leaves_both_methods_out():
    method, baseline = np.array([[0.5], [0.9], [math.nan]]), np.array([[0.25], [0.65], [0.0]])
    (interval,) = paired_intervals(method, baseline, samples=100)
    assert (interval.n, interval.difference) == (2, pytest.approx(0.25))
    assert (interval.low, interval.high) == pytest.approx((0.25, 0.25))


def test_one_image_has_no_interval():
    (interval,) = paired_intervals(np.array([[0.5]]), np.array([[0.2]]), samples=100)
    assert interval.difference == pytest.approx(0.3)
    assert math.isnan(interval.low) and not interval.excludes_zero
    (nothing,) = paired_intervals(np.array([[math.nan]]), np.array([[0.2]]), samples=100)
    assert math.isnan(nothing.difference) and nothing.n == 0


def test_equal_methods_differ_by_nothing():
    values = np.random.default_rng(0).random((40, 1))
    (interval,) = paired_intervals(values, values, samples=100)
    assert (interval.low, interval.high) == (0, 0) and not interval.excludes_zero


@pytest.mark.parametrize(
    ("shapes", "given", "words"),
    [
        (((3, 1), (4, 1)), {}, "same images and metrics"),
        (((0, 1), (0, 1)), {}, "n > 0"),
        (((3, 1), (3, 1)), {"samples": 0}, "at least 1"),
        (((3, 1), (3, 1)), {"confidence": 95}, "between 0 and 1"),
    ],
)
def test_mistakes_are_named(shapes, given, words):
    with pytest.raises(ValueError, match=words):
        paired_intervals(*map(np.zeros, shapes), **given)

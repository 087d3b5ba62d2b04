import math

import numpy as np
import pytest
from scipy import stats

from codmoe.evaluation.intervals import Interval, paired_intervals, run_interval, t_quantile


def level(random, shape):
    return random.normal(0.02, 0.1, shape)


def heavy(random, shape):
    return np.clip(0.03 * random.standard_t(2.5, shape), -1, 1)


def skewed(random, shape):
    return random.beta(2, 8, shape) ** 2 - random.beta(2, 6, shape) ** 3


def failing(rate):
    """Mostly a hundredth better, and on a few images lost altogether."""

    def draw(random, shape):
        lost = (random.random(shape) < rate) * random.uniform(0.2, 0.7, shape)
        return random.normal(0.01, 0.03, shape) - lost

    return draw


def coverage(draw, n, rounds=2000):
    random = np.random.default_rng(n)
    mean = draw(random, (2000, 1000)).mean()
    values = draw(random, (n, rounds))
    found = paired_intervals(values, np.zeros_like(values))
    return np.mean([interval.low <= mean <= interval.high for interval in found])


# The percentile bootstrap has .92 for `level` at 20 and .90 for failures of 5 % at 76.
@pytest.mark.parametrize("draw", [level, heavy, skewed], ids=lambda f: f.__name__)
@pytest.mark.parametrize("n", [10, 20, 76, 250])
def test_intervals_keep_their_word(draw, n):
    assert 0.94 <= coverage(draw, n) <= 0.985


@pytest.mark.parametrize(("rate", "n"), [(0.1, 76), (0.05, 76), (0.05, 250)])
def test_intervals_keep_their_word_with_rare_failures(rate, n):
    assert coverage(failing(rate), n) >= 0.94


def test_twenty_images_may_not_show_a_rare_failure():
    """No interval can: .36 of such sets hold none. So a warning stands beside it."""
    assert coverage(failing(0.05), 20) < 0.8


def test_the_ends_are_students_where_nothing_is_skewed():
    values = np.array([[-0.3], [-0.1], [0.0], [0.1], [0.3]]) + 0.2
    (ours,) = paired_intervals(values + 0.5, np.full_like(values, 0.5))
    theirs = stats.ttest_1samp(values[:, 0], 0).confidence_interval()
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), rel=2e-3)
    (narrow,) = paired_intervals(values, np.zeros_like(values), confidence=0.5)
    assert narrow.excludes_zero and not ours.excludes_zero
    assert not Interval(0.1, -0.1, 0.3, 9).excludes_zero


def test_skewness_moves_the_end_on_the_side_of_the_tail():
    values = np.full((50, 2), 0.01)
    values[::2] += 0.02
    values[:3, 0] -= 0.5
    values[:3, 1] += 0.5
    fails, gains = paired_intervals(values, np.zeros_like(values))
    (low, high), (below, above) = (
        (one.difference - one.low, one.high - one.difference) for one in (fails, gains)
    )
    assert low > 1.3 * high and above > 1.3 * below


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 19, 75, 1000])
@pytest.mark.parametrize("share", [0.9, 0.975, 0.995])
def test_quantiles_are_scipys(share, degrees):
    rel = 2e-2 if degrees < 5 and share > 0.99 else 2e-3
    assert t_quantile(share, degrees) == pytest.approx(stats.t.ppf(share, degrees), rel=rel)


@pytest.mark.parametrize("degrees", [1.001, 1.2, 1.5, 1.9, 2.2, 2.999])
@pytest.mark.parametrize("share", [0.75, 0.975, 0.9995])
def test_quantiles_of_broken_degrees_are_scipys(share, degrees):
    assert t_quantile(share, degrees) == pytest.approx(stats.t.ppf(share, degrees), rel=1e-6)


ROUTER, PLAIN = (0.7788, 0.7718, 0.7763), (0.7627, 0.7667, 0.7623)


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_as_many_runs_are_paired_in_their_order(confidence):
    ours = run_interval(ROUTER, PLAIN, confidence=confidence)
    theirs = stats.ttest_rel(ROUTER, PLAIN).confidence_interval(confidence)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), rel=1e-9)
    assert ours.difference == pytest.approx(np.mean(ROUTER) - np.mean(PLAIN))
    assert run_interval(ROUTER, PLAIN[::-1]).low != pytest.approx(ours.low)


@pytest.mark.parametrize("more", [(), (0.7701,), (0.7701, 0.7755, 0.7772)])
def test_other_numbers_of_runs_are_welchs(more):
    for method, baseline in ((ROUTER + more, PLAIN[:2]), (PLAIN[:2], ROUTER + more)):
        ours = run_interval(method, baseline)
        theirs = stats.ttest_ind(method, baseline, equal_var=False).confidence_interval()
        width = theirs.high - theirs.low
        assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=1e-3 * width)


def test_one_run_says_nothing_of_others_and_equal_runs_do_not_differ():
    for pair in ((ROUTER, PLAIN[:1]), (ROUTER[:1], PLAIN), (ROUTER[:1], PLAIN[:1])):
        interval = run_interval(*pair)
        assert math.isnan(interval.low) and math.isnan(interval.high)
        assert not interval.excludes_zero
    same = run_interval((0.3, 0.3, 0.3), (0.2, 0.2))
    assert (same.low, same.high) == pytest.approx((0.1, 0.1))


def test_a_missing_value_leaves_both_methods_out():
    method, baseline = np.array([[0.5], [0.9], [math.nan]]), np.array([[0.25], [0.65], [0.0]])
    (interval,) = paired_intervals(method, baseline)
    assert (interval.n, interval.difference) == (2, pytest.approx(0.25))
    assert (interval.low, interval.high) == pytest.approx((0.25, 0.25))


def test_one_image_has_no_interval():
    (interval,) = paired_intervals(np.array([[0.5]]), np.array([[0.2]]))
    assert interval.difference == pytest.approx(0.3)
    assert math.isnan(interval.low) and not interval.excludes_zero
    (nothing,) = paired_intervals(np.array([[math.nan]]), np.array([[0.2]]))
    assert math.isnan(nothing.difference) and nothing.n == 0


def test_equal_methods_differ_by_nothing():
    values = np.random.default_rng(0).random((40, 1))
    (interval,) = paired_intervals(values, values)
    assert (interval.low, interval.high) == (0, 0) and not interval.excludes_zero


@pytest.mark.parametrize(
    ("shapes", "given", "words"),
    [
        (((3, 1), (4, 1)), {}, "same images and metrics"),
        (((0, 1), (0, 1)), {}, "n > 0"),
        (((3, 1), (3, 1)), {"confidence": 95}, "between 0 and 1"),
    ],
)
def test_mistakes_are_named(shapes, given, words):
    with pytest.raises(ValueError, match=words):
        paired_intervals(*map(np.zeros, shapes), **given)

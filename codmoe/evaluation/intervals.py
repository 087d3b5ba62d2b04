"""Intervals for the difference of two methods, over test images and over training runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

FEW = 100
UNSEEN = (
    f"fewer than {FEW} images: what fails on one image in thirty may by chance fail on none of "
    "these, and then no interval knows of it"
)


@dataclass(frozen=True)
class Interval:
    """A difference of means and its interval.

    Args:
        difference: Mean over images of method minus baseline.
        low: Lower end.
        high: Upper end.
        n: Images on which both have a value; of :func:`run_interval` the runs of whom has fewer.
    """

    difference: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether all of the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def paired_intervals(
    method: np.ndarray, baseline: np.ndarray, *, confidence: float = 0.95
) -> list[Interval]:
    """Intervals for the mean difference of two methods, one per column.

    Both methods are read on the same images, so that what makes an image hard for both cancels.
    The interval speaks of the choice of test images only, not of what another training seed would
    give. It holds Student's t interval and the same corrected for skewness (Hall, 1992: "On the
    removal of skewness by transformation"), which rare failures bring. Over 20 and 76 images
    either covers less than it says for some kind of difference, and so do the percentile, BCa and
    studentised bootstrap; both together do not (``test_intervals_keep_their_word``). With fewer
    than two images both ends are NaN.

    Args:
        method: Values per image, (n, k); NaN where there is none.
        baseline: Values of the same images in the same order, (n, k).
        confidence: Share of such intervals that hold the mean over all images there could be.

    Raises:
        ValueError: The shapes differ, hold no image, or ``confidence`` is not between 0 and 1.
    """
    method, baseline = np.asarray(method, np.float64), np.asarray(baseline, np.float64)
    if method.shape != baseline.shape:
        raise ValueError(
            f"The methods have values of shape {method.shape} and {baseline.shape}; a paired "
            "comparison needs the same images and metrics."
        )
    if method.ndim != 2 or len(method) == 0:
        raise ValueError(f"values must be (n, k) with n > 0, but have shape {method.shape}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}; it lies between 0 and 1, such as 0.95.")
    return [_interval(column[np.isfinite(column)], confidence) for column in (method - baseline).T]


def _interval(values: np.ndarray, confidence: float) -> Interval:
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    spread = float(values.std())
    if spread <= 1e-12:  # rounding alone
        return Interval(mean, mean, mean, n)
    reach = t_quantile((1 + confidence) / 2, n - 1)
    ends = np.array([reach, -reach])
    skew = float(np.mean(((values - mean) / spread) ** 3)) / math.sqrt(n)
    if abs(skew) > 1e-6:
        ends = np.stack([ends, 3 / skew * (np.cbrt(1 + skew * (ends - skew / 6)) - 1)])
    low, high = mean - spread / math.sqrt(n - 1) * np.array([ends.max(), ends.min()])
    return Interval(mean, float(low), float(high), n)


def run_interval(
    method: Sequence[float], baseline: Sequence[float], *, confidence: float = 0.95
) -> Interval:
    """Interval for the mean difference of two methods over their training runs (seeds).

    Equally many runs are paired in their order: Student's t with n - 1 degrees. Otherwise it is
    Welch's. It speaks of other runs on the same test images. Where either has a single run both
    ends are NaN.
    """
    ours, theirs = np.asarray(method, np.float64), np.asarray(baseline, np.float64)
    mean, n = float(ours.mean() - theirs.mean()), min(len(ours), len(theirs))
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    columns = [ours - theirs] if len(ours) == len(theirs) else [ours, theirs]
    parts = [column.var(ddof=1) / len(column) for column in columns]
    error = math.sqrt(sum(parts))
    if error <= 1e-12:  # rounding alone
        return Interval(mean, mean, mean, n)
    shares = [(part / sum(parts)) ** 2 for part in parts]
    degrees = 1 / sum(w / (len(column) - 1) for w, column in zip(shares, columns, strict=True))
    reach = t_quantile((1 + confidence) / 2, degrees) * error
    return Interval(mean, mean - reach, mean + reach, n)


def t_quantile(share: float, degrees: float) -> float:
    """Quantile of Student's t, of a share above one half: exact below 3 degrees, else to 0.2 %
    (Abramowitz and Stegun, 26.7.5). scipy has it too, and is 35 MB that nothing else needs at run
    time."""
    if degrees == 1:
        return math.tan(math.pi * (share - 0.5))
    if degrees == 2:
        return (2 * share - 1) * math.sqrt(0.5 / (share * (1 - share)))
    if degrees < 3:  # Welch's; t = sqrt(degrees) * tan(angle), and the angle is found by bisection
        nodes, weights = np.polynomial.legendre.leggauss(64)
        whole = math.sqrt(math.pi) * math.gamma(degrees / 2) / math.gamma((degrees + 1) / 2)
        low, high = 0.0, math.pi / 2
        for _ in range(60):
            angle = (low + high) / 2
            area = angle / 2 * (weights @ np.cos(angle / 2 * (nodes + 1)) ** (degrees - 1))
            low, high = (angle, high) if area < (share - 0.5) * whole else (low, angle)
        return math.sqrt(degrees) * math.tan(low)
    z = NormalDist().inv_cdf(share)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))

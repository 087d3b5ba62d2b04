"""Checks the ranges of the transforms' arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence


def check_range(owner: str, low: float = 0, high: float = 1, **values: float) -> None:
    """Raises ValueError unless each of ``values`` lies in [low, high]."""
    for name, value in values.items():
        if not low <= value <= high:
            limits = f"lie in [{low:g}, {high:g}]" if high < math.inf else f"be at least {low:g}"
            raise ValueError(f"{owner}: {name}={value}; it must {limits}")


def check_pair(
    owner: str, name: str, pair: Sequence[float], low: float = 0, high: float = math.inf
) -> tuple[float, float]:
    """The pair (smaller, larger), above 0 and in [low, high].

    Raises:
        ValueError: It is no such pair.
    """
    is_pair = not isinstance(pair, (int, float)) and len(pair) == 2
    if not is_pair or not 0 < pair[0] <= pair[1] or pair[0] < low or pair[1] > high:
        limits = f"within [{low:g}, {high:g}]" if high < math.inf else "0 < low <= high"
        raise ValueError(f"{owner}: {name}={pair!r}; it must be (low, high), {limits}")
    return pair[0], pair[1]

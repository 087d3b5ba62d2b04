"""Builds the sentences that answer bad input: the nearest valid names, and lists cut short."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

SHOWN = 5
"""Items of a list that a message shows before it counts the rest."""


def nearest(name: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """Valid names that look like ``name``, the most alike first; upper and lower case are equal."""
    by_lower = {choice.lower(): choice for choice in valid}
    return [by_lower[m] for m in difflib.get_close_matches(name.lower(), by_lower, count, 0.6)]


def suggest(name: str, valid: Iterable[str]) -> str:
    """``"did you mean 'a' or 'b'?"``, or the list of all valid names when none is near."""
    valid = list(valid)
    close = nearest(name, valid)
    if close:
        return "did you mean " + " or ".join(repr(choice) for choice in close) + "?"
    return "valid names: " + ", ".join(sorted(valid))


def listed(
    items: Sequence[Any],
    *,
    shown: int = SHOWN,
    separator: str = ", ",
    show: Callable[[Any], str] = str,
) -> str:
    """The first ``shown`` items and how many more there are; ``"nothing"`` for none.

    Args:
        items: What to list.
        shown: Items that are written out.
        separator: Text between them.
        show: Writes one item; ``repr`` quotes names.
    """
    if not items:
        return "nothing"
    text = separator.join(map(show, items[:shown]))
    if len(items) <= shown:
        return text
    pause = "" if separator == ", " else separator.rstrip()
    return f"{text}{pause} and {len(items) - shown:,} more"

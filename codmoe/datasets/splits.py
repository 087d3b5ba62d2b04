"""Held-out splits that depend on file names and a seed, and on nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from codmoe.registry import suggest


def split_indices(
    stems: Sequence[str], fractions: Mapping[str, float], seed: int, use: Sequence[str]
) -> list[int]:
    """Indices of the samples that belong to the named parts.

    Stems are ordered by a hash of seed and stem, then cut; so the same files give the same parts in
    any order and on any machine. Parts are cut in the order of their names, not of the dict, lest
    two configs that write the same fractions in another order hold out different images. The cuts
    lie at the rounded cumulative fractions: fractions that sum to 1 use every sample once.

    Args:
        stems: File stems, each once.
        fractions: Share of each named part, in [0, 1], together at most 1.
        seed: Another seed gives another split.
        use: Names of the parts wanted; one name may stand alone.

    Returns:
        Ascending indices into ``stems``.

    Raises:
        ValueError: Fractions out of range, unknown or no part names, or repeated stems.
    """
    use = [use] if isinstance(use, str) else list(use)
    if not use:
        raise ValueError(f"split.use is empty; name parts of {sorted(fractions)}")
    for name in use:
        if name not in fractions:
            raise ValueError(f"split.use: no part {name!r}; {suggest(name, fractions)}")
    for name, fraction in fractions.items():
        if not 0 <= fraction <= 1:
            raise ValueError(f"split.fractions.{name} is {fraction}; it must lie in [0, 1]")
    total = sum(fractions.values())
    if total > 1 + 1e-6:
        raise ValueError(
            f"split.fractions {dict(fractions)} sum to {total:g}; they must sum to at most 1"
        )
    if len(set(stems)) != len(stems):
        raise ValueError("split: stems repeat; split each dataset by itself")

    def rank(index: int) -> str:
        return hashlib.sha1(f"{seed}:{stems[index]}".encode()).hexdigest()

    order = sorted(range(len(stems)), key=rank)
    chosen: list[int] = []
    cumulative, start = 0.0, 0
    for name in sorted(fractions):
        cumulative += fractions[name]
        # The small term keeps 0.1 + 0.2 and the like from falling short of an exact half.
        stop = min(int(len(stems) * cumulative + 0.5 + 1e-6), len(stems))
        if name in use:
            chosen += order[start:stop]
        start = stop
    return sorted(chosen)

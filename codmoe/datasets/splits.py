"""Splits a data set into held-out parts by file names and a seed, and by nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from codmoe.datasets.layouts import expanded
from codmoe.files import save_text
from codmoe.messages import listed, suggest

DEFAULTS = {
    "seed": 0,
    "fractions": {"experts": 0.75, "router": 0.15, "val": 0.10},
    "use": None,
    "families": None,
    "together": None,
    "folds": None,
    "fold": 0,
    "file": None,
}
# What a split follows from, besides the stems.
RECIPE = ("seed", "fractions", "families", "together", "folds")
UNUSED = "(unused)"


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
    use = _checked_use(use, fractions)
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


def _checked_use(use: str | Sequence[str], valid: Collection[str]) -> list[str]:
    """``split.use`` as a list of names that exist."""
    names = [use] if isinstance(use, str) else list(use)
    if not names:
        raise ValueError(f"split.use is empty; name parts of {sorted(valid)}")
    for name in names:
        if name not in valid:
            raise ValueError(f"split.use: no part {name!r}; {suggest(name, valid)}")
    return names


def complete_split(split: Mapping[str, Any]) -> dict[str, Any]:
    """A split's config with its defaults.

    Keys: ``use``, the parts wanted; ``seed``; ``fractions`` of the parts; ``families``,
    ``{name: pattern}`` of the starts of stems that come from different sources, each of which is
    split by itself; ``together``, a pattern of the starts of stems, of which those whose match is
    the same come into the same part, as the frames of one video; ``folds`` and ``fold`` for
    cross-fitting: what is not ``val`` is cut into so many folds, of which ``router`` is the one
    numbered ``fold`` (from 0) and ``experts`` all the others; ``file``, a JSON file that is written
    once and read ever after.

    Raises:
        ValueError: A key is unknown, or a value is out of its range.
    """
    for key in split:
        if key not in DEFAULTS:
            raise ValueError(f"split has no key {key!r}; {suggest(key, DEFAULTS)}")
    whole = {**DEFAULTS, **split}
    if whole["use"] is None:
        parts = sorted(whole["fractions"])
        raise ValueError(f"split.use is not given; name one or more parts of {parts}")
    patterns = {f"families.{name}": p for name, p in (whole["families"] or {}).items()}
    if whole["together"] is not None:
        patterns["together"] = whole["together"]
    for key, pattern in patterns.items():
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(f"split.{key}: {pattern!r} is no pattern: {error}") from error
    folds, fold = whole["folds"], whole["fold"]
    if folds is None:
        if fold:
            raise ValueError(f"split.fold={fold} needs split.folds, the number of folds")
    elif not isinstance(folds, int) or folds < 2:
        raise ValueError(f"split.folds={folds!r}; it must be a whole number of 2 or more")
    elif not isinstance(fold, int) or not 0 <= fold < folds:
        raise ValueError(f"split.fold={fold!r}; of {folds} folds it must be 0 to {folds - 1}")
    return whole


def chosen_indices(stems: Sequence[str], split: Mapping[str, Any], name: str) -> list[int]:
    """Ascending indices of the samples in the parts that ``split.use`` names.

    Args:
        stems: File stems of the whole data set, each once.
        split: As :func:`complete_split` returns it.
        name: Name of the data set, under which its parts stand in ``split.file``.

    Raises:
        ValueError: No such part, or ``split.file`` was made from other settings or other images.
    """
    parts: Mapping[str, Collection[str]] = (
        _remembered(stems, split, name) if split["file"] else _parts(stems, split)
    )
    wanted = {stem for key in _used(split) for stem in parts[key]}
    return [index for index, stem in enumerate(stems) if stem in wanted]


def _used(split: Mapping[str, Any]) -> list[str]:
    """Keys of the parts that are used: those of ``split.use``, or the folds they stand for."""
    valid = ("experts", "router", "val") if split["folds"] else tuple(split["fractions"])
    use = _checked_use(split["use"], valid)
    if not split["folds"]:
        return use
    own, every = _fold_key(split["fold"]), [_fold_key(i) for i in range(split["folds"])]
    meant = {"val": ["val"], "router": [own], "experts": [key for key in every if key != own]}
    return [key for part in use for key in meant[part]]


def _fold_key(number: int) -> str:
    # In the order of numbers, and before "val": validation images are the same with folds as
    # without.
    return f"fold_{number:03d}"


def _parts(stems: Sequence[str], split: Mapping[str, Any]) -> dict[str, set[str]]:
    """Stems of each part, drawn anew; every family is split by itself."""
    fractions = dict(split["fractions"])
    if split["folds"]:
        share = fractions.get("val", 0.0)
        each = (1 - share) / split["folds"]
        fractions = {_fold_key(i): each for i in range(split["folds"])} | {"val": share}
    parts: dict[str, set[str]] = {key: set() for key in fractions}
    for family in _families(stems, split["families"] or {}):
        units = _units(family, split["together"])
        names = list(units)
        for key in fractions:
            chosen = split_indices(names, fractions, split["seed"], [key])
            parts[key].update(stem for i in chosen for stem in units[names[i]])
    return parts


def _units(stems: Sequence[str], together: str | None) -> dict[str, list[str]]:
    """Stems that stay together: those of one match of ``together``, or each by itself."""
    found: dict[str, list[str]] = {}
    for stem in stems:
        match = re.match(together, stem) if together else None
        found.setdefault(match.group() if match else stem, []).append(stem)
    return found


def _families(stems: Sequence[str], patterns: Mapping[str, str]) -> list[list[str]]:
    """The stems by the first pattern that each begins with; those of none are one more family."""
    if len(set(stems)) != len(stems):
        raise ValueError("split: stems repeat; split each dataset by itself")
    found: dict[str | None, list[str]] = {}
    for stem in stems:
        key = next((name for name, start in patterns.items() if re.match(start, stem)), None)
        found.setdefault(key, []).append(stem)
    return list(found.values())


def _remembered(
    stems: Sequence[str], split: Mapping[str, Any], name: str
) -> Mapping[str, Collection[str]]:
    """The parts in ``split.file``, which is written if it does not hold this data set yet."""
    path = expanded(split["file"])
    content = _read(path)
    recipe = json.loads(json.dumps({key: split[key] for key in RECIPE}))
    entry = content["sets"].get(name)
    if entry is None:
        parts = {key: sorted(part) for key, part in _parts(stems, split).items()}
        parts[UNUSED] = sorted(set(stems).difference(*parts.values()))
        content["sets"][name] = {**recipe, "images": len(stems), "parts": parts}
        _write(path, content)
        return parts
    advice = f"; name another split.file, and train all stages anew, or restore what {path} fits"
    other = [key for key in RECIPE if entry.get(key) != recipe[key]]
    if other:
        differences = ", ".join(f"{key}={entry.get(key)} (now {recipe[key]})" for key in other)
        raise ValueError(f"split.file {path}: {name} was split with {differences}{advice}")
    known, given = set().union(*entry["parts"].values()), set(stems)
    faults = [
        f"{len(odd):,} images {what} ({listed(sorted(odd), show=repr)})"
        for odd, what in (
            (given - known, "of the data are not in it"),
            (known - given, "in it are not in the data"),
        )
        if odd
    ]
    if faults:
        raise ValueError(
            f"split.file {path} does not fit the data of {name} any more: "
            + "; ".join(faults)
            + advice
        )
    return entry["parts"]


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        about = "parts of each training set; written once and read by every stage"
        return {"about": about, "sets": {}}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(entry["parts"], dict) for entry in content["sets"].values()):
            raise ValueError("no parts")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"split.file {path} is not a split file ({error}); name another, or move it away"
        ) from error
    return content


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the file whole or not at all.

    All processes of a run come here at once. They need no lock: each writes the same, for a split
    follows from seed and stems, and nothing that is in the file is ever changed.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False)
    try:
        save_text(path, text + "\n", keep=False)
    except OSError as error:
        raise ValueError(f"split.file {path} {error.strerror}") from error

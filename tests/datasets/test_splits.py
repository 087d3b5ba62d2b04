"""Held-out splits: disjoint, exact, and independent of order and machine."""

import random

import pytest

from codmoe.datasets.splits import split_indices

FRACTIONS = {"experts": 0.75, "router": 0.15, "val": 0.10}
STEMS = [f"image_{i}" for i in range(1450)]


def part(use, stems=STEMS, fractions=FRACTIONS, seed=0):
    return {stems[i] for i in split_indices(stems, fractions, seed, use)}


def test_parts_are_disjoint_exact_and_complete():
    experts, router, val = (part([name]) for name in FRACTIONS)
    assert (len(experts), len(router), len(val)) == (1088, 217, 145)
    assert experts | router | val == set(STEMS)
    assert part(["experts", "val"]) == experts | val
    assert part("val") == val


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 99, 3040])
def test_every_sample_is_used_once_when_fractions_sum_to_one(count):
    stems = STEMS[:count] if count <= len(STEMS) else [str(i) for i in range(count)]
    sizes = [len(part([name], stems)) for name in FRACTIONS]
    assert sum(sizes) == count
    for size, fraction in zip(sizes, FRACTIONS.values(), strict=True):
        assert abs(size - count * fraction) < 1


def test_order_of_files_and_of_the_fractions_does_not_matter():
    shuffled = random.Random(1).sample(STEMS, len(STEMS))
    turned = dict(reversed(FRACTIONS.items()))
    assert part(["val"]) == part(["val"], shuffled) == part(["val"], fractions=turned)


def test_known_answer():
    """Pins the hash: another machine or version must hold out the same images."""
    assert split_indices([str(i) for i in range(10)], {"a": 0.7, "b": 0.3}, 0, ["b"]) == [0, 4, 8]


def test_added_files_hardly_move_the_others():
    before, after = part(["val"]), part(["val"], [*STEMS, *(f"new_{i}" for i in range(50))])
    assert len(before & after) > 0.9 * len(before)


def test_seed_changes_the_split_and_rest_may_stay_unused():
    assert part(["val"]) != part(["val"], seed=1)
    assert len(part(["val"], fractions={"val": 0.1})) == 145
    assert part(["none"], fractions={"none": 0.0, "val": 0.1}) == set()


@pytest.mark.parametrize(
    "fractions, use, message",
    [
        ({"a": 0.7, "b": 0.4}, ["a"], r"sum to 1\.1"),
        (FRACTIONS, ["expert"], "did you mean 'experts'"),
        (FRACTIONS, [], r"split\.use is empty"),
        ({"a": -0.1}, ["a"], r"split\.fractions\.a is -0\.1"),
    ],
)
def test_user_mistakes(fractions, use, message):
    with pytest.raises(ValueError, match=message):
        split_indices(STEMS, fractions, 0, use)


def test_repeated_stems_are_refused():
    with pytest.raises(ValueError, match="repeat"):
        split_indices(["a", "a"], FRACTIONS, 0, ["val"])

"""Held-out splits: disjoint, exact, the same on every machine; with a file, by source, in folds."""

import json
import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from folders import add

from codmoe.datasets import CODDataset, DatasetGroup
from codmoe.datasets.splits import chosen_indices, complete_split, split_indices

FRACTIONS = {"experts": 0.75, "router": 0.15, "val": 0.10}
KVASIR = [f"Kvasir_{i}" for i in range(900)]
CLINIC = [f"CVC-ClinicDB_{i}" for i in range(550)]
STEMS = KVASIR + CLINIC
FAMILIES = {"Kvasir": "Kvasir_", "ClinicDB": r"CVC-ClinicDB_\d"}

# --- split_indices ---


def drawn(use, stems=STEMS, fractions=FRACTIONS, seed=0):
    return {stems[i] for i in split_indices(stems, fractions, seed, use)}


def test_parts_are_disjoint_exact_and_complete():
    experts, router, val = (drawn([name]) for name in FRACTIONS)
    assert (len(experts), len(router), len(val)) == (1088, 217, 145)
    assert experts | router | val == set(STEMS)
    assert drawn(["experts", "val"]) == experts | val
    assert drawn("val") == val


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 99, 3040])
def test_every_sample_is_used_once_when_fractions_sum_to_one(count):
    stems = [f"image_{i}" for i in range(count)]
    sizes = [len(drawn([name], stems)) for name in FRACTIONS]
    assert sum(sizes) == count
    for size, fraction in zip(sizes, FRACTIONS.values(), strict=True):
        assert abs(size - count * fraction) < 1


def test_order_of_files_and_of_the_fractions_does_not_matter():
    shuffled = random.Random(1).sample(STEMS, len(STEMS))
    turned = dict(reversed(FRACTIONS.items()))
    assert drawn(["val"]) == drawn(["val"], shuffled) == drawn(["val"], fractions=turned)


def test_known_answer():
    """Pins the hash: another machine or version must hold out the same images."""
    assert split_indices([str(i) for i in range(10)], {"a": 0.7, "b": 0.3}, 0, ["b"]) == [0, 4, 8]


def test_added_files_hardly_move_the_others():
    before, after = drawn(["val"]), drawn(["val"], [*STEMS, *(f"new_{i}" for i in range(50))])
    assert len(before & after) > 0.9 * len(before)


def test_seed_changes_the_split_and_rest_may_stay_unused():
    assert drawn(["val"]) != drawn(["val"], seed=1)
    assert len(drawn(["val"], fractions={"val": 0.1})) == 145
    assert drawn(["none"], fractions={"none": 0.0, "val": 0.1}) == set()


@pytest.mark.parametrize(
    ("stems", "fractions", "use", "message"),
    [
        (STEMS, {"a": 0.7, "b": 0.4}, ["a"], r"sum to 1\.1"),
        (STEMS, FRACTIONS, ["expert"], "did you mean 'experts'"),
        (STEMS, FRACTIONS, [], r"split\.use is empty"),
        (STEMS, {"a": -0.1}, ["a"], r"split\.fractions\.a is -0\.1"),
        (["a", "a"], FRACTIONS, ["val"], "repeat"),
    ],
)
def test_mistakes_in_a_split(stems, fractions, use, message):
    with pytest.raises(ValueError, match=message):
        split_indices(stems, fractions, 0, use)


# --- chosen_indices ---


def part(use, stems=STEMS, name="polyp", **split):
    indices = chosen_indices(stems, complete_split({"use": use, **split}), name)
    assert indices == sorted(indices)
    return {stems[i] for i in indices}


def test_without_further_keys_it_is_the_plain_split():
    for use in (("experts",), ("router", "val")):
        assert part(use, seed=3) == drawn(use, seed=3)


def test_every_family_gives_its_share():
    held = part("val", families=FAMILIES)
    assert len(held & set(KVASIR)) == 90 and len(held & set(CLINIC)) == 55
    router = part("router", families=FAMILIES)
    assert len(router & set(KVASIR)) == 135 and not router & held
    # Without a family of their own, the rest is one.
    assert part("val", families={"Kvasir": "Kvasir_"}) == held
    plain = part("val")
    assert len(plain & set(KVASIR)) != 90 and plain != held


def test_frames_of_a_video_stay_together():
    videos = {f"clip-{letter}": 3 + i for i, letter in enumerate("abcdefghij")}
    frames = [f"{name}_{k:05d}" for name, count in videos.items() for k in range(count)]
    stems = sorted(frames + [f"photo{i}" for i in range(20)])
    parts = {use: part(use, stems, together=r"[a-z-]+_(?=\d{5}$)") for use in FRACTIONS}
    assert sorted(stem for chosen in parts.values() for stem in chosen) == stems
    for name in videos:
        holders = [u for u, p in parts.items() if any(s.startswith(f"{name}_") for s in p)]
        assert len(holders) == 1, name
    assert all(parts.values())


def test_the_file_is_written_once_and_read_by_every_stage(tmp_path):
    file = tmp_path / "weights" / "split.json"
    options = dict(file=str(file), families=FAMILIES)
    first = {use: part(use, **options) for use in FRACTIONS}
    assert first == {use: part(use, families=FAMILIES) for use in FRACTIONS}
    content = json.loads(file.read_text())
    assert {k: set(v) for k, v in content["sets"]["polyp"]["parts"].items() if v} == first
    # What is in the file holds, not what would be drawn today.
    parts = content["sets"]["polyp"]["parts"]
    moved = parts["val"].pop()
    parts["experts"].append(moved)
    file.write_text(json.dumps(content))
    assert part("experts", **options) == first["experts"] | {moved}
    assert part("val", **options) == first["val"] - {moved}
    assert os.listdir(file.parent) == ["split.json"]


def test_images_that_no_part_uses_are_remembered_too(tmp_path):
    options = dict(file=str(tmp_path / "split.json"), fractions={"val": 0.1})
    assert len(part("val", **options)) == 145 == len(part("val", **options))


def test_processes_that_start_together_agree_on_one_file_for_all_data_sets(tmp_path):
    file = tmp_path / "split.json"

    def process(_):
        sets = (("Kvasir", KVASIR), ("ClinicDB", CLINIC))
        return [part("val", stems, name, file=str(file)) for name, stems in sets]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(process, range(16)))
    assert all(result == results[0] for result in results)
    assert [len(held) for held in results[0]] == [90, 55]
    assert set(json.loads(file.read_text())["sets"]) == {"Kvasir", "ClinicDB"}


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    file = tmp_path / "split.json"
    options = dict(file=str(file))
    part("val", **options)
    with pytest.raises(ValueError, match=r"seed=0 \(now 1\); name another split.file, and train"):
        part("val", seed=1, **options)
    with pytest.raises(ValueError, match=r"families=None \(now"):
        part("val", families=FAMILIES, **options)
    with pytest.raises(ValueError) as error:
        part("val", [*STEMS[1:], "new_1", "new_2"], **options)
    text = str(error.value)
    assert "2 images of the data are not in it ('new_1', 'new_2')" in text
    assert "1 images in it are not in the data ('Kvasir_0')" in text
    for content in (file.read_text()[:50], '{"sets": {"polyp": {"parts": 3}}}'):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"split\.json is not a split file"):
            part("val", **options)
        assert file.read_text() == content
    with pytest.raises(ValueError, match=r"cannot be written"):
        part("val", file="/proc/no/split.json")


def test_folds_leave_every_image_to_the_router_once(tmp_path):
    options = dict(folds=5, file=str(tmp_path / "split.json"), families=FAMILIES)
    held = part("val", fold=0, **options)
    # Folds do not change which images choose the best epoch.
    assert held == part("val", families=FAMILIES)
    seen = []
    for fold in range(5):
        experts = part("experts", fold=fold, **options)
        router = part("router", fold=fold, **options)
        assert not experts & router and experts | router | held == set(STEMS)
        assert part("val", fold=fold, **options) == held
        assert abs(len(router & set(KVASIR)) - 162) <= 1 and len(router & set(CLINIC)) == 99
        seen += router
    assert len(seen) == len(set(seen)) == 1450 - 145
    assert part(("experts", "router"), fold=3, **options) == set(seen)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"sed": 1, "use": "val"}, r"no key 'sed'; did you mean 'seed'"),
        ({}, r"split\.use is not given"),
        ({"use": "val", "folds": 1}, r"folds=1; .* 2 or more"),
        ({"use": "val", "folds": 3, "fold": 3}, r"fold=3; of 3 folds it must be 0 to 2"),
        ({"use": "val", "fold": 1}, r"fold=1 needs split\.folds"),
        ({"use": "val", "families": {"a": "("}}, r"families\.a: '\(' is no pattern"),
        ({"use": "val", "together": "("}, r"split\.together: '\(' is no pattern"),
        ({"use": "vla", "folds": 2}, r"no part 'vla'; did you mean 'val'"),
        ({"use": "vla"}, r"no part 'vla'; did you mean 'val'"),
        ({"use": ()}, r"split\.use is empty"),
    ],
)
def test_mistakes_in_the_config(split, message):
    with pytest.raises(ValueError, match=message):
        chosen_indices(STEMS, complete_split(split), "polyp")


def test_a_group_is_split_source_by_source_into_one_file(tmp_path):
    for name, count in (("a", 20), ("b", 10)):  # the same names in both
        add(tmp_path / name / "TrainDataset", "Imgs", "GT", [f"{i}" for i in range(count)])
    file = tmp_path / "split.json"

    def group(use):
        config = {"type": "CODDataset", "split_dir": "TrainDataset"}
        entries = {n: {**config, "data_root": str(tmp_path / n)} for n in ("a", "b")}
        return DatasetGroup(entries, split={"use": use, "file": str(file)})

    sizes = {use: [len(d) for d in group(use).datasets] for use in FRACTIONS}
    assert sizes == {"experts": [15, 8], "router": [3, 1], "val": [2, 1]}
    assert set(json.loads(file.read_text())["sets"]) == {"a", "b"}
    built = CODDataset(tmp_path / "a" / "TrainDataset")
    with pytest.raises(ValueError, match=r"datasets\.a is built already"):
        DatasetGroup({"a": built}, split={"use": "val"})
    add(tmp_path / "b" / "TrainDataset", "Imgs", "GT", ["99"])
    with pytest.raises(ValueError, match=r"datasets\.b: split\.file .* the data of b any more"):
        group("val")

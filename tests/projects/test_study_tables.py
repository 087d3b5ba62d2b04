"""The numbers of a study's tables against numbers made by hand."""

import copy
import json
import math

import numpy as np
import pytest
from miniature import call

from projects.study.make_tables import report, winners_by_kind
from projects.study.results import condensed, load_results, to_text
from projects.study.tables import (
    by_dataset,
    difference,
    difference_table,
    expert_table,
    gap_closed,
    overall,
    set_table,
    spread,
    summary_table,
)

MAKE = "projects.study.make_tables"
METRICS = ("mDice", "mIoU", "IoU", "Sm", "wFm", "MAE")
EXPERTS = ("pranet", "sinet", "ujsc", "zoomnet")


def columns(values, metrics=METRICS):
    return {metric: list(values) for metric in metrics}


def alone(*sets):
    """Result of one head; each set is a list of values per image."""
    images = {
        f"set{i}": dict(stems=[f"{k}" for k in range(len(values))], mixture=columns(values))
        for i, values in enumerate(sets)
    }
    return dict(images=images, breakdown={}, routing={}, routing_by_dataset={})


def mixture(values, oracle, uniform, **experts):
    """Result of a mixture on one set of images."""
    sources = dict(mixture=values, oracle=oracle, uniform=uniform, **experts)
    images = {name: columns(v) for name, v in sources.items()}
    routing = {f"share_{name}": 1 / len(experts) for name in experts}
    routing |= dict(mutual_information=0.5, top1_accuracy=0.75)
    kinds = [
        dict(attribute="size", bin="small", n=2, best=[], IoU={n: v[0] for n, v in sources.items()})
    ]
    return dict(
        images=dict(set0=dict(stems=[str(k) for k in range(len(values))], **images)),
        breakdown=dict(set0=kinds),
        routing=routing,
        routing_by_dataset=dict(set0=routing),
    )


FOUR = dict(
    pranet=[0.2, 0.8, 0.5, 0.5],  # mean 0.5
    sinet=[0.6, 0.6, 0.6, 0.6],  # mean 0.6, the best
    ujsc=[0.1, 0.1, 0.1, 0.1],
    zoomnet=[0.9, 0.1, 0.5, 0.5],  # mean 0.5
)
ORACLE = [0.9, 0.8, 0.6, 0.6]  # mean 0.725
STAGE3 = mixture([0.8, 0.7, 0.6, 0.6], ORACLE, [0.5, 0.5, 0.5, 0.5], **FOUR)  # mean 0.675


def test_means_over_images_and_over_sets():
    result = alone([0.2, 0.4], [0.9])
    assert overall(result, "mixture", "mDice", None) == pytest.approx(0.5)
    assert overall(result, "mixture", "mDice", "set0") == pytest.approx(0.3)
    assert overall(result, "mixture", "mDice", "domains") == pytest.approx(0.6)
    missing = alone([0.2, None])
    assert overall(missing, "mixture", "mDice", None) == pytest.approx(0.2)


def test_spread_over_seeds():
    assert spread([0.5]) == "0.5000"
    assert spread([0.4, 0.6]) == "0.5000 ± 0.1414"  # n - 1


def test_the_share_of_the_gap():
    assert gap_closed(STAGE3) == pytest.approx((0.675 - 0.6) / (0.725 - 0.6))
    level = mixture([0.6], [0.6], [0.6], sinet=[0.6], pranet=[0.1])
    assert math.isnan(gap_closed(level))


def test_a_difference_is_of_images_averaged_over_common_seeds():
    rows = {
        "stage3": {0: alone([0.5, 0.7]), 1: alone([0.7, 0.9]), 2: alone([0.0, 0.0])},
        "fpn": {0: alone([0.4, 0.4]), 1: alone([0.4, 0.8])},
    }
    interval, told, seeds = difference(rows, "stage3", "fpn", "mDice")
    # Per image: (0.5 + 0.7) / 2 - 0.4 = 0.2 and (0.7 + 0.9) / 2 - (0.4 + 0.8) / 2 = 0.2.
    assert interval.difference == pytest.approx(0.2) and (told, seeds) == ("fpn", 2)
    # Both images differ by the same, so that drawing images changes nothing; four pooled runs
    # (0.1, 0.3, 0.3, 0.1) would not be so sure.
    assert interval.low == pytest.approx(0.2) and interval.high == pytest.approx(0.2)
    assert interval.n == 2
    assert difference(rows, "stage3", "fpn4", "mDice") is None


def test_the_bootstrap_draws_images():
    random = np.random.default_rng(0)
    ours, theirs = random.uniform(size=(2, 400))
    interval, _, _ = difference(
        {"stage3": {0: alone(ours)}, "fpn": {0: alone(theirs)}}, "stage3", "fpn", "mDice"
    )
    error = (ours - theirs).std() / 20
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_a_difference_of_the_means_of_the_sets():
    # 1 of 10 images in a set of its own: a tenth of the whole, and half of the mean of the sets.
    rows = {"stage3": {0: alone([0.5], [0.5] * 9)}, "fpn": {0: alone([0.1], [0.5] * 9)}}
    pooled, _, _ = difference(rows, "stage3", "fpn", "mDice")
    by_set, _, _ = difference(rows, "stage3", "fpn", "mDice", by_set=True)
    assert pooled.difference == pytest.approx(0.04) and by_set.difference == pytest.approx(0.2)
    # Each set is drawn by itself, so that its one image is always there.
    assert pooled.low == 0 and by_set.low == pytest.approx(0.2) == by_set.high

    ours, theirs = np.random.default_rng(0).uniform(size=(2, 2, 100))
    rows = {"stage3": {0: alone(*ours)}, "fpn": {0: alone(*theirs)}}
    interval, _, _ = difference(rows, "stage3", "fpn", "mDice", by_set=True)
    error = np.sqrt(((ours - theirs).var(axis=1) / 100).sum()) / 2
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_baselines_are_found():
    rows = {"stage3": {0: STAGE3}, "joint": {0: STAGE3}}
    rows |= {n: {0: alone(v)} for n, v in FOUR.items()}
    interval, told, _ = difference(rows, "stage3", "stage3/best expert", "IoU")
    assert told == "stage3/sinet" and interval.difference == pytest.approx(0.075)
    interval, told, _ = difference(rows, "stage3", "best separate expert", "IoU")
    assert told == "sinet" and interval.difference == pytest.approx(0.075)
    interval, _, _ = difference(rows, "stage3", "stage3/uniform", "IoU")
    assert interval.difference == pytest.approx(0.175)
    del rows["ujsc"]  # the best of three is not the best of four
    assert difference(rows, "stage3", "best separate expert", "IoU") is None
    text = difference_table(rows, samples=200)
    assert "| stage3 − stage3/best expert (sinet) | 1 | +0.0750 [" in text
    assert "| stage3 − joint | 1 | +0.0000 [" in text and "fpn" not in text


def test_other_images_are_refused():
    rows = {"stage3": {0: alone([0.5, 0.7])}, "fpn": {0: alone([0.5, 0.7, 0.9])}}
    with pytest.raises(ValueError, match="stage3 and fpn were tested on different images"):
        difference(rows, "stage3", "fpn", "mDice")
    rows = {"stage3": {0: alone([0.5]), 1: alone([0.5, 0.7])}, "fpn": rows["fpn"]}
    with pytest.raises(ValueError, match="different images"):
        difference(rows, "stage3", "fpn", "mDice")


def test_the_best_of_each_column_is_bold():
    rows = {
        "fpn": {0: alone([0.2], [0.4])},
        "fpn4": {0: alone([0.5], [0.3]), 1: alone([0.5], [0.5])},
    }
    text = summary_table(rows, ["fpn", "fpn4"])
    assert "| fpn4 | 2 | **0.4500 ± 0.0707** | " in text
    line = next(line for line in text.splitlines() if line.startswith("| fpn |"))
    assert line.split(" | ")[7] == "**0.3000**"  # of MAE the lower
    assert "| fpn4 | 0.5000 ± 0.0000 / 0.5000 ± 0.0000 | 0.4000" in set_table(rows, list(rows))


def test_experts_and_winners():
    text = expert_table({"stage3": {0: STAGE3}, "fpn": {0: alone([0.5])}}, ["fpn", "stage3"])
    expected = "| stage3 | 0.5000 | 0.6000 | 0.1000 | 0.5000 | 0.5000 | 0.6750 | 0.7250 | 60 % |"
    assert expected in text and "fpn" not in text
    fewer = copy.deepcopy(STAGE3)
    for columns in fewer["images"].values():
        del columns["pranet"]
    text = expert_table({"stage3": {0: STAGE3}, "mine": {0: fewer}}, ["stage3", "mine"])
    assert text.count(" - |") == 1 and "| mine | " in text
    whole, small = winners_by_kind({0: STAGE3})
    assert whole[:4] == ["set0", "all", "", "4"] and whole[-1] == "sinet"
    assert small[1:4] == ["size", "small", "2"] and small[-1] == "zoomnet"


def test_results_become_small_and_come_back(tmp_path, monkeypatch, capsys):
    images = {"a": dict(IoU=0.123456, mDice=float("nan"), curves=[1, 2])}
    row = dict(n=1, images=images, curves=dict(x=[0.0] * 256))
    table = dict(Kvasir=dict.fromkeys((*EXPERTS, "uniform", "oracle", "mixture"), row))
    breakdown = dict(Kvasir=[dict(attribute="size", bin="s", n=1, IoU=dict(sinet=0.5), best=[])])
    small = condensed(dict(table=table, breakdown=breakdown, routing=dict(share_sinet=1.0)))
    assert "curves" not in to_text(small)
    kept = small["images"]["Kvasir"]
    assert kept["stems"] == ["a"] and kept["mixture"]["IoU"] == [0.1235]
    assert kept["mixture"]["mDice"] == [None] and "Sm" in kept["mixture"]
    assert "Sm" not in kept["sinet"]

    (tmp_path / "polyp_stage3_seed2.json").write_text(to_text(STAGE3))
    (tmp_path / "polyp_fpn_seed2.json").write_text(to_text(alone([0.5, 0.5, 0.5, 0.5])))
    (tmp_path / "polyp_fpn_frozen_seed2.json").write_text(to_text(alone([0.5] * 4)))
    # One that was replaced.
    (tmp_path / "polyp_fpn_seed2.20261124-201530.json").write_text(to_text(alone([0.9] * 4)))
    loaded = load_results(tmp_path)
    assert sorted(by_dataset(loaded)["polyp"]) == ["fpn", "fpn_frozen", "stage3"]
    assert loaded["polyp_stage3"][2] == json.loads(to_text(STAGE3))
    out = tmp_path / "study.md"
    assert call(monkeypatch, MAKE, tmp_path, "--out", out, "--samples", 100) is None
    text = out.read_text()
    assert text.index("| fpn |") < text.index("| stage3 |") and "## polyp" in text
    assert "| stage3 | set0 | 0.2500 | 0.2500 | 0.2500 | 0.2500 | 0.5000 | 0.7500 |" in text
    assert report(loaded, samples=100).startswith("- mDice")


def test_a_folder_without_results_is_told(tmp_path, monkeypatch):
    assert "holds no results" in call(monkeypatch, MAKE, tmp_path)
    (tmp_path / "polyp_fpn_seed0.json").write_text("{}")
    with pytest.raises(ValueError, match=r"polyp_fpn_seed0\.json is no result of a study"):
        load_results(tmp_path)

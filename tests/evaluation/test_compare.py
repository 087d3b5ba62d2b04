import math
from pathlib import Path

import numpy as np
import pytest

from codmoe.evaluation.compare import compare
from codmoe.evaluation.result_files import Method


def method(name, datasets, source="mixture", conventions=None, **extra):
    """``datasets``: {data set: {metric: values per image}}; the row holds their means."""
    rows = {}
    for dataset, metrics in datasets.items():
        n = len(next(iter(metrics.values())))
        images = {f"{i:02}": {key: v[i] for key, v in metrics.items()} for i in range(n)}
        means = {key: float(np.nanmean(values)) for key, values in metrics.items()}
        rows[dataset] = {**means, "n": n, "images": images, **extra}
    return Method(name, source, Path(f"{name}.json"), rows, conventions or {})


LOW = {"IoU": [0.2, 0.4, 0.6], "MAE": [0.1, 0.2, 0.3]}
HIGH = {"IoU": [0.3, 0.5, 0.7], "MAE": [0.05, 0.15, 0.25]}


def test_rows_ranks_and_differences_by_hand():
    found = compare([method("a", {"CAMO": LOW}), method("b", {"CAMO": HIGH})], samples=200)
    assert found.metrics == ["IoU", "MAE"]
    assert found.rows[1] == {
        "dataset": "CAMO",
        "method": "b",
        "source": "mixture",
        "file": "b.json",
        "n": 3,
        "IoU": pytest.approx(0.5),
        "MAE": pytest.approx(0.15),
    }
    assert found.ranks == {(1, "IoU"): 1, (1, "MAE"): 1}
    iou, mae = found.differences
    # Every image differs by the same, so every draw does.
    assert (iou["difference"], iou["low"], iou["high"]) == pytest.approx((0.1, 0.1, 0.1))
    assert (mae["difference"], mae["low"], mae["high"]) == pytest.approx((-0.05, -0.05, -0.05))
    assert (iou["verdict"], mae["verdict"]) == ("better", "better")
    assert any("fewer than 30 images (CAMO)" in caveat for caveat in found.caveats)
    assert any("(2 of 2)" in caveat for caveat in found.caveats)
    turned = compare(
        [method("a", {"CAMO": LOW}), method("b", {"CAMO": HIGH})], baseline="b", samples=200
    )
    assert [row["verdict"] for row in turned.differences] == ["worse", "worse"]


def test_an_interval_over_zero_decides_nothing():
    random = np.random.default_rng(0)
    values = random.random(60)
    noisy = values + random.normal(0, 0.1, 60)
    noisy -= (noisy - values).mean() - 0.001
    pair = [method("a", {"d": {"IoU": values}}), method("b", {"d": {"IoU": noisy}})]
    (row,) = compare(pair).differences
    assert row["verdict"] == "undecided" and row["low"] < 0 < row["high"]
    assert row["difference"] == pytest.approx(0.001)


def test_ranks_are_of_the_figures_as_printed():
    values = {"a": 0.50001, "b": 0.50002, "c": 0.4, "d": 0.3}
    methods = [method(name, {"x": {"IoU": [v]}}) for name, v in values.items()]
    methods.append(method("best", {"x": {"IoU": [0.9]}}, source="oracle"))
    found = compare(methods)
    assert found.ranks == {(0, "IoU"): 1, (1, "IoU"): 1, (2, "IoU"): 2}
    assert found.notes[-1].startswith("oracle: ")


def test_other_image_sets_are_an_error_that_lists_stems():
    longer = {"IoU": [0.1] * 10}
    pair = [method("a", {"CAMO": {"IoU": [0.1] * 3}}), method("b", {"CAMO": longer})]
    with pytest.raises(ValueError) as caught:
        compare(pair)
    text = str(caught.value)
    assert "'a' and 'b' were not scored on the same images of CAMO" in text
    assert "7 image(s) (03, 04, 05, 06, 07, ...) of 'b' only" in text
    renamed = method("c", {"CAMO": {"IoU": [0.1] * 3}})
    renamed.rows["CAMO"]["images"]["x"] = renamed.rows["CAMO"]["images"].pop("02")
    with pytest.raises(ValueError, match=r"\(02\) of 'a' only; 1 image\(s\) \(x\) of 'c' only"):
        compare([pair[0], renamed])


def test_the_order_of_images_does_not_matter():
    turned = method("b", {"CAMO": HIGH})
    images = turned.rows["CAMO"]["images"]
    turned.rows["CAMO"]["images"] = dict(reversed(images.items()))
    (row, _) = compare([method("a", {"CAMO": LOW}), turned], samples=50).differences
    assert (row["low"], row["high"]) == pytest.approx((0.1, 0.1))


def test_maxima_and_pooled_numbers_have_no_interval():
    a, b = (method(name, {"CAMO": values}) for name, values in (("a", LOW), ("b", HIGH)))
    for one in (a, b):
        one.rows["CAMO"] |= {"maxFm": 0.8, "odd": 0.9}
        for values in one.rows["CAMO"]["images"].values():
            values["odd"] = 0.5
    b.rows["CAMO"]["new"] = 0.5
    found = compare([a, b], metrics=["IoU", "maxFm", "odd", "new"], samples=50)
    assert [row["metric"] for row in found.differences] == ["IoU"]
    assert math.isnan(found.rows[0]["new"]) and found.rows[0]["maxFm"] == 0.8
    without = [caveat for caveat in found.caveats if caveat.startswith("no interval")]
    assert "maxFm (CAMO): a maximum over thresholds of the mean curve" in without[0]
    assert "odd (CAMO): its values per image do not average" in without[1]
    assert "new (CAMO): a result file does not have it" in without[2]


def test_a_data_set_that_one_lacks():
    found = compare(
        [method("a", {"CAMO": LOW}), method("b", {"CAMO": HIGH, "NC4K": HIGH})], samples=50
    )
    assert [(row["dataset"], row["method"]) for row in found.rows] == [
        ("CAMO", "a"),
        ("CAMO", "b"),
        ("NC4K", "b"),
    ]
    assert {row["dataset"] for row in found.differences} == {"CAMO"}
    assert found.caveats[-1] == "no differences on NC4K: a has no result there"


def test_conventions_that_differ_are_told():
    said = {"IoU": "at 0.5; per image", "MAE": "mean error; per image"}
    a = method("a", {"CAMO": LOW}, conventions=said)
    same = compare([a, method("b", {"CAMO": HIGH}, conventions=said)], samples=50)
    assert same.notes == ["IoU (at 0.5), MAE (mean error): per image"]
    other = method("b", {"CAMO": HIGH}, conventions=said | {"IoU": "normalised"})
    notes = compare([a, other], samples=50).notes
    assert notes[0].startswith("IoU: the files state different conventions")
    assert "a: “at 0.5; per image”; b: “normalised”" in notes[0]
    assert compare([method("a", {"CAMO": LOW})]).notes == [
        "IoU, MAE: convention not stated in the files"
    ]


def test_curves_and_who_has_none():
    curves = {"threshold": [1, 0], "Fm": [0, 1]}
    pair = [method("a", {"CAMO": LOW}, curves=curves), method("b", {"CAMO": HIGH})]
    found = compare(pair, samples=50)
    assert found.curves == {"a": {"CAMO": curves}} and found.without_curves == ["b on CAMO"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"metrics": ["iou"]}, "no metric 'iou'; did you mean 'IoU'"),
        ({"datasets": ["CAM0"]}, "no data set 'CAM0'; did you mean 'CAMO'"),
        ({"baseline": "c"}, "no baseline 'c'"),
        ({"samples": 0}, "at least 1"),
    ],
)
def test_mistakes_are_named(given, words):
    with pytest.raises(ValueError, match=words):
        compare([method("a", {"CAMO": LOW}), method("b", {"CAMO": HIGH})], **given)


def test_methods_need_names_of_their_own():
    with pytest.raises(ValueError, match="names of their own, but they are a, a"):
        compare([method("a", {"CAMO": LOW}), method("a", {"CAMO": HIGH})])

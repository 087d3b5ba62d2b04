"""Which images are drawn, and that they are the ones that were scored."""

import numpy as np
import pytest
import torch
from miniature import TWO_EXPERTS, build, images, prepared, write_config

from codmoe.engine import testing as extremes
from codmoe.engine.checkpoints import save_weights
from codmoe.engine.testing import pick
from codmoe.engine.testing import test as run_test
from codmoe.evaluation.measures import iou_and_dice

PIPELINE = [dict(type="LoadCODPair"), dict(type="PackCODInputs", keep_original=True)]


def test_best_median_and_worst():
    ious = {f"i{k}": float(v) for k, v in enumerate(np.random.default_rng(0).permutation(11))}
    by_value = {v: stem for stem, v in ious.items()}
    chosen = pick(ious)
    assert [rank for rank, _ in chosen] == ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
    assert {stem for _, stem in chosen} == {by_value[v] for v in (10, 9, 6, 5, 1, 0)}
    assert chosen[0][1] == by_value[10] and chosen[-1][1] == by_value[0]
    assert [rank for rank, _ in pick(dict(list(ious.items())[:5]))] == ["best", "median", "worst"]
    assert pick({"a": 0.1, "b": 0.2}) == [("best", "b"), ("worst", "a")]
    assert pick({"a": 0.1}) == [("best", "a")] and pick({}) == []


def test_the_images_drawn_are_those_that_were_scored(tmp_path, monkeypatch, capsys):
    small = dict(images(7, PIPELINE)["dataset"], type="SyntheticCamouflage", part="test")
    group = dict(A=small, B=dict(small, length=4, part="val"))
    test = dict(test_dataloader=dict(dataset=dict(datasets=dict(Synthetic=None, **group))))
    config = write_config(tmp_path, 3, TWO_EXPERTS, test)
    torch.manual_seed(3)
    save_weights(tmp_path / "w.pth", build(config), {}, "run")
    drawn = {}

    def note(rows, path, **settings):
        drawn[path.stem] = rows
        return path

    monkeypatch.setattr(extremes, "save_grid", note)
    out = tmp_path / "out"
    payload = run_test(
        prepared(config, tmp_path / "work"),
        str(tmp_path / "w.pth"),
        json_file=str(out / "all.json"),
        extremes=str(out / "ends"),
    )
    assert payload["extremes"]["folder"] == "ends"
    found = payload["extremes"]["datasets"]
    assert [len(found[name]["images"]) for name in ("A", "B")] == [6, 3]
    for name, each in found.items():
        weights = payload["routing_weights"][name]
        for image, row in zip(each["images"], drawn[name], strict=True):
            assert row.title == f"{image['rank']}: {image['stem']}"
            assert iou_and_dice(row.mixture, row.gt)[0] == pytest.approx(image["IoU"], abs=2e-3)
            for expert, weight in row.weights.items():
                assert weight == pytest.approx(weights[image["stem"]][expert], abs=1e-3)
        ious = {s: v["IoU"] for s, v in payload["table"][name]["mixture"]["images"].items()}
        assert each["images"][0]["IoU"] == max(ious.values())
        assert each["images"][-1]["IoU"] == min(ious.values())

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(extremes, "save_grid", fail)
    cfg = prepared(config, tmp_path / "again")
    again = run_test(cfg, str(tmp_path / "w.pth"), extremes=str(out / "more"))
    assert again["table"].keys() == payload["table"].keys() and "extremes" not in again
    assert (tmp_path / "again" / "test.json").is_file()
    assert f"no pictures in {out / 'more'} (OSError: disk full)" in capsys.readouterr().out

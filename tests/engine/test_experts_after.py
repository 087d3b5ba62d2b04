import json

import pytest
import torch
from miniature import STOP, TWO_EXPERTS, build, log_of, prepared, weights, write_config

from codmoe.engine.checkpoints import save_weights
from codmoe.engine.handover import summary
from codmoe.engine.hooks.mixture import table
from codmoe.engine.hooks.training import BestWeightsHook
from codmoe.engine.launch import train


def test_figures_by_hand():
    # IoU of a, b, their mean and the mixture; IoU of a's mask with b's.
    rows = [[0.2, 0.6, 0.3, 0.5, 0.1], [0.4, 0.4, 0.3, 0.5, 0.3], [0.6, 0.2, 0.3, 0.5, 0.2]]
    found = summary(rows, ("a", "b"))
    assert found["images"] == 3
    assert found["IoU"] == pytest.approx(
        dict(a=0.4, b=0.4, uniform=0.3, mixture=0.5, oracle=1.6 / 3)
    )
    assert found["diversity"] == pytest.approx(dict(pairwise_iou=0.2, error_correlation=-1.0))
    assert found["pairs"]["pairwise_iou"] == pytest.approx({"a-b": 0.2})
    same = summary([[0.5, 0.2, 0.3, 0.5, 0.1], [0.5, 0.7, 0.3, 0.5, 0.3]], ("a", "b"))
    assert same["diversity"]["error_correlation"] == 0
    lines = "\n".join(table(found, same))
    assert "IoU a               0.4000  0.5000  +0.1000" in lines
    assert "error correlation   -1.0000  0.0000  +1.0000" in lines
    assert "+" not in "\n".join(table(None, same))


def started(folder, *changes, epochs=1):
    config = write_config(folder, 3, TWO_EXPERTS, *changes, epochs=epochs)
    torch.manual_seed(7)
    save_weights(folder / "weights" / "router_best.pth", build(config), {}, "stage 2")
    return config


def read(folder, name="experts_after"):
    return json.loads((folder / f"{name}.json").read_text())


def test_experts_are_measured_before_and_with_the_weights_that_are_kept(tmp_path, monkeypatch):
    scores = [0.9, 0.1]  # the first epoch is the best
    measured = []
    real = BestWeightsHook.after_val_epoch

    def after(self, runner, metrics=None):
        measured.append(metrics)
        real(self, runner, {**metrics, "IoU": scores[runner.epoch - 1]})

    monkeypatch.setattr(BestWeightsHook, "after_val_epoch", after)
    work_dir = tmp_path / "work"
    drop = dict(default_hooks=dict(experts_after=dict(max_drop=-2.0)))  # warns of any change
    runner = train(prepared(started(tmp_path, drop, epochs=2), work_dir))
    found = read(work_dir)
    assert found["before"] == read(work_dir, "experts_before")
    for name in ("pranet", "sinet", "oracle"):
        # As RoutingMetric has it: of the first epoch, not of the last.
        assert found["after"]["IoU"][name] == pytest.approx(measured[0][f"IoU_{name}"])
        change = found["after"]["IoU"][name] - found["before"]["IoU"][name]
        assert found["change"]["IoU"][name] == pytest.approx(change)
    assert found["after"]["IoU"] != pytest.approx(found["before"]["IoU"])
    assert found["after"]["images"] == 4
    assert 0 <= found["after"]["diversity"]["pairwise_iou"] <= 1
    log = log_of(work_dir)
    assert "experts on 4 validation images" in log and "pairwise iou" in log
    assert "raise model.expert_loss_weight" in log
    # The model is left as training left it, not with the best weights.
    best, last = weights(tmp_path / "weights" / "ensemble_best.pth"), runner.model.state_dict()
    assert any(not torch.equal(best[key], last[key]) for key in best)


def test_a_resumed_run_compares_with_the_first_start(tmp_path):
    config = started(tmp_path, STOP, epochs=2)
    train(prepared(config, tmp_path / "work"))
    before = read(tmp_path / "work", "experts_before")
    config = write_config(tmp_path, 3, TWO_EXPERTS, epochs=2)
    train(prepared(config, tmp_path / "work", resume=True))
    assert read(tmp_path / "work")["before"] == before
    (tmp_path / "work" / "experts_before.json").unlink()
    config = write_config(tmp_path, 3, TWO_EXPERTS, epochs=3)
    train(prepared(config, tmp_path / "work", resume=True))
    assert read(tmp_path / "work")["before"] is None
    assert "is not known" in log_of(tmp_path / "work")

"""The learning-rate range test: what it suggests, and what it leaves alone."""

import json
import math

import numpy as np
import pytest
from miniature import call, prepared, write_config

from benchmarks.kills import settings
from codmoe.engine.lr_range import judge, lr_range, smooth


def test_the_suggestion_is_where_the_loss_falls_steepest():
    rates = np.logspace(-7, 0, 200)
    # Flat, falling around 1e-3, flat, rising from 1e-1.
    losses = 2 - np.tanh(2 * np.log10(rates / 1e-3)) + 50 * np.maximum(np.log10(rates / 1e-1), 0)
    found = judge(list(rates), list(losses))
    assert 5e-4 < found.suggestion < 4e-3  # smoothing comes a little late


def test_noise_suggests_nothing():
    rates = list(np.logspace(-7, 0, 100))
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(2, 0.3, 100)
        assert judge(rates, list(noise)).suggestion is None
        falling = noise - np.minimum(np.array(rates) * 300, 1.5)
        assert 1e-5 < judge(rates, list(falling)).suggestion < 1e-1
    assert judge(rates, list(range(100))).suggestion is None
    assert judge([1e-7, 2e-7], [1.0, math.nan]).suggestion is None


def test_smoothing_has_no_bias_at_the_beginning():
    assert smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0] * 3)


def test_the_callers_config_stays(tmp_path, monkeypatch):
    def end(cfg):
        raise KeyboardInterrupt

    monkeypatch.setattr("codmoe.engine.lr_range.settle", end)
    cfg = prepared(write_config(tmp_path), tmp_path / "work")
    before = cfg.pretty_text
    with pytest.raises(KeyboardInterrupt):
        lr_range(cfg)
    assert cfg.pretty_text == before


# Of torch's own rate.
PLAIN = dict(paramwise_cfg=dict(_delete_=True), optimizer=dict(_delete_=True, type="SGD"))


@pytest.mark.parametrize(("accumulate", "changes"), [(1, {}), (2, dict(optim_wrapper=PLAIN))])
def test_it_leaves_a_curve_and_no_training(tmp_path, monkeypatch, capsys, accumulate, changes):
    config = write_config(tmp_path, 1, {**settings(1, tmp_path), **changes})
    work = tmp_path / "work"
    work.mkdir()
    (work / "last_checkpoint").write_text("mine")
    words = ("--work-dir", work, "--lr-range", 12, "--accumulate", accumulate)
    assert call(monkeypatch, "train", config, *words) is None
    found = json.loads((work / "lr_range" / "lr_range.json").read_text())
    rates = found["rates"]
    assert len(rates) == len(found["losses"]) <= 12 and rates[0] == pytest.approx(1e-7)
    assert np.diff(np.log(rates)) == pytest.approx(math.log(1e7) / 11)
    assert (work / "lr_range" / "lr_range.png").is_file()
    told = capsys.readouterr().out
    assert "suggestion" in told and "curve    " in told
    assert [p.name for p in work.iterdir() if p.is_file()] == ["last_checkpoint"]
    assert (work / "last_checkpoint").read_text() == "mine"
    assert not list(tmp_path.rglob("*.pth"))

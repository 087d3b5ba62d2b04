"""The largest batch: searched in few trials, on GPUs alone, and kept when a run goes on."""

import json

import pytest
import torch
from miniature import prepared, write_config

from benchmarks.kills import settings
from codmoe.engine.auto_batch import RECORD, BatchTrial, largest, rate_advice, settle_batch
from codmoe.engine.launch import settle, train


@pytest.mark.parametrize("limit", [0, 1, 2, 11, 12, 13, 100, 500])
@pytest.mark.parametrize("start", [1, 12])
def test_the_search_ends_within_a_sixteenth(limit, start):
    tried = []
    found = largest(lambda size: tried.append(size) or size <= limit, start, 200)
    best = min(limit, 200)
    assert best - max(best // 16, 1) < found <= best or found == best == 0
    assert len(tried) == len(set(tried)) <= 12 and max(tried) <= 200


def settled(tmp_path, **changes):
    cfg = prepared(write_config(tmp_path, 1, settings(1, tmp_path)), tmp_path / "work", **changes)
    settle(cfg)
    return cfg


def test_without_a_gpu_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = prepared(write_config(tmp_path, 1, settings(1, tmp_path)), tmp_path / "work")
    with pytest.raises(ValueError, match=r"on a GPU, and there is none here.*batch_size.*now 4"):
        train(cfg, auto_batch=True)


def test_a_run_that_goes_on_keeps_its_batch(tmp_path):
    cfg = settled(tmp_path)
    with pytest.raises(ValueError, match=r"began without it; leave it out"):
        settle_batch(cfg, resume=True)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / RECORD).write_text('{"batch_size": 3}')
    settle_batch(cfg, resume=True)
    assert cfg.train_dataloader.batch_size == 3


def test_fixed_sizes_are_refused(tmp_path, monkeypatch):
    cfg = settled(tmp_path, **{"compile.experts": True})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"--auto-batch with compile, .*for one size"):
        settle_batch(cfg, resume=False)


def test_what_the_rules_make_of_the_rate():
    told = rate_advice(1e-3, 4.0)
    assert "stays 0.001" in told and "lr=0.002" in told and "SGD 0.004" in told
    assert rate_advice(1e-3, 1.0) == rate_advice(None, 2.0) == "the learning rate stays"


@pytest.mark.parametrize("accumulate", [1, 3])
def test_trials_train_and_leave_the_config(tmp_path, monkeypatch, accumulate):
    """On the CPU, whose memory a list stands for; steps, model and optimiser are the real ones."""
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    cfg = settled(tmp_path, **{"optim_wrapper.accumulative_counts": accumulate})
    before, sizes = cfg.pretty_text, []
    trial = BatchTrial(cfg, "cpu", 10.0)
    assert trial.images == 12
    monkeypatch.setattr(BatchTrial, "peak", lambda self: sizes[-1])
    real = type(trial.model).train_step

    def step(self, data, optim_wrapper):
        sizes.append(len(data["inputs"]))
        if sizes[-1] > 12:
            raise torch.OutOfMemoryError("no more")
        return real(self, data, optim_wrapper)

    monkeypatch.setattr(type(trial.model), "train_step", step)
    weight = next(trial.model.parameters()).clone()
    assert [trial.fits(size) for size in (9, 11, 13)] == [True, False, False]
    assert sizes.count(9) == 2 * min(accumulate, 2)
    assert set(trial.tried) == {9, 11, 13} and trial.tried[13] is None
    assert not torch.equal(next(trial.model.parameters()), weight)  # the optimiser has its state
    assert cfg.pretty_text == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(tmp_path, monkeypatch):
    many = {"train_dataloader.dataset.length": 4096}
    free = torch.cuda.mem_get_info()[0]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (min(free, 2**29), free))
    runner = train(prepared(write_config(tmp_path, 1, settings(1, tmp_path)), tmp_path / "work",
        **many, **{"train_cfg.max_epochs": 1}), auto_batch=True)  # fmt: skip
    record = json.loads((tmp_path / "work" / RECORD).read_text())
    assert runner.train_dataloader.batch_size == record["batch_size"] > 4
    assert record["gib"][str(record["batch_size"])] <= 0.9 * 0.5

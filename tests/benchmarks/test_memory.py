"""The memory of a training step, counted on the CPU."""

import pytest
import torch
from miniature import TWO_EXPERTS, call, write_config
from torch import nn

from benchmarks.memory import SavedBytes, Traffic, peak_memory, traffic


def test_what_autograd_keeps_is_counted_once_and_let_go():
    layer = nn.Linear(4, 4)
    x = torch.ones(8, 4, requires_grad=True)
    with SavedBytes(layer) as saved:
        y = layer(x).relu()
        assert saved.now == 2 * 8 * 4 * 4  # x and the output; not the weight
        z = (y * y).sum()
        assert saved.now == saved.peak == 2 * 8 * 4 * 4  # the output again
        z.backward()
        del y, z
        assert saved.now == 0 and saved.peak == 2 * 8 * 4 * 4


def test_the_tool_shows_that_one_expert_at_a_time_is_less(tmp_path, monkeypatch, capsys):
    config = write_config(tmp_path, 1, TWO_EXPERTS)
    saved = {}
    for execution in ("together", "sequential"):
        options = {"model.expert_execution": execution}
        saved[execution] = peak_memory(config, options, size=96)["saved_gib"]
    assert 0 < saved["sequential"] < saved["together"]
    arguments = ("--size", 64, "--batch", 2)
    assert call(monkeypatch, "benchmarks.memory", config, *arguments) is None
    assert "device CPU, batch 2, saved_gib 0." in capsys.readouterr().out
    assert "no GPU" in call(monkeypatch, "benchmarks.memory", config, "--limit", 16)
    assert call(monkeypatch, "benchmarks.memory", config, "--size", 64, "--parts") is None
    assert "backbone@1_mib " in capsys.readouterr().out


def test_a_limit_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="limit=16: there is no GPU"):
        peak_memory("experts/joint", limit=16)


def test_what_operations_read_and_write_is_counted():
    x = torch.ones(4, 8)
    with Traffic() as counted:
        (x + 1).view(2, 16).t()
    assert counted.operations == 1 and counted.bytes == 2 * 4 * 8 * 4


def test_traffic_is_told_by_part_and_grows_with_the_images(tmp_path, monkeypatch, capsys):
    config = str(write_config(tmp_path, 3, TWO_EXPERTS, dict(init_from=None)))
    one, two = (traffic(config, batch=batch, size=256) for batch in (2, 4))
    judges = [f"experts.{name}.structure_loss.judge" for name in ("pranet", "sinet")]
    parts = ["backbone", "router", "experts.pranet", "experts.sinet", "combiner", *judges]
    assert sorted(one) == sorted([*parts, "mixture_loss.judge", "others", "whole"])
    assert 1.5 < two["whole"][0] / one["whole"][0] < 2.1
    assert one["whole"][1] == two["whole"][1] == sum(n for k, (_, n) in one.items() if k != "whole")
    assert call(monkeypatch, "benchmarks.memory", config, "--size", 64, "--traffic") is None
    assert "experts.sinet" in capsys.readouterr().out

import json
import time

import torch
from miniature import TWO_EXPERTS, call, write_config

from benchmarks.parity import Limits, _Run, as_if_trained
from codmoe.compiled.prepared import CompiledMoE
from codmoe.inference.zoo import create_model


def test_one_run_says_how_fast_how_equal_and_what_runs(tmp_path, monkeypatch, capsys):
    config, out = write_config(tmp_path, 3, TWO_EXPERTS), tmp_path / "parity.json"
    options = ["--size", 64, "--large", 2, "--repeats", 1, "--device", "cpu", "--json", out]
    options += ["--model-options", "top_k=1"]
    assert call(monkeypatch, "benchmarks.parity", config, *options) is None
    result, text = json.loads(out.read_text()), capsys.readouterr().out
    assert "!!" not in text and "prepared model: eager, fp32" in text
    parity = result["parity_fp32"]
    assert list(parity) == ["pranet", "sinet", "router"]
    assert all(row["max"] < 1e-4 for row in parity.values())
    whats = {(row["batch"], row["route"], row["what"]) for row in result["speed"]}
    routes, kinds = ("router's choice", "pranet", "sinet"), ("eager", "prepared")
    assert {(b, r, w) for b in (1, 2) for r in routes for w in kinds} <= whats
    assert {"backbone", "router", "combiner 1 False"} <= set(result["pieces_1"])


def test_a_further_backend_is_timed_and_compared_on_routes_of_equal_groups(tmp_path):
    """As --inductor does, with a backend that needs no minutes."""
    model = create_model(write_config(tmp_path, 3, TWO_EXPERTS), top_k=1)
    as_if_trained(model, 64).requires_grad_(False)
    results = {}
    run = _Run(model, torch.device("cpu"), 64, 1, results)
    run.compiled(CompiledMoE(model, dtype="fp32"), 2, dtype="fp32", backend="cudagraph")
    seen = {(row["batch"], row["route"], row["what"]) for row in results["speed"]}
    whats = ("prepared", "prepared cudagraph")
    assert seen == {(b, r, w) for b in (1, 2) for r in ("pranet", "sinet") for w in whats}
    assert all(row["max"] < 1e-4 for row in results["parity_fp32_2"].values())
    assert list(results["parity_fp32_2"]) == ["pranet", "sinet"]
    assert "backbone" in results["pieces_2_cudagraph"]


def test_a_part_that_fails_or_hangs_is_told_and_the_next_begins(capsys):
    limits, done = Limits(60), []
    with limits.part("fails", 10):
        raise RuntimeError("broken")
    with limits.part("hangs", 0.05):
        try:
            time.sleep(5)
        except Exception:
            done.append("swallowed")
    with limits.part("works", 10):
        done.append("works")
    limits.end()
    text = capsys.readouterr().out
    assert "!! fails: RuntimeError: broken" in text and "!! hangs: OutOfTime" in text
    assert done == ["works"] and 50 < limits.left < 60

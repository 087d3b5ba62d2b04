import json
import time

import torch
from miniature import TWO_EXPERTS, call, write_config

from benchmarks.parity import ForcedRouter, Sections, _Run, as_if_trained, eager_call
from codmoe.inference.zoo import create_model


def test_one_run_says_how_fast_how_equal_and_what_runs(tmp_path, monkeypatch, capsys):
    config, out = write_config(tmp_path, 3, TWO_EXPERTS), tmp_path / "engine.json"
    options = ["--size", 64, "--large", 2, "--repeats", 1, "--device", "cpu", "--json", out]
    options += ["--model-options", "top_k=1"]
    assert call(monkeypatch, "analysis/check_engine", config, *options) is None
    result, text = json.loads(out.read_text()), capsys.readouterr().out
    assert "!!" not in text and "engine: eager, fp32" in text
    parity = result["parity_fp32"]
    assert list(parity) == ["pranet", "sinet", "router"]
    assert all(row["max"] < 1e-4 for row in parity.values())
    whats = {(row["batch"], row["route"], row["what"]) for row in result["speed"]}
    routes, kinds = ("router's choice", "pranet", "sinet"), ("eager", "engine")
    assert {(b, r, w) for b in (1, 2) for r in routes for w in kinds} <= whats
    assert {"backbone", "router", "combiner 1 True"} <= set(result["pieces_1"])


def test_a_further_backend_is_timed_and_compared_on_routes_of_equal_groups(tmp_path):
    """As --inductor does, with a backend that needs no minutes."""
    model = create_model(write_config(tmp_path, 3, TWO_EXPERTS), top_k=1)
    as_if_trained(model, 64).requires_grad_(False)
    results = {}
    run = _Run(model, torch.device("cpu"), 64, 1, results)
    run.compiled(run.engine("", dtype="fp32"), 2, dtype="fp32", backend="cudagraph")
    seen = {(row["batch"], row["route"], row["what"]) for row in results["speed"]}
    whats = ("engine", "engine cudagraph")
    assert seen == {(b, r, w) for b in (1, 2) for r in ("pranet", "sinet") for w in whats}
    assert all(row["max"] < 1e-4 for row in results["parity_fp32_2"].values())
    assert list(results["parity_fp32_2"]) == ["pranet", "sinet"]
    assert "backbone" in results["pieces_2_cudagraph"]


def test_a_section_that_fails_or_hangs_is_told_and_the_next_begins(capsys):
    sections, done = Sections(60), []
    with sections.begin("fails", 10):
        raise RuntimeError("broken")
    with sections.begin("hangs", 0.05):
        try:
            time.sleep(5)
        except Exception:
            done.append("swallowed")
    with sections.begin("works", 10):
        done.append("works")
    sections.end()
    text = capsys.readouterr().out
    assert "!! fails: RuntimeError: broken" in text and "!! hangs: OutOfTime" in text
    assert done == ["works"] and 50 < sections.left < 60


def test_a_forced_route_runs_the_router_and_takes_the_names(tmp_path):
    from miniature import build

    model = build(write_config(tmp_path, 3, TWO_EXPERTS)).eval()
    images, ran = torch.randn(2, 3, 64, 64), []
    for part, name in ((model.router, "router"), *((e, n) for n, e in model.experts.items())):
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
    router = model.router
    eager_call(model, images, "fp32", ["sinet"])()
    assert ran == ["router", "sinet"] and model.router is router
    decision = ForcedRouter(router, ["sinet", "pranet"])(images, model.backbone(images))
    assert decision.indices.tolist() == [[1, 0]] * 2 and decision.weights.unique().item() == 0.5

"""The benchmark measures all that was asked for, counts what adds up, and says what it cannot."""

import json

import pytest
import torch
from miniature import build, call, write_config

from codmoe.engine.config import load_config
from codmoe.evaluation.cost import count_flops, summarise
from codmoe.inference import benchmark as cases
from codmoe.inference.benchmark import COLUMNS, Costs, benchmark
from codmoe.models.routers import FixedRouter

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path, 3, dict(init_from=None, model=dict(experts=dict(pranet=None))))


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    return build(load_config(config)).eval()


def test_the_tool_measures_everything_that_is_asked_for(tmp_path, config, monkeypatch):
    out = tmp_path / "b.json"
    out.write_text("somebody's")
    options = ["--batch-sizes", 1, 2, "--sizes", 64, "--routes", "auto", "sinet,ujsc"]
    options += ["--executions", "eager", "cudagraph", "prepared", "--repeats", 2, "--warmup", 1]
    options += ["--device", "cpu", "--json", out]
    assert call(monkeypatch, "analysis/benchmark", config, *options) is None
    result = json.loads(out.read_text())
    rows = result["rows"]
    assert set(result["columns"]) == set(COLUMNS) and all(list(r) == list(COLUMNS) for r in rows)
    assert not any(isinstance(value, (dict, list)) for r in rows for value in r.values())
    runs = ("eager", "cudagraph", "prepared")
    assert [(r["batch"], r["route"], r["execution"]) for r in rows] == [
        (batch, route, run) for batch in (1, 2) for route in ("auto", "sinet,ujsc") for run in runs
    ]
    for row in rows:
        assert row["gflops"] > 0 and row["active_parameters"] > 0
        if row["execution"] == "cudagraph":
            assert row["error"] and row["median_ms"] is None
            continue
        assert row["error"] is None and row["n"] == 2
        assert 0 < row["median_ms"] <= row["p90_ms"]
        assert row["images_per_second"] > 0 and row["working_mb"] > 0
    (kept,) = tmp_path.glob("b.2*.json")
    assert kept.read_text() == "somebody's"


def test_by_default_it_is_the_image_that_the_config_tests_on(config, monkeypatch):
    """A model of 64 px was timed at 448."""
    options = ("--batch-sizes", 1, "--repeats", 1, "--warmup", 0, "--device", "cpu")
    said = []
    monkeypatch.setattr("codmoe.inference.benchmark.tell", lambda rows, *_: said.extend(rows))
    assert call(monkeypatch, "analysis/benchmark", config, *options) is None
    assert [row["size"] for row in said] == [64]


@pytest.mark.parametrize("route", ["ujsc,zoomnet", "all"])
def test_parts_add_up_to_the_operations_of_a_route(model, route):
    images = cases.images_of(1, 64, CPU, "contiguous")
    cost = Costs(model, summarise(model, 64)).route(route, images)
    run = cases.on_route(model, route)
    assert cost["gflops"] == count_flops(run, lambda: run(images))[0] / 1e9 > 0
    names = model.expert_names if route == "all" else route.split(",")
    parts = [model.backbone, model.combiner, *(model.experts[n] for n in names)]
    assert cost["active_parameters"] == sum(p.numel() for part in parts for p in part.parameters())


def test_the_routers_own_choice_is_counted_image_by_image(model):
    images = cases.images_of(3, 64, CPU, "contiguous")
    costs = Costs(model, summarise(model, 64))
    with torch.no_grad():
        model.router.fuse[-1].weight.normal_()
    alone = [count_flops(model, lambda i=i: model(images[i : i + 1]))[0] for i in range(3)]
    assert costs.route("auto", images)["gflops"] == pytest.approx(sum(alone) / 3e9)


def test_a_named_route_is_a_fixed_router(model):
    images = cases.images_of(2, 64, CPU)
    with torch.no_grad():
        ours = cases.on_route(model, "ujsc,sinet")(images)
        names = dict(in_channels=model.backbone.channels, expert_names=model.expert_names)
        model.router = FixedRouter(**names, weights=dict(sinet=1.0, ujsc=1.0))
        torch.testing.assert_close(ours, model(images))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (dict(routes=["sinet,zoomnt"]), r"'zoomnt'.*did you mean 'zoomnet'.*sinet, ujsc"),
        (dict(precisions=["fp8"]), r"precisions: 'fp8'.*fp32"),
        (dict(executions=["eagr"]), r"executions: 'eagr'.*'eager'"),
        (dict(sizes=[70]), r"size=70 is not a multiple of 32"),
        (dict(repeats=0), r"repeats must be 1 or more"),
        (dict(batch_sizes=[0]), r"batch_sizes=\[0\]"),
    ],
)
def test_what_is_asked_for_wrongly_is_told(config, asked, words):
    with pytest.raises(ValueError, match=words):
        benchmark(config, device="cpu", **asked)

"""The benchmark measures all that was asked for, counts what adds up, and says what it cannot."""

import itertools
import json

import pytest
import torch
from miniature import build, call, write_config

from codmoe.engine.config import load_config
from codmoe.inference import benchmark as cases
from codmoe.inference.benchmark import COLUMNS, Inference, benchmark, save_plot
from codmoe.inference.summary import count_flops, summarise
from codmoe.inference.timing import side_by_side, working_memory

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path, 3, dict(init_from=None, model=dict(experts=dict(pranet=None))))


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    return build(load_config(config)).eval()


def test_the_tool_measures_everything_that_is_asked_for(tmp_path, config, monkeypatch):
    out, picture = tmp_path / "b.json", tmp_path / "b.png"
    out.write_text("somebody's")
    options = ["--batch-sizes", 1, 2, "--sizes", 64, "--routes", "auto", "sinet,ujsc", "--train"]
    options += ["--precisions", "fp32", "--executions", "eager", "cudagraph", "--repeats", 2]
    options += ["--warmup", 1, "--device", "cpu", "--json", out, "--plot", picture]
    assert call(monkeypatch, "analysis/benchmark", config, *options) is None
    result = json.loads(out.read_text())
    rows = result["rows"]
    assert set(result["columns"]) == set(COLUMNS) and all(list(r) == list(COLUMNS) for r in rows)
    assert all(
        value is None or not isinstance(value, (dict, list)) for r in rows for value in r.values()
    )
    whole = [
        (r["what"], r["route"], r["batch"], r["execution"]) for r in rows if r["part"] == "whole"
    ]
    runs = ("eager", "cudagraph")
    assert sorted(whole) == sorted(
        [("inference", *c) for c in itertools.product(("auto", "sinet,ujsc"), (1, 2), runs)]
        + [("train", "auto", *c) for c in itertools.product((1, 2), runs)]
    )  # fmt: skip
    parts = [r["part"] for r in rows if r["batch"] == 2 and r["part"] != "whole"]
    scales = ["backbone at 0.5×", "backbone at 1.5×"]
    experts = ["sinet", "ujsc", "zoomnet"]
    assert parts == ["backbone", *scales, "router", *experts, "combiner"]
    for row in rows:
        if row["execution"] == "cudagraph":
            assert row["error"] and row["median_ms"] is None
            continue
        assert row["error"] is None and row["n"] == 2
        assert 0 < row["median_ms"] <= row["p90_ms"]
        assert row["images_per_second"] > 0
        assert row["working_mb"] is None if row["what"] == "train" else row["working_mb"] > 0
    # A step costs more than the inference of the same batch.
    step, forward = (
        next(r["median_ms"] for r in rows
             if (r["what"], r["route"], r["batch"], r["execution"]) == (what, "auto", 2, "eager"))
        for what in ("train", "inference")
    )  # fmt: skip
    assert step > forward
    assert picture.stat().st_size > 1000
    (kept,) = tmp_path.glob("b.2*.json")
    assert kept.read_text() == "somebody's"


def test_working_memory_is_the_peak_of_a_call(capfd):
    there = torch.zeros(2**20)

    def call():
        for _ in range(2):
            first = there + 1  # 4 MiB
            second = first + 1  # 8 at once
            del first
        return second

    # Of the second round, the first one's result is still there.
    assert working_memory(call, CPU) == pytest.approx(12, abs=0.1)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("route", ["ujsc,zoomnet", "all"])
def test_parts_add_up_to_the_operations_of_a_route(model, route):
    images = cases.images_of(1, 64, CPU, "contiguous")
    group = Inference(model, images, summarise(model, 64))
    run = cases.on_route(model, route)
    assert group.cost(route)[0] == count_flops(model, lambda: run(images))[0] > 0
    names = model.expert_names if route == "all" else route.split(",")
    parts = [model.backbone, model.combiner, *(model.experts[n] for n in names)]
    assert group.cost(route)[1] == sum(p.numel() for part in parts for p in part.parameters())


def test_the_routers_own_choice_is_counted_image_by_image(model):
    images = cases.images_of(3, 64, CPU, "contiguous")
    group = Inference(model, images, summarise(model, 64))
    with torch.no_grad():
        model.router.fuse[-1].weight.normal_()
    alone = [count_flops(model, lambda i=i: model(images[i : i + 1]))[0] for i in range(3)]
    assert group.cost("auto")[0] == pytest.approx(sum(alone) / 3)


def test_a_named_route_is_a_fixed_router(model):
    images = cases.images_of(2, 64, CPU, "channels_last")
    with torch.no_grad():
        ours = cases.on_route(model, "ujsc,sinet")(images)
        names = dict(in_channels=model.backbone.channels, expert_names=model.expert_names)
        model.router = cases.FixedRouter(**names, weights=dict(sinet=1.0, ujsc=1.0))
        torch.testing.assert_close(ours, model(images))


def test_more_experts_are_copies_by_name(config):
    cfg = load_config(config)
    names = list(cases.expert_names(cfg, 4))
    assert names == ["sinet", "ujsc", "zoomnet", "sinet_2"]
    assert list(cases.expert_names(cfg, 7))[-1] == "sinet_3"
    model = cases.build(cfg, experts=4, top_k=3, device=CPU)
    assert set(model.expert_names) == set(names) and model.router.top_k == 3
    assert cases.build(cfg, experts=2, device=CPU).expert_names == ("sinet", "ujsc")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (dict(routes=["sinet,zoomnt"]), r"'zoomnt'.*did you mean 'zoomnet'.*sinet, ujsc"),
        (dict(routes=["zoomnet"], experts=[2]), r"'zoomnet'.*sinet, ujsc"),
        (dict(precisions=["fp8"]), r"precisions: 'fp8'.*fp32"),
        (dict(executions=["eagr"]), r"executions: 'eagr'.*'eager'"),
        (dict(layouts=["nhwc"]), r"layouts: 'nhwc'.*channels_last"),
        (dict(top_k=[4]), r"top_k=4 is more than the 3 experts"),
        (dict(sizes=[70]), r"size=70 is not a multiple of 32"),
        (dict(repeats=0), r"repeats must be 1 or more"),
        (dict(batch_sizes=[0]), r"batch_sizes=\[0\]"),
    ],
)
def test_what_is_asked_for_wrongly_is_told(config, asked, words):
    with pytest.raises(ValueError, match=words):
        benchmark(config, device="cpu", **asked)


def test_calls_are_timed_in_turns_and_all_equally_often():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = side_by_side(calls, CPU, repeats=20)
    rounds = [order[i : i + 3] for i in range(0, 60, 3)]
    assert len(order) == 60 and all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1
    samples["a"].seconds = [float(i) for i in range(1, 11)]
    samples["a"].burst = 2.0
    figures = samples["a"].figures(batch=4)
    assert figures == dict(n=10, median_ms=5500.0, p90_ms=9000.0, images_per_second=2.0)


def test_a_plot_of_one_value_is_refused(tmp_path):
    row = dict.fromkeys(COLUMNS) | dict(part="whole", median_ms=1.0, batch=1)
    with pytest.raises(ValueError, match="--batch-sizes"):
        save_plot([row], tmp_path / "p.png")

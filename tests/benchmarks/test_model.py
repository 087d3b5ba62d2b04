"""Parts, training steps and growth are measured, and what cannot be is said."""

import json

import pytest
import torch
from miniature import call, write_config

from benchmarks import model as cost
from codmoe.compiled.speed import compiled_parts
from codmoe.engine.config import load_config
from codmoe.inference.benchmark import build


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path, 3, dict(init_from=None, model=dict(experts=dict(pranet=None))))


def test_the_command_measures_parts_and_training_steps(tmp_path, config, monkeypatch):
    out, picture = tmp_path / "b.json", tmp_path / "b.png"
    options = ["--batch-sizes", 1, 2, "--sizes", 64, "--train", "--executions", "eager"]
    options += ["cudagraph", "--repeats", 2, "--warmup", 1, "--device", "cpu", "--json", out]
    assert call(monkeypatch, "benchmarks.model", config, *options, "--plot", picture) is None
    result = json.loads(out.read_text())
    rows = result["rows"]
    assert all(list(row) == list(result["columns"]) == list(cost.OUR_COLUMNS) for row in rows)
    whole = {
        (r["what"], r["batch"], r["execution"]): r for r in rows if r["part"] == "whole"
    }  # fmt: skip
    runs = ("eager", "cudagraph")
    assert set(whole) == {(w, b, r) for w in ("inference", "train") for b in (1, 2) for r in runs}
    parts = [r["part"] for r in rows if r["batch"] == 2 and r["part"] != "whole"]
    scales = ["backbone at 0.5×", "backbone at 1.5×"]
    experts = ["sinet", "ujsc", "zoomnet"]
    assert parts == ["backbone", *scales, "router", *experts, "combiner"]
    for row in rows:
        if row["execution"] == "cudagraph":
            assert row["error"] and row["median_ms"] is None
            continue
        assert row["error"] is None and row["n"] == 2 and row["layout"] == "channels_last"
        assert 0 < row["median_ms"] <= row["p90_ms"] and row["images_per_second"] > 0
        assert row["working_mb"] is None if row["what"] == "train" else row["working_mb"] > 0
    # A step costs more than the inference of the same batch.
    step, forward = (whole[what, 2, "eager"]["median_ms"] for what in ("train", "inference"))
    assert step > forward
    assert picture.stat().st_size > 1000


def test_images_have_the_size_at_which_the_config_tests(config):
    options = dict(batch_sizes=[1], parts=False, repeats=1, warmup=0, device="cpu")
    assert {row["size"] for row in cost.benchmark(config, **options)["rows"]} == {64}


def test_a_compiled_step_is_not_captured(config):
    """torch would begin a new step where an expert's own backward pass ends."""
    cfg = load_config(config)
    model = build(cfg, None, torch.device("cpu"))
    shape = dict(batch=1, size=64, layout="channels_last")
    cost.training_step(cfg, model, precision="fp32", compiled=True, **shape)
    assert {part.mode for part in compiled_parts(model).values()} == {None}


def test_more_experts_are_copies_by_name(config):
    cfg = load_config(config)
    names = list(cost.expert_names(cfg, 4))
    assert names == ["sinet", "ujsc", "zoomnet", "sinet_2"]
    assert list(cost.expert_names(cfg, 7))[-1] == "sinet_3"
    model = build(cost.grown(cfg, 4, 3), None, torch.device("cpu"))
    assert set(model.expert_names) == set(names) and model.router.top_k == 3
    assert list(cost.expert_names(cost.grown(cfg, 2, None))) == ["sinet", "ujsc"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (dict(routes=["zoomnet"], experts=[2]), r"'zoomnet'.*sinet, ujsc"),
        (dict(layouts=["nhwc"]), r"layouts: 'nhwc'.*channels_last"),
        (dict(top_k=[4]), r"top_k=4 is more than the 3 experts"),
        (dict(experts=[0]), r"experts=\[0\] must be 1 or more"),
    ],
)
def test_what_is_asked_for_wrongly_is_told(config, asked, words):
    with pytest.raises(ValueError, match=words):
        cost.benchmark(config, device="cpu", **asked)


def test_a_plot_of_one_value_is_refused(tmp_path):
    row = dict.fromkeys(cost.OUR_COLUMNS) | dict(part="whole", median_ms=1.0, batch=1)
    with pytest.raises(ValueError, match="--batch-sizes"):
        cost.save_plot([row], tmp_path / "p.png")

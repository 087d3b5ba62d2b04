"""What the scaling benchmark starts, measures and leaves behind."""

import copy
import json
import os
import pickle
import re
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from miniature import ONE_EXPERT, ROOT, write_config

from benchmarks import scaling
from benchmarks.scaling import (
    MODES,
    VARIANTS,
    benchmark_modes,
    benchmark_scaling,
    expert_load,
    overrides,
    reference_of,
)
from benchmarks.step_timing import (
    LoaderClock,
    StepTimer,
    SyntheticBatches,
    image_size,
    measure,
    noting_waits,
)
from codmoe.engine.config import load_config

THREE_EXPERTS = dict(init_from=None, model=dict(experts=dict(zoomnet=None)))


def test_the_tool_measures_one_and_two_processes(tmp_path):
    config = write_config(tmp_path, 3, THREE_EXPERTS)
    out = tmp_path / "scaling.json"
    out.write_text("somebody's")
    command = [sys.executable, "-m", "benchmarks.scaling", config, "--gpus", "2", "--size", "64"]
    command += ["--steps", "3", "--warmup", "1"]
    command += ["--variants", "no_find_unused+no_bucket_view", "--json", out, "--work-dir", "work"]
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [*map(str, command)], cwd=tmp_path, env=env, text=True, capture_output=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    one, two = json.loads(out.read_text())["runs"]
    assert (one["processes"], one["launcher"], one["ddp"]) == (1, "none", None)
    assert (two["processes"], two["backend"]) == (2, "gloo")
    assert (one["images_per_step"], two["images_per_step"]) == (4, 8)
    for run in (one, two):
        assert run["images_per_second"] == pytest.approx(
            run["images_per_step"] / run["step_seconds"]
        )
        assert len(run["loader_wait_share"]) == run["processes"]
        assert all(0 <= share < 1 for share in run["loader_wait_share"])
        low, high = run["step_seconds_p10_p90"]
        assert 0 < low <= run["step_seconds"] <= high
        # Each image has two experts of three.
        for rank in run["expert_load"]["images_per_step"]:
            assert sum(rank.values()) == pytest.approx(8)
    # A fresh router chooses by its noise alone, which is another on each process.
    first, second = two["expert_load"]["images_per_step"]
    assert first != second
    assert two["efficiency"] == pytest.approx(
        two["images_per_second"] / (2 * one["images_per_second"])
    )
    # Everything that is trained is sent once a step, in float32.
    assert two["ddp"]["bytes_per_step"] == 4 * two["parameters_trained"]
    options = two["ddp"]["options"]
    assert not options["gradient_as_bucket_view"] and not options["find_unused_parameters"]
    for log in tmp_path.glob("work/*/output.log"):
        said = [line for line in log.read_text().splitlines() if line.startswith("timing")]
        assert said == ["timing begins", "timing ended"], "by one of the processes"
    assert "efficiency" in done.stdout and "no_find_unused+no_bucket_view" in done.stdout
    (kept,) = tmp_path.glob("scaling.2*.json")
    assert kept.read_text() == "somebody's"

    # An earlier call's run of one process serves again, but not for another config.
    wanted = dict(variants=["no_find_unused"], steps=3, warmup=1, size=64, reference=str(out))
    wanted |= dict(work_dir=str(tmp_path / "again"), budget=0.0)
    again = benchmark_scaling(str(config), **wanted, options={})
    assert [run["variant"] for run in again["runs"]] == [one["variant"]]
    assert again["runs"][0]["step_seconds"] == one["step_seconds"]
    assert again["not_run"] == ["no_find_unused, 2 process(es)"]
    with pytest.raises(ValueError, match=r"options=.*leave --reference out"):
        benchmark_scaling(str(config), **wanted, options={"train_dataloader.batch_size": 2})


def test_a_run_that_does_not_end_is_told_and_the_rest_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path, 1, ONE_EXPERT)
    limits = dict(timeout=0.5, budget=20.3, json_file="s.json")
    benchmark_scaling(str(config), variants=["as_configured"], **limits)
    left = json.loads((tmp_path / "s.json").read_text())
    (run,) = left["runs"]
    assert run["error"].startswith("no result within") and "output.log" in run["error"]
    assert left["not_run"] == ["as_configured, 2 process(es)", "as_configured, 1 process(es)"]


def test_the_configs_own_loader_is_waited_for(tmp_path):
    spec = dict(config=str(write_config(tmp_path, 1, ONE_EXPERT)), options={}, data="config")
    figures = measure(dict(spec, steps=3, warmup=1, work_dir=str(tmp_path / "work")), "none")
    assert len(figures["seconds"][0]) == len(figures["waits"][0]) == 3
    # Without worker processes the images are made in these waits.
    assert sum(figures["waits"][0]) > 0.01 * sum(figures["seconds"][0])
    assert not list((tmp_path / "work").glob("*.pth")) and not (tmp_path / "weights").exists()


def test_a_run_that_fails_while_it_is_timed_says_that_it_ended(tmp_path, monkeypatch, capsys):
    spec = dict(config=str(write_config(tmp_path, 1, ONE_EXPERT)), options={}, data="synthetic")
    batch = SyntheticBatches.__getitem__

    def fail_later(self, index):
        if index == 2:
            raise RuntimeError("out of memory")
        return batch(self, index)

    monkeypatch.setattr(SyntheticBatches, "__getitem__", fail_later)
    with pytest.raises(RuntimeError, match="out of memory"):
        measure(dict(spec, steps=3, warmup=1, size=64, work_dir=str(tmp_path / "work")), "none")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("timing")]
    assert said == ["timing begins", "timing ended"]


def test_what_is_asked_for_wrongly_is_told_before_anything_runs(tmp_path):
    config = str(write_config(tmp_path, 1, ONE_EXPERT))
    with pytest.raises(ValueError, match=r"'no_bucket_veiw'.*'no_bucket_view'"):
        benchmark_scaling(config, variants=["sparse+no_bucket_veiw"])
    with pytest.raises(ValueError, match=r"data='real'"):
        benchmark_scaling(config, data="real")
    with pytest.raises(ValueError, match=r"steps=0"):
        benchmark_scaling(config, steps=0)
    with pytest.raises(ValueError, match=r"model_wrapper_cfg: .*'static_grap'.*'static_graph'"):
        load_config(config, {"model_wrapper_cfg.static_grap": True})
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; make it with --gpus 1"):
        benchmark_scaling(config, reference="nowhere")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list\.json is no file .*; make it with --gpus 1"):
        benchmark_scaling(config, reference=str(tmp_path / "list.json"))


def test_every_variant_fits_the_shipped_configs():
    for variant in VARIANTS:
        for config in ("experts/joint", "ensemble/stage3"):
            load_config(config, overrides(variant))


def test_one_process_is_measured_once_for_what_concerns_ddp_alone():
    assert reference_of("no_find_unused+buckets_100mb") == "as_configured"
    assert reference_of("sparse+no_bucket_view") == "sparse"
    assert reference_of("compile+no_find_unused") == "compile"


def test_expert_load():
    # Two ranks, two steps; a is chosen evenly, b by one rank at a time, c by nobody.
    loads = [[[2, 2, 0], [2, 0, 0]], [[2, 0, 0], [2, 2, 0]]]
    load = expert_load(loads, ["a", "b", "c"])
    assert load["images_per_step"] == [dict(a=2, b=1, c=0)] * 2
    assert load["between_experts"] == pytest.approx(8 / 4)
    assert load["between_ranks"] == pytest.approx(dict(a=1, b=2, c=0))


def test_waits_for_the_device_are_counted_by_the_line_that_waits():
    """With torch's own words for it, which only a GPU makes it say."""
    counts = Counter()
    with pytest.warns(UserWarning, match="something else"), noting_waits(counts):
        for _ in range(3):
            warnings.warn(
                "called a synchronizing CUDA operation (Triggered internally)", stacklevel=1
            )
        warnings.warn("something else", stacklevel=1)
    ((where, count),) = counts.items()
    assert count == 3 and re.fullmatch(r"tests/benchmarks/test_scaling\.py:\d+", where)


def test_what_watches_the_router_goes_with_it_to_a_process_that_compiles_it():
    timer = StepTimer(LoaderClock(), 1, 1, keep=lambda: None)
    router = torch.nn.Linear(1, 1)
    router.register_forward_hook(timer.watch)
    pickle.loads(pickle.dumps(copy.deepcopy(router)))


def test_size_of_synthetic_images():
    assert image_size(load_config("ensemble/stage3")) == (448, 448)
    assert image_size(load_config("quickstart/stage1")) == (168, 168)


@pytest.fixture
def launched(monkeypatch):
    """Runs that ``benchmark_modes`` starts; each ends at once, and takes its time by the clock."""
    started, clock = [], [0.0]

    def launch(spec, folder, processes, launcher, timeout):
        options = spec["options"]
        started.append((spec["config"], folder.name, timeout, options))
        clock[0] += 100
        if "no_graphs" in folder.name:
            return dict(error="no result within 100 s")
        exact = [3.0, 4.0] if options.get("amp") is False else [3.0, 4.5]
        times = dict(step_seconds=0.1, step_seconds_p10_p90=[0.1, 0.1], images_per_second=20.0)
        if "compile.backbone" in options:
            compiled = 16 if "first_start" in folder.name else 0
            times["compiling"] = dict(pieces=16, compiled=compiled, seconds=50.0 * (compiled > 0))
        return dict(
            times, peak_allocated=[None], start_seconds=9.0, first_gradients=dict(body=exact)
        )

    monkeypatch.setattr(scaling, "_launch", launch)
    monkeypatch.setattr(scaling.time, "monotonic", lambda: clock[0])
    return started


def test_modes_are_measured_in_their_order_until_time_is_spent_and_then_gone_on(tmp_path, launched):
    file = str(tmp_path / "modes.json")
    configs = ["ensemble/stage3", "experts/joint"]
    call = dict(json_file=file, steps=5, warmup=1, work_dir=str(tmp_path), budget=320)
    first = benchmark_modes(configs, **call)
    assert [(config, name) for config, name, *_ in launched] == [
        ("ensemble/stage3", "ensemble_stage3_compile_first_start"),
        ("ensemble/stage3", "ensemble_stage3_compile_second_start"),
        ("ensemble/stage3", "ensemble_stage3_as_configured"),
        ("ensemble/stage3", "ensemble_stage3_compile+no_graphs"),
    ]
    # 50 s of the first are those of processes that compile, and count for nobody.
    assert [timeout for *_, timeout, _ in launched] == [300, 270, 170, 70]
    assert first["not_run"][0] == "ensemble/stage3 compile+cudnn_benchmark"
    assert len(first["not_run"]) + 4 == len(MODES)
    assert json.loads(Path(file).read_text()) == json.loads(json.dumps(first))

    second = benchmark_modes(configs, **dict(call, budget=1e6))
    # What failed is made again; nothing else is.
    assert len(launched) == len(MODES) + 1 and not second["not_run"]
    by_name = {(r["config"], r["variant"], r["start"]): r for r in second["runs"]}
    assert len(by_name) == len(MODES)
    off = by_name["ensemble/stage3", "compile", "second start"]["gradients_from_float32"]
    assert off["body"] == pytest.approx(0.5 / 5)
    benchmark_modes(configs, **call)
    failed = [name for _, name, *_ in launched[len(MODES) + 1 :]]
    assert failed == ["ensemble_stage3_compile+no_graphs"]


def test_modes_asked_for_wrongly_are_told(tmp_path, launched):
    file = str(tmp_path / "modes.json")
    with pytest.raises(ValueError, match="'graphs' is no mode"):
        benchmark_modes(["ensemble/stage3"], json_file=file, only=["graphs"])
    benchmark_modes(["ensemble/stage3"], json_file=file, only=["float32"], steps=5)
    assert len(launched) == 1
    with pytest.raises(ValueError, match=r"modes\.json is of other .*give another --json"):
        benchmark_modes(["ensemble/stage3"], json_file=file, steps=6)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list\.json is no file of this command"):
        benchmark_modes(["ensemble/stage3"], json_file=str(tmp_path / "list.json"))


def test_a_run_tells_its_start_and_its_first_gradients(tmp_path):
    # Its images are not on this machine.
    away = dict(_delete_=True, type="COD10K", data_root=str(tmp_path / "away"), subset="Train")
    config = write_config(tmp_path, 1, ONE_EXPERT, dict(train_dataloader=dict(dataset=away)))
    spec = dict(config=str(config), options={}, data="synthetic")
    spec |= dict(steps=1, warmup=1, size=64, started=time.time())
    figures = [measure(dict(spec, work_dir=str(tmp_path / name)), "none") for name in "ab"]
    assert 0 < figures[0]["start_seconds"] < time.time() - spec["started"]
    first, again = (figure["first_gradients"] for figure in figures)
    assert sorted(first) == ["backbone", "experts.sinet"] and figures[0]["profile"] is None
    assert all(any(sums) and len(sums) == 256 for sums in first.values())
    assert first == again and figures[0]["first_loss"] == figures[1]["first_loss"]

import json

import pytest
from miniature import call, write_config

from benchmarks.loader import READING, set_cache, verdict, worker_counts


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config"))


def test_benchmark_measures_and_tells(config, tmp_path, monkeypatch, capsys):
    file = tmp_path / "bench.json"
    arguments = (config, "--seconds", 0.2, "--workers", 0, 1, "--json", file, "--cache", "both")
    assert call(monkeypatch, "benchmarks.loader", *arguments, "--target", 1) is None
    report = json.loads(file.read_text())
    assert report["batch_size"] == 4 and report["target"] == 1 and report["cores"] >= 1
    assert [run["cache"] for run in report["runs"]] == ["not cached", "cached"]
    for run in report["runs"]:
        assert list(run["images_per_second"]) == ["0", "1"] and run["samples"] == 8
        assert min(run["images_per_second"].values()) > 5
        steps = run["milliseconds_per_image"]
        assert list(steps) == [READING, "1 LoadCODPair", "2 PackCODInputs"]
        assert all(min(times) >= 0 for times in steps.values())
        # The CPU's time is no longer than the time that passed, but for the clocks' steps.
        passed, busy = (sum(times[k] for times in steps.values()) for k in (0, 1))
        assert 0 < busy <= 1.1 * passed + 0.1
        assert run["cpu_milliseconds_in_main_process"]["1"] > 0
        assert run["verdict"].startswith("from 0 worker(s) on")
    # Synthetic images are made before the pipeline, and once only if they are kept.
    plain, cached = (run["milliseconds_per_image"][READING][1] for run in report["runs"])
    assert plain > 3 * cached
    assert "images/s of one core" in capsys.readouterr().out
    for wrong, message in (
        (("--workers", "-1"), "--workers [-1]"),
        (("--target", "0"), "--target 0"),
        (("--part", "val", "--data-root", "x", "--cfg-options", "val_dataloader=None"), "no val_"),
    ):
        assert message in call(monkeypatch, "benchmarks.loader", config, "--seconds", 0.1, *wrong)


def test_verdict_counts_what_was_measured():
    rates = {0: 400.0, 1: 300.0, 2: 550.0, 4: 1100.0}
    assert verdict(rates, 500, 4).startswith("from 2 worker(s) on the loader is not the bottleneck")
    missed = verdict(rates, 5000, 4)
    assert missed.startswith("5,000 images/s not reached: 1,100 at best, with 4 worker(s) on 4")
    assert "Not measured: 19 would do" in missed
    # Four workers on two cores are two cores' worth; no worker is no guide to workers.
    assert "Not measured: 10 would do" in verdict(rates, 5000, 2)
    assert "300 at best" in verdict({0: 400.0, 1: 300.0}, 500, 2)


def test_worker_counts_end_at_the_cores():
    assert worker_counts(1) == [0, 1] and worker_counts(2) == [0, 1, 2]
    assert worker_counts(12) == [0, 1, 2, 4, 8, 12]


def test_cache_is_switched_in_every_data_set_that_has_one():
    inner = dict(type="CODDataset", data_root="x", cache=dict(dir="d"))
    node = dict(type="DatasetGroup", datasets=dict(a=inner, b=dict(type="COD10K", data_root="y")))
    assert set_cache(node, True)
    assert inner["cache"] == dict(dir="d") and node["datasets"]["b"]["cache"] is True
    assert set_cache(node, False) and inner["cache"] is False and "cache" not in node
    assert not set_cache(dict(type="DatasetGroup", datasets={}), True)

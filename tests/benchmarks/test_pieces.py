import json

import pytest
from miniature import TWO_EXPERTS, call, write_config

from benchmarks.pieces import bound, processes


def test_pieces_are_timed_against_their_bound_beside_candidates(tmp_path, monkeypatch, capsys):
    config, out = write_config(tmp_path, 3, TWO_EXPERTS), tmp_path / "pieces.json"
    options = ["--size", 64, "--large", 2, "--repeats", 1, "--device", "cpu", "--backend", "eager"]
    options += ["--dtype", "fp32", "--json", out, "--model-options", "top_k=1"]
    options += ["--only", "router, candidates", "whole"]
    call(monkeypatch, "benchmarks.pieces", config, *options)
    result, text = json.loads(out.read_text()), capsys.readouterr().out
    assert text.count("timing begins") == text.count("timing ended") == 2
    timed = {(r["piece"], r["batch"], r["variant"]): r for r in result["time"] if "ms" in r}
    base = timed["texture", 2, ""]
    assert base["gflop"] > 0 and base["mb"] > 0 and base["ratio"] > 0
    assert timed["texture", 2, "padded"]["apart"] < 1e-3
    whole = [r for r in result["time"] if r["piece"] == "whole"]
    assert {r["route"] for r in whole if r["batch"] == 2} >= {"pranet", "sinet", ""}
    assert all(r["top"] for r in result["profile"]) and not any(
        "error" in r for r in result["time"]
    )


def test_a_bound_is_the_longer_of_operations_and_bytes():
    row = dict(ms=6.0, gflop=300.0, gflop_convs=100.0, mb=400.0)
    row |= dict(matmul_tflops=200.0, conv_tflops=100.0, copy_gb_s=200.0)
    assert bound(row) == dict(ops_ms=2.0, bytes_ms=2.0, bound_ms=2.0, ratio=3.0)
    assert bound({**row, "mb": 800.0})["bound_ms"] == pytest.approx(4.0)


def test_every_process_times_what_the_prepared_model_does_beside_candidates():
    for tasks in processes(16).values():
        bases = {task[:2] for task in tasks if not task[2]}
        assert all(piece == "whole" or (piece, batch) in bases for piece, batch, _ in tasks)

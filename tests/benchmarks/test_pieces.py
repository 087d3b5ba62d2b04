import json
import time

import pytest
from miniature import TWO_EXPERTS, call, write_config

from benchmarks.pieces import Limits, bound, processes, run


def test_pieces_are_timed_against_their_bound(tmp_path, monkeypatch, capsys):
    config, out = write_config(tmp_path, 3, TWO_EXPERTS), tmp_path / "pieces.json"
    options = ["--size", 64, "--large", 2, "--repeats", 1, "--device", "cpu", "--backend", "eager"]
    options += ["--dtype", "fp32", "--json", out, "--model-options", "top_k=1"]
    options += ["--only", "backbone 2", "router 2", "whole 2"]
    call(monkeypatch, "benchmarks.pieces", config, *options)
    rows, text = json.loads(out.read_text())["rows"], capsys.readouterr().out
    assert text.count("timing begins") == text.count("timing ended") == 3
    assert not any("error" in row for row in rows)
    timed = {row["piece"]: row for row in rows if "ms" in row and row["process"] == "router 2"}
    assert list(timed) == ["router", "texture", "edge", "context", "frequency"]
    bodies = [row["piece"] for row in rows if "ms" in row and row["process"] == "backbone 2"]
    assert bodies == ["backbone", "backbone@1.5", "backbone@0.5"]
    assert all(row["gflop"] > 0 and row["mb"] > 0 and row["ratio"] > 0 for row in timed.values())
    assert {row["piece"] for row in rows if row.get("top")} == {*timed, *bodies}
    whole = [row for row in rows if row["process"] == "whole 2"]
    routes = {row["route"]: row for row in whole if "route" in row}
    assert routes.keys() >= {"pranet", "sinet"}
    assert all(row["max"] < 1e-4 and row["mask"] < 0.01 for row in routes.values())
    assert "backbone" in whole[-1]["pieces"]


def test_a_bound_is_the_longer_of_operations_and_bytes():
    row = dict(ms=6.0, gflop=300.0, gflop_convs=100.0, mb=400.0)
    row |= dict(matmul_tflops=200.0, conv_tflops=100.0, copy_gb_s=200.0)
    assert bound(row) == dict(ops_ms=2.0, bytes_ms=2.0, bound_ms=2.0, ratio=3.0)
    assert bound({**row, "mb": 800.0})["bound_ms"] == pytest.approx(4.0)


def test_the_whole_comes_first():
    assert list(processes(16))[:3] == ["whole 16", "whole 1", "backbone 16"]


def test_a_piece_that_cannot_be_compiled_is_said(tmp_path, capfd):
    settings = dict(config=str(write_config(tmp_path, 3, TWO_EXPERTS)), size=64, dtype="fp32")
    settings |= dict(device="cpu", backend="eager", repeats=1, prepare=60, options={}, logs=None)
    rows = run(settings, {"odd 2": (["nobody", "combiner"], 2)}, None)["rows"]
    assert [row["piece"] for row in rows if "ms" in row] == ["combiner"]
    (error,) = (row["error"] for row in rows if "error" in row)
    assert error.startswith("nobody, 2 images: ") and error in capfd.readouterr().out


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

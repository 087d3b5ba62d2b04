import json
import time

import pytest
import torch
from miniature import TWO_EXPERTS, call, write_config

from benchmarks import startup
from codmoe.engine.hooks import compiling


def spec_of(tmp_path, **changes):
    config = str(write_config(tmp_path, 3, dict(init_from=None), TWO_EXPERTS))
    spec = dict(config=config, size=64, dtype="auto", device="cpu", artefact=None, options={})
    return spec | dict(folder=str(tmp_path), started=time.time() - 5) | changes


def test_the_rows_are_of_the_prepared_model_and_of_a_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    found = startup._prepare(spec_of(tmp_path))
    assert found["pieces"] == {"inductor": 4} and found["seconds"] > 0
    assert found["process"] > 5 and found["differences"]["max"] < 1e-4
    monkeypatch.setattr(compiling, "compile_beforehand", lambda *_: {})  # in processes
    found = startup._train(spec_of(tmp_path))
    assert found["process"] > 5 + found["seconds"] > 5 and found["precision"] == "float32"


def test_a_row_that_takes_too_long_says_so_and_the_file_has_it(tmp_path, monkeypatch, capsys):
    out, config = tmp_path / "startup.json", spec_of(tmp_path)["config"]
    words = [config, "--rows", "preparation, first", "--device", "cpu", "--timeout", 0.5]
    assert call(monkeypatch, "benchmarks.startup", *words, "--json", out) is None
    (row,) = json.loads(out.read_text())["rows"].values()
    assert row["error"] == "not done within 0.5 s"
    assert "preparation, first: not done" in capsys.readouterr().out


def test_a_process_that_a_signal_ended_says_which_and_where(tmp_path, monkeypatch):
    crash = "import ctypes\n\n\ndef fall():\n    ctypes.string_at(0)\n\n\nfall()\n"
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (tmp_path / "benchmarks" / "startup.py").write_text(crash)
    monkeypatch.setattr(startup, "ROOT", tmp_path)
    spec = spec_of(tmp_path, out=str(tmp_path / "out"))
    row = startup._Run("preparation, first", spec, tmp_path, 60).result()
    assert row["error"].startswith("ended by SIGSEGV; File ") and "string_at" in row["error"]
    assert "in fall" in row["log"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no/config"], "config 'no/config' does not exist"),
        (["ensemble/stage3", "--rows", "trining"], r"rows=['trining'] are in no name of prep"),
    ],
)
def test_wrong_words_are_told_before_anything_is_measured(monkeypatch, words, said):
    assert said in call(monkeypatch, "benchmarks.startup", *words)

"""``codmoe info`` says what a bug report needs, and no secret."""

import importlib.metadata

import torch
from folders import add
from miniature import ROOT, run_command

import codmoe


def test_what_it_says(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODMOE_DATA_ROOT", str(tmp_path / "sets"))
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run_command(monkeypatch, "info") is None
    out = capsys.readouterr().out
    assert f"codmoe {codmoe.__version__}, checkout, {ROOT / 'codmoe'}" in out
    assert f"torch {importlib.metadata.version('torch')}" in out
    assert ("no GPU that torch can use" in out) != torch.cuda.is_available()
    assert "no folder" in out and "CODMOE_DATA_ROOT can name another" in out
    assert f"{tmp_path / 'checkpoints_moe'} (of stages trained in this folder): nothing" in out
    assert "HF_HUB_OFFLINE=1" in out and "secret" not in out


def test_data_and_weights_that_are_there(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    add(tmp_path / "data/mine", "Imgs", "GT", ["a", "b", "c"])
    (tmp_path / "checkpoints_moe").mkdir()
    (tmp_path / "checkpoints_moe/a_best.pth").write_bytes(bytes(2_000_000))
    assert run_command(monkeypatch, "info") is None
    out = capsys.readouterr().out
    assert "mine: 3 images" in out and "(of stages trained in this folder): 1 file(s), 2 MB" in out

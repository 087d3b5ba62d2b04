"""A user's mistake ends in exit code 1 and one line."""

import os
import subprocess
import sys

import torch
from miniature import ONE_EXPERT, ROOT, TWO_EXPERTS, build, call, write_config

from codmoe.engine.checkpoints import save_weights


def one_line(code, *words):
    assert isinstance(code, str) and code.startswith("error: "), code
    assert "\n" not in code and all(word in code for word in words), code


def test_the_real_command_line(tmp_path):
    command = [sys.executable, str(ROOT / "tools/train.py"), "ensemble/stage33"]
    env = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    one_line(line, "'ensemble/stage33' does not exist; did you mean 'ensemble/stage3'")


def test_it_trains(tmp_path, monkeypatch):
    config = write_config(tmp_path, 1, ONE_EXPERT)
    options = ("--cfg-options", f"checkpoint_dir='{tmp_path / 'elsewhere'}'")
    assert call(monkeypatch, "train", config, "--work-dir", tmp_path / "work", *options) is None
    assert (tmp_path / "elsewhere" / "experts_joint_best.pth").is_file()
    assert (tmp_path / "work" / "finished.json").is_file()


def test_missing_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CODMOE_DATA_ROOT", raising=False)
    changes = ("model.backbone.pretrained=False", "model.backbone.name=pvt_v2_b0")
    code = call(
        monkeypatch, "train", "experts/sinet", "--data-root", "no/such", "--cfg-options", *changes
    )
    one_line(code, "no/such")
    assert not (tmp_path / "checkpoints_moe").exists()


def test_more_choices_than_experts(tmp_path, monkeypatch):
    config = write_config(tmp_path, 2, TWO_EXPERTS)
    torch.manual_seed(0)
    save_weights(tmp_path / "weights" / "experts_joint_best.pth", build(config), {}, "x")
    options = ("--work-dir", tmp_path / "work", "--cfg-options", "model.top_k=3")
    one_line(call(monkeypatch, "train", config, *options), "top_k=3", "2")


def test_a_wrong_checkpoint(tmp_path, monkeypatch):
    config = write_config(tmp_path, 2, TWO_EXPERTS)
    options = ("--work-dir", tmp_path / "work")
    file = tmp_path / "weights" / "experts_joint_best.pth"
    one_line(call(monkeypatch, "train", config, *options), str(file), "make it with")
    one_expert = build(write_config(tmp_path, 1, ONE_EXPERT))
    save_weights(file, one_expert, {}, "x")
    one_line(call(monkeypatch, "train", config, *options), str(file), "experts.pranet", "not in it")
    file.write_bytes(b"not a checkpoint")
    one_line(call(monkeypatch, "train", config, *options), str(file), "cannot be read")
    one_line(call(monkeypatch, "train", config, *options, "--resume"), "nothing to resume")


def test_misspelt_options(tmp_path, monkeypatch, capsys):
    config = write_config(tmp_path, 1, ONE_EXPERT)
    assert call(monkeypatch, "train", config, "--cfg-options", "lr") == 2
    assert "--cfg-options: 'lr' is not key=value" in capsys.readouterr().err
    code = call(monkeypatch, "train", config, "--cfg-options", "train_cfg.max_epoch=3")
    assert code.startswith("error: ") and "did you mean 'max_epochs'" in code

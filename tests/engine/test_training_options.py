"""Options of a training: the keys they set, and what they cannot do."""

import json

import pytest
from miniature import call, write_config

from benchmarks.kills import settings
from codmoe.cli import Parser
from codmoe.commands.train_command import OPTIONS
from codmoe.engine.config import load_config
from codmoe.engine.stages import plan
from codmoe.engine.training_options import TrainingOptions

ALL = TrainingOptions(early_stop=3, accumulate=4, ema=0.01, log=["wandb"], auto_batch=True)


def test_words_say_the_same():
    parser = Parser()
    for names, given in OPTIONS:
        parser.add_argument(*names, **given)
    assert TrainingOptions.of(parser.parse_args(["experts/joint", *ALL.words()])) == ALL
    assert TrainingOptions.of(parser.parse_args(["experts/joint", "--ema"])).ema == 0.002
    assert TrainingOptions().words() == []


def test_keys(tmp_path):
    cfg = load_config("ensemble/stage3")
    cfg.default_hooks.best.monitor = "Dice"
    ALL.set_training(cfg)
    hooks = cfg.default_hooks
    assert (hooks.early_stopping.patience, hooks.early_stopping.monitor) == (3, "Dice")
    assert hooks.ema == dict(type="EMAHook", momentum=0.01, update_buffers=True)
    assert cfg.optim_wrapper.accumulative_counts == 4
    cfg.default_hooks.ema = dict(type="EMAHook", momentum=0.5, begin_epoch=2)
    ALL.set_training(cfg)
    assert cfg.default_hooks.ema == dict(type="EMAHook", momentum=0.01, begin_epoch=2)


def test_a_stage_with_other_options_starts_afresh(tmp_path):
    names = [f"quickstart/stage{i}" for i in (1, 2, 3)]
    prints = [
        [stage.fingerprint for stage in plan(names, tmp_path, [], options)]
        for options in (None, TrainingOptions(log=["mlflow"]), TrainingOptions(early_stop=2))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_what_cannot_be_is_told(monkeypatch):
    cfg = load_config("ensemble/stage3", {"compile.experts": True})
    with pytest.raises(ValueError, match=r"--accumulate: compile with .*larger batch"):
        TrainingOptions(accumulate=2).set_training(cfg)
    cfg.val_dataloader = None
    with pytest.raises(ValueError, match=r"--early-stop looks at validations"):
        TrainingOptions(early_stop=2).set_training(cfg)
    monkeypatch.setattr("codmoe.engine.training_options.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"wandb, which is not installed here: pip install wandb"):
        ALL.set_log(cfg)


def test_log_adds_to_the_backends_that_are_there(monkeypatch):
    monkeypatch.setattr("codmoe.engine.training_options.find_spec", lambda name: True)
    cfg = load_config("ensemble/stage3")
    options = TrainingOptions(log=["tensorboard", "wandb"])
    for _ in range(2):
        options.set_log(cfg)
        kinds = [backend["type"] for backend in cfg.visualizer.vis_backends]
        assert kinds == ["LocalVisBackend", "TensorboardVisBackend", "WandbVisBackend"]


def test_a_training_that_gets_no_better_ends_early(tmp_path, monkeypatch, capsys):
    still = dict(custom_hooks=[], optim_wrapper=dict(optimizer=dict(lr=0.0)))
    many = dict(train_cfg=dict(max_epochs=9), param_scheduler=[])
    config = write_config(tmp_path, 1, settings(1, tmp_path), still, many)
    words = (config, "--work-dir", tmp_path / "work", "--ema", "--accumulate", 2)
    assert call(monkeypatch, "train", *words, "--early-stop", 2) is None
    finished = json.loads((tmp_path / "work" / "finished.json").read_text())
    assert finished["epochs"] < 9
    told = capsys.readouterr().out
    assert f"is trained: {finished['epochs']} epoch(s), stopped early of 9" in told
    # Going on ends where it ended.
    assert call(monkeypatch, "train", *words, "--early-stop", 2, "--resume") is None
    again = json.loads((tmp_path / "work" / "finished.json").read_text())
    assert again["epochs"] == finished["epochs"]

"""Lines of progress: short, with what people look for, and the time that is left."""

import json
import re
from types import SimpleNamespace

import pytest
from miniature import call, prepared, write_config
from mmengine.logging import HistoryBuffer
from mmengine.runner import EpochBasedTrainLoop

from benchmarks.kills import settings
from codmoe.engine.hooks.progress import CHAIN, Chain, LoggerHook, duration
from codmoe.engine.launch import train
from codmoe.engine.terminal import WIDTH

NUMBER = r"\d[\d.e+-]*"
TRAINING = (
    rf"epoch [12]/2  step [123]/3  loss {NUMBER} *  IoU 0\.\d{{3}}  lr {NUMBER}  left \d+:\d\d"
)
VALIDATION = r"epoch [12]/2  validation  IoU 0\.\d{4} .*Dice .*MAE .*oracle .*took \d+:\d\d"


def toy(folder, *changes):
    plain = dict(custom_hooks=[], train_cfg=dict(max_epochs=2))
    return write_config(folder, 1, settings(1, folder), plain, *changes)


@pytest.fixture
def alone(monkeypatch):
    for name in (CHAIN, "CODMOE_QUIET"):
        monkeypatch.setenv(name, "")  # and back to nothing afterwards, whoever sets it
        monkeypatch.delenv(name)


def test_a_training_on_the_terminal(tmp_path, monkeypatch, capsys, alone):
    monkeypatch.setenv(CHAIN, str(Chain(2, 3, 1.5)))
    assert call(monkeypatch, "train", toy(tmp_path), "--work-dir", tmp_path / "work") is None
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= WIDTH == 140 and "\x1b" not in out
    steps = [line for line in lines if " loss " in line]
    assert len(steps) == 6
    for line in steps:
        assert re.fullmatch(rf"\d\d:\d\d:\d\d 2/3 experts_joint  {TRAINING}, all \d+:\d\d", line)
    checks = [line for line in lines if "validation" in line]
    assert len(checks) == 2 and all(re.search(VALIDATION, line) for line in checks)
    assert "best so far" in checks[0]
    assert "Hooks will be" not in out and "FileClient" not in out and "Exp name" not in out
    assert lines[-2].startswith("  best     IoU 0.") and lines[-1].endswith("joint_best.pth")
    # Everything is in mmengine's file of scalars.
    (file,) = (tmp_path / "work").glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 8 and {"grad_norm", "a.loss_structure", "time"} <= set(rows[0])
    assert "IoU_oracle" in rows[3] and rows[3]["step"] == 1


def test_quiet_shows_warnings_alone(tmp_path, monkeypatch, capsys, alone):
    words = (toy(tmp_path), "--work-dir", tmp_path / "work", "--quiet")
    assert call(monkeypatch, "train", *words) is None
    assert capsys.readouterr().out == ""
    assert (tmp_path / "work" / "finished.json").is_file()


def runner_of(name, steps, epochs, at, *, seconds=2.0):
    """A Runner in a training whose steps take so many seconds."""
    loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)
    hub = SimpleNamespace(log_scalars={"train/time": HistoryBuffer([seconds] * 3, [1] * 3)})
    return SimpleNamespace(
        hooks=[],
        experiment_name=f"{name}_now",
        timestamp="now",
        train_loop=loop,
        iter=at,
        epoch=at // steps,
        max_iters=steps * epochs,
        max_epochs=epochs,
        log_processor=SimpleNamespace(window_size=10),
        message_hub=hub,
    )


def test_time_left_of_the_stage_and_of_the_chain(alone):
    hook, runner = LoggerHook(), runner_of("a", steps=10, epochs=4, at=19)
    hook.before_train(runner)
    assert hook._left(runner) == "left 0:40"  # 20 steps
    hook._pauses = [4.0, 6.0]
    assert hook._left(runner) == "left 0:55"  # and three pauses: this epoch's and two more
    hook.chain = Chain(1, 2, 10.0)
    assert hook._left(runner) == "left 0:55, all 17:35"  # 10 times (40 steps and 4 pauses)
    hook.chain = Chain(2, 2, 0.0)
    assert hook._left(runner) == "left 0:55"


def test_a_long_name_is_cut_and_no_figure(alone):
    hook, runner = LoggerHook(), runner_of("a" * 200, 10, 4, 19)
    hook.before_train(runner)
    hook.chain = Chain(1, 3, 1.0)
    figures = ["epoch 10/400", "step 99999/100000", "left 100:00:00, all 300:00:00"]
    line = hook._line(runner, figures)
    assert len("00:00:00 " + line) == WIDTH
    assert line.startswith("1/3 aaaa") and line.endswith("a…  " + "  ".join(figures))


def test_durations():
    assert [duration(s) for s in (0, 41.6, 185, 97385)] == ["0:00", "0:42", "3:05", "27:03:05"]


def test_other_backends_tell_training_and_validation_apart(tmp_path):
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
    cfg = prepared(toy(tmp_path), tmp_path / "work")
    cfg.visualizer = dict(type="Visualizer", vis_backends=backends)
    train(cfg)
    (folder,) = (tmp_path / "work").glob("*/vis_data")
    found = tensorboard.EventAccumulator(str(folder))
    found.Reload()
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in found.Scalars("val/IoU")] == [3, 6]

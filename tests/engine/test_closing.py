"""The end of a training: best epoch, weights, and a command that can be typed."""

from pathlib import Path

import pytest

from codmoe.engine.closing import following_stage, next_command
from codmoe.engine.config import load_config

WEIGHTS = Path("checkpoints_moe/it_best.pth")


@pytest.mark.parametrize(
    ("config", "following"),
    [
        ("experts/joint", "router/stage2"),
        ("experts/joint_cod", "router/stage2_cod"),
        ("router/stage2_soup", "ensemble/stage3_soup"),
        ("quickstart/stage1", "quickstart/stage2"),
        ("ensemble/stage3", None),
        ("small/finetune", None),
    ],
)
def test_the_stage_that_starts_from_it(config, following):
    assert following_stage(load_config(config)) == following


@pytest.mark.parametrize(
    ("typed", "following"),
    [
        (
            "python tools/train.py experts/joint --data-root d --resume --work-dir w --ema 0.01",
            "python tools/train.py router/stage2 --data-root d --ema 0.01",
        ),
        (
            "bash tools/dist_train.sh configs/experts/joint.py 2 --auto-resume",
            "bash tools/dist_train.sh router/stage2 2",
        ),
        ("codmoe train experts/joint --quiet", "codmoe train router/stage2 --quiet"),
        (
            "codmoe train --work-dir w --quiet --resume experts/joint --ema",
            "codmoe train router/stage2 --quiet --ema",
        ),
        ("python my_script.py", "codmoe train router/stage2"),
    ],
)
def test_the_command_is_the_one_that_was_typed(typed, following, monkeypatch):
    monkeypatch.setenv("CODMOE_COMMAND", typed)
    assert next_command(load_config("experts/joint"), WEIGHTS) == following


@pytest.mark.parametrize(
    ("typed", "following"),
    [
        (
            "python tools/train.py ensemble/stage3 --images a --masks b --early-stop 5",
            f"python tools/test.py ensemble/stage3 {WEIGHTS} --experts --images a --masks b",
        ),
        (
            "bash tools/dist_train.sh ensemble/stage3 2 --cfg-options a=1 b=2 --ema",
            f"bash tools/dist_test.sh ensemble/stage3 {WEIGHTS} 2 --experts --cfg-options a=1 b=2",
        ),
        ("codmoe train ensemble/stage3", f"codmoe test ensemble/stage3 {WEIGHTS} --experts"),
        (
            "codmoe train --early-stop 5 --data-root d ensemble/stage3",
            f"codmoe test ensemble/stage3 {WEIGHTS} --experts --data-root d",
        ),
        (
            "bash tools/slurm_train.sh gpu job ensemble/stage3",
            f"codmoe test ensemble/stage3 {WEIGHTS} --experts",
        ),
        (
            "codmoe train ensemble/stage3 --gpus 2 --resume",
            f"codmoe test ensemble/stage3 {WEIGHTS} --experts --gpus 2",
        ),
    ],
)
def test_after_the_last_stage_comes_its_test(typed, following, monkeypatch):
    monkeypatch.setenv("CODMOE_COMMAND", typed)
    assert next_command(load_config("ensemble/stage3"), WEIGHTS) == following

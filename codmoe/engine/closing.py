"""The closing words of a training: best epoch, where the weights are, the command that follows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import EpochBasedTrainLoop

from codmoe.engine.hooks.progress import Chain, best_hook, duration, stage_name
from codmoe.interruption import own_command
from codmoe.shipped import config_root, find_config, list_configs

FOLLOWING = {"experts/joint": "router/stage2", "router/stage2": "ensemble/stage3"}
"""Stages that are in another folder than the one before; variants have the same ending."""


def closing_block(runner, seconds: float) -> str:
    """The last lines of a training that took so many seconds, for its log."""
    unit, done, most = "epoch(s)", runner.epoch, runner.max_epochs
    if not isinstance(runner.train_loop, EpochBasedTrainLoop):
        unit, done, most = "steps", runner.iter, runner.max_iters
    early = f", stopped early of {most}" if runner.train_loop.stop_training and done < most else ""
    lines = [f"{stage_name(runner)} is trained: {done} {unit}{early}, in {duration(seconds)}"]
    best = best_hook(runner)
    if best is None:
        return lines[0]
    score = best.best(runner)
    if score is not None:
        epoch = runner.message_hub.get_info("codmoe_best_epoch")
        when = f" after epoch {epoch}" if unit == "epoch(s)" else ""
        lines.append(f"  best     {best.monitor} {score:.4f}{when}")
    lines.append(f"  weights  {best.path}")
    if Chain.of_environment() is None:
        lines.append(f"  next     {next_command(runner.cfg, best.path)}")
    return "\n".join(lines)


def next_command(cfg: Config, weights: Path) -> str:
    """The command of the shipped stage that starts from these weights; else that of their test."""
    config = str(cfg.get("config_file", "CONFIG"))
    start, rest = ["codmoe", "train"], []
    words = shlex.split(own_command())
    for index, word in enumerate(words):
        if _names(word, config):
            first = next((i for i in range(index) if words[i].startswith("--")), index)
            start, config = words[:first], word
            rest = words[first:index] + words[index + 1 :]
            break
    later = following_stage(cfg)
    if later:
        left_out = ("--resume", "--auto-resume", "--work-dir", "--lr-range")
        return shlex.join([*start, later, *_options(rest, but=left_out)])
    start = ["codmoe", "test"] if "slurm" in " ".join(start) else start
    start = [re.sub(r"train(?=(\.py|\.sh)?$)", "test", word) for word in start]
    kept = _options(rest, only=("--data-root", "--images", "--masks", "--gpus", "--cfg-options"))
    gpus = rest[:1] if "dist_" in " ".join(start) else []
    return shlex.join([*start, config, str(weights), *gpus, "--experts", *kept])


def following_stage(cfg: Config) -> str | None:
    """Name of the shipped config that starts from what this shipped config leaves, if one does."""
    root, path = config_root().resolve(), Path(cfg.get("config_file", "")).resolve()
    if not path.is_relative_to(root):
        return None
    name, line, variant = str(path.relative_to(root).with_suffix("")).partition("_")
    stage = re.fullmatch(r"(.+/stage)(\d)", name)
    later = [FOLLOWING.get(name), f"{stage[1]}{int(stage[2]) + 1}" if stage else None]
    for other in [f"{base}{line}{variant}" for base in later if base]:
        if other in list_configs():
            source = Config.fromfile(find_config(other)).get("init_from") or {}
            if source.get("file") == f"{cfg.default_hooks.best.name}_best.pth":
                return other
    return None


def _names(word: str, config: str) -> bool:
    with suppress(OSError, ValueError):
        return find_config(word).resolve() == Path(config).resolve()
    return False


def _options(
    words: Sequence[str], *, only: Sequence[str] = (), but: Sequence[str] = ()
) -> Iterator[str]:
    """Of the words around a config, options with their values; with ``but`` also what has none."""
    keep = not only
    for word in words:
        if word.startswith("--"):
            name = word.partition("=")[0]
            keep = name in only if only else name not in but
        if keep:
            yield word

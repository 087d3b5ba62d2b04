"""Runs stage 1, 2 and 3 one after another and puts their results into one table."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from codmoe.engine.checkpoints import read_meta
from codmoe.engine.config import load_config, parse_options, require_sections
from codmoe.engine.hooks.progress import CHAIN, Chain
from codmoe.engine.launch import set_aside
from codmoe.engine.own_data import data_arguments, set_data
from codmoe.engine.runner import check_test, telling, uncached
from codmoe.engine.sources import read_sources
from codmoe.engine.training_options import TrainingOptions
from codmoe.evaluation.intervals import paired_intervals
from codmoe.evaluation.tables import result_rows, result_table
from codmoe.files import LOCK, holding, save_json, save_text, sweep
from codmoe.interruption import COMMAND, PARENT, going_on, interruption
from codmoe.messages import warn
from codmoe.registry import DATASETS
from codmoe.shipped import config_root
from codmoe.visualization.report import write_report

DEFAULT_CONFIGS = ("experts/joint", "router/stage2", "ensemble/stage3")


@dataclass
class Stage:
    """One stage of a chain.

    Args:
        name: Its config, as it was asked for.
        cfg: The config.
        work_dir: Folder of its logs and training checkpoints.
    """

    name: str
    cfg: Config
    work_dir: Path

    @property
    def weights(self) -> Path:
        """``<checkpoint_dir>/<name>_best.pth``."""
        folder = Path(self.cfg.get("checkpoint_dir", "checkpoints_moe"))
        return folder / f"{self.cfg.default_hooks.best.name}_best.pth"

    @cached_property
    def sources(self) -> list[Path]:
        """Every file that the stage starts from."""
        sources = read_sources(self.cfg)
        return [] if sources is None else sources.paths

    @property
    def fingerprint(self) -> str:
        """Changes with anything in the config, overrides included."""
        return hashlib.sha256(self.cfg.pretty_text.encode()).hexdigest()

    @property
    def mark(self) -> Path:
        """File that holds the fingerprint of the config with which the stage was started."""
        return self.work_dir / "config.sha256"

    def has_same_config(self) -> bool:
        """Whether what lies in ``work_dir`` was made with this very config."""
        return self.mark.is_file() and self.mark.read_text() == self.fingerprint

    def is_finished(self) -> bool:
        """Whether the stage ran to its end, and neither its config nor what it started from has
        changed since.
        """
        done = self.work_dir / "finished.json"
        if not (done.is_file() and self.weights.is_file() and self.has_same_config()):
            return False
        run = json.loads(done.read_text()).get("run_id")
        if run and read_meta(self.weights).get("run_id") != run:
            return False  # another run has written its weights there since
        return all(path.is_file() for path in self.sources) and self._is_newer(self.weights)

    def is_interrupted(self) -> bool:
        """Whether there is a checkpoint to resume, made from what the stage starts from today."""
        last = self.work_dir / "last_checkpoint"
        done = (self.work_dir / "finished.json").is_file()
        if done or not last.is_file() or not self.has_same_config():
            return False
        return self._is_newer(last)

    def begin(self) -> None:
        """Set aside what an earlier run left, and mark the config with which this one starts."""
        with holding(self.work_dir / LOCK, str(self.work_dir), "give another --work-dir"):
            # Before the mark: a start that fails must not make an earlier run pass for this one.
            set_aside(self.work_dir)
            save_text(self.mark, self.fingerprint, keep=False)

    def _is_newer(self, made: Path) -> bool:
        """Whether no file that the stage starts from was written after this one."""
        time_made = made.stat().st_mtime
        return all(p.stat().st_mtime <= time_made for p in self.sources if p.is_file())


def plan(
    configs: Sequence[str],
    work_dir: Path,
    options: Sequence[str],
    training: TrainingOptions | None = None,
    **data: str | None,
) -> list[Stage]:
    """Load and check all configs before the first one runs.

    Raises:
        ValueError: A stage does not start from what the one before leaves.
    """
    stages = []
    for number, name in enumerate(configs, 1):
        given = parse_options(list(options))
        cfg = load_config(name, given)
        set_data(cfg, **data, options=given)
        require_sections(cfg, "model", "train_dataloader", "train_cfg", "default_hooks")
        if not cfg.default_hooks.get("best"):
            raise ValueError(f"{name}: default_hooks.best, which keeps the weights, is missing")
        if training:
            training.set_training(cfg)
        stages.append(Stage(str(name), cfg, work_dir / f"stage{number}"))
    for number, stage in enumerate(stages[1:], 1):
        left = stages[number - 1].weights
        used = stage.sources or [s for later in stages[number:] for s in later.sources]
        if left not in used:
            raise ValueError(
                f"{stage.name} starts from {', '.join(map(str, stage.sources)) or 'nothing'}, but "
                f"the stage before leaves {left}; give both the same checkpoint_dir, and init_from "
                "the name of what is left"
            )
    return stages


def child_environment() -> dict[str, str]:
    """Environment of a process that is to use this Python and this very package."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return dict(os.environ, PYTHONPATH=os.pathsep.join(paths), PYTHON=sys.executable)


def run_command(command: Sequence[str]) -> None:
    """Run one command in a session of its own; what ends this process ends it, too.

    Raises:
        RuntimeError: It failed.
    """
    # It says what is saved, and this process how to go on.
    own = {PARENT: str(os.getpid()), COMMAND: ""}
    environment = dict(child_environment(), **own)
    process = subprocess.Popen(command, start_new_session=True, env=environment)
    interruption.grace = 30.0  # more than the child's
    try:
        code = process.wait()
    except BaseException:
        process.send_signal(interruption.signum or signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(25)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what is left of the group
        raise
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {code}")


def _tool(name: str, given: Sequence[str], gpus: int) -> list[str]:
    """The start of a command: ``tools/<name>.py``, or its script for several processes."""
    tools = config_root().parent / "tools"
    if gpus > 1:
        return ["bash", str(tools / f"dist_{name}.sh"), *given, str(gpus)]
    return [sys.executable, str(tools / f"{name}.py"), *given]


def train_command(stage: Stage, gpus: int, arguments: Sequence[str], resume: bool) -> list[str]:
    """The command line of one stage; ``arguments`` go to ``tools/train.py`` as they are."""
    command = [*_tool("train", [stage.name], gpus), "--work-dir", str(stage.work_dir)]
    return [*command, *(["--resume"] if resume else []), *arguments]


def check_data(stages: Sequence[Stage]) -> list[dict[str, int]]:
    """Open every data set of every stage once, and build what its test is of, before hours of
    training and not after.

    Returns:
        Images of each stage's ``train``, ``val`` and ``test``, as far as it has these.

    Raises:
        FileNotFoundError, ValueError: As the data set says, with the stage and the config key.
    """
    sizes: dict[str, int] = {}
    images: list[dict[str, int]] = []
    for stage in stages:
        images.append({})
        with telling(stage.name):
            check_test(stage.cfg)
        for part in ("train", "val", "test"):
            dataset = (stage.cfg.get(f"{part}_dataloader") or {}).get("dataset")
            if not dataset:
                continue
            if str(dataset) not in sizes:
                try:
                    # Decoding into a cache is not what is checked here.
                    sizes[str(dataset)] = len(DATASETS.build(uncached(dataset)))
                except (FileNotFoundError, ValueError) as error:
                    where = f"{stage.name}: {part}_dataloader.dataset"
                    raise type(error)(f"{where}: {error}") from error
            images[-1][part] = sizes[str(dataset)]
    return images


def work_of(cfg: Config, images: Mapping[str, int]) -> float:
    """About how much a stage computes, in forward passes of an image; a backward pass is two.

    What a frozen cache holds costs a quarter of a pass: router, loss and loader. ``images`` are
    those of :func:`check_data`.
    """
    epochs = cfg.train_cfg.get("max_epochs") or 1
    validations = epochs / (cfg.train_cfg.get("val_interval") or 1)
    train, val = images.get("train", 0), images.get("val", 0)
    cache = cfg.default_hooks.get("frozen_cache")
    if cache:
        fresh = min(cache.get("views", 4), epochs)
        return train * (fresh + 0.25 * (epochs - fresh)) + val * (1 + 0.25 * (validations - 1))
    return train * epochs * (2 if cfg.model.get("frozen") else 3) + val * validations


def run_stages(
    configs: Sequence[str] = DEFAULT_CONFIGS,
    *,
    gpus: int = 1,
    work_dir: str = "work_dirs/stages",
    options: Sequence[str] = (),
    training: TrainingOptions | None = None,
    **data: str | None,
) -> dict[str, Any]:
    """Train what is not trained yet, test, and print one table.

    A stage that finished is skipped, one that was interrupted resumes, and all that started from a
    stage that ran are run again, for its weights are others now. A changed config or override
    starts its stage afresh.

    Args:
        configs: Stage 1, 2 and 3. Stage 1 may be several: separate experts and a refit of their
            heads.
        gpus: Processes per stage.
        work_dir: Folder of logs, table, pictures and report.
        options: ``key=value`` overrides for all stages.
        training: Early stopping and the like, for all stages.
        data: ``data_root``, or ``images`` and ``masks``; see :func:`set_data`.

    Returns:
        The payload of ``<work_dir>/table.json``.
    """
    folder = Path(work_dir)
    training = training or TrainingOptions()
    training.set_log(Config())  # or say what is missing
    stages = plan(configs, folder, options, training, **data)
    images = check_data(stages)
    work = [work_of(stage.cfg, found) for stage, found in zip(stages, images, strict=True)]
    tests = [found.get("test", 0) for found in images[-2:]]
    arguments = data_arguments(**data)
    arguments += ["--cfg-options", *options] if options else []
    started = time.time()
    ran: set[Path] = set()
    interruption.farewell = lambda: going_on(None)
    with holding(folder / LOCK, str(folder), "give another --work-dir"):
        sweep(folder)
        for number, stage in enumerate(stages, 1):
            told = f"stage {number} ({stage.name})"
            other_weights = not ran.isdisjoint(stage.sources)
            if stage.is_finished() and not other_weights:
                print(f"{told}: finished earlier, {stage.weights}", flush=True)
                continue
            resume = stage.is_interrupted() and not other_weights
            print(f"{told}: {'resuming' if resume else 'starting'}", flush=True)
            if not resume:
                stage.begin()
            later = sum(work[number:]) + sum(tests)
            chain = Chain(number, len(stages), later / max(work[number - 1], 1))
            os.environ[CHAIN] = str(chain)
            try:
                words = [*training.words(), *arguments]
                run_command(train_command(stage, gpus, words, resume))
            finally:
                del os.environ[CHAIN]
            ran.add(stage.weights)
        results = [_tested(stage, gpus, arguments, folder) for stage in stages[-2:]]
        call = dict(gpus=gpus, options=list(options), **data)
        return write_results(stages, results, folder, time.time() - started, call)


def _tested(stage: Stage, gpus: int, arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    name = stage.cfg.default_hooks.best.name
    result = folder / f"{name}.json"
    command = _tool("test", [stage.name, str(stage.weights)], gpus)
    command += ["--experts", "--json", str(result), "--work-dir", str(stage.work_dir)]
    command += ["--grid", str(folder / f"{name}.png")]
    # What it would print stands in the table that follows and in the report.
    command += ["--pictures", str(folder / f"{name}_pictures"), "--cost", "--quiet"]
    run_command([*command, *arguments])
    return json.loads(result.read_text())


def write_results(
    stages: Sequence[Stage],
    results: Sequence[Mapping[str, Any]],
    folder: Path,
    seconds: float,
    call: Mapping[str, Any],
) -> dict[str, Any]:
    """Print the table of all stages and write it as JSON and Markdown, then the report.

    Args:
        stages: Stage 1 (one or several runs), 2 and 3.
        results: Test results of stage 2 and 3.
        folder: Where the files go.
        seconds: What this call took.
        call: Its further arguments, kept so that a report can say them.

    Returns:
        The payload of ``<folder>/table.json``.
    """
    router, ensemble = results
    table = {}
    for dataset, rows in router["table"].items():
        experts = {k: v for k, v in rows.items() if k not in ("mixture", "uniform", "oracle")}
        table[dataset] = dict(
            experts,
            uniform=rows["uniform"],
            router=rows["mixture"],
            oracle=rows["oracle"],
            ensemble=ensemble["table"][dataset]["mixture"],
        )
    title = "stage 1 experts, their mixtures (stage 2) and the ensemble (stage 3)"
    # What the last stage saw includes what those before it did.
    shown = result_table(result_rows(table), title, ensemble.get("trained_on"))
    shown.print()
    payload = dict(
        configs=[stage.name for stage in stages],
        weights=[str(stage.weights) for stage in stages],
        call=dict(call),
        seconds=round(seconds, 1),
        table=table,
        trained_on=ensemble.get("trained_on"),
        routing=dict(router=router["routing"], ensemble=ensemble["routing"]),
        ensemble_experts=ensemble["table"],
    )
    save_json(folder / "table.json", payload)
    for dataset, rows in ensemble["table"].items():
        print(_lead(dataset, rows))
    print("95 % over test images; of another seed it says nothing", flush=True)
    print(f"table: {save_text(folder / 'table.md', shown.markdown())}")
    picture = folder / f"{stages[-1].cfg.default_hooks.best.name}.png"
    if picture.is_file():
        print(f"pictures: {picture}")
    _write_report(folder)
    return payload


def _write_report(folder: Path) -> None:
    """The page is drawn from what lies in the folder by now: hours of training must not end in an
    error of a plot.
    """
    try:
        print(f"report: {write_report(folder)}")
    except Exception as error:
        again = f"codmoe report {shlex.quote(str(folder))}"
        warn(f"no report ({type(error).__name__}: {error}); once mended: {again}")


def _lead(dataset: str, rows: Mapping[str, Any]) -> str:
    """How far the ensemble is ahead of the best of its experts and of their mean, in one line."""
    experts = {k: v["IoU"] for k, v in rows.items() if k not in ("mixture", "uniform", "oracle")}
    best = max(experts, key=experts.__getitem__)
    stems = list(rows["mixture"]["images"])
    columns = {
        source: np.array([[rows[source]["images"][stem]["IoU"]] for stem in stems])
        for source in ("mixture", best, "uniform")
    }
    parts = []
    for source, told in ((best, f"its best expert {best}"), ("uniform", "their mean")):
        (found,) = paired_intervals(100 * columns["mixture"], 100 * columns[source])
        parts.append(f"{told} {found.difference:+.2f} ({found.low:+.2f} to {found.high:+.2f})")
    # The table above has the experts of stage 1.
    said = f"{dataset}: after stage 3, IoU of the ensemble less that of"
    return f"{said} {', of '.join(parts)} points"

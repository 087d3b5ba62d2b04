"""Gathers the tables, curves, logs and configs that a run of all stages left behind."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config

from codmoe.evaluation.conventions import COMBINED
from codmoe.trust import read_literals

_LINE = re.compile(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d - \S+ - ([A-Z]+) - (.*)")
_OPENING = re.compile(
    r"codmoe (?P<codmoe>\S+), torch (?P<torch>\S+), Python (?P<python>\S+), "
    r"(?P<processes>\d+) × (?P<device>.+), seed (?P<seed>\d+)$"
)
# Of every run, and nothing to the reader: mmengine about its own parts.
_NOISE = ("FileClient", "HardDiskBackend", "has no metainfo")


@dataclass
class Training:
    """The training that lies in a work directory, over all times it was resumed.

    Args:
        train: One row a log entry of training, each with ``x``.
        val: One row a validation, each with ``x``.
        unit: What ``x`` counts, ``"epoch"`` or ``"step"``.
        folders: Folders of this training and of the tests after it, oldest first.
        resumed: How often it was resumed.
    """

    train: list[dict[str, Any]] = field(default_factory=list)
    val: list[dict[str, Any]] = field(default_factory=list)
    unit: str = "epoch"
    folders: list[Path] = field(default_factory=list)
    resumed: int = 0

    @cached_property
    def opening(self) -> dict[str, str]:
        """Versions, processes, device and seed, as the newest training log says; may be empty."""
        found: dict[str, str] = {}
        for folder in self.folders:
            if (folder / "vis_data/scalars.json").is_file():
                for _, text in log_entries(folder):
                    match = _OPENING.match(text)
                    found = match.groupdict() if match else found
        return found

    @cached_property
    def config(self) -> Config | None:
        """The whole config of the training (the newest file in the work directory is a test's)."""
        for folder in reversed(self.folders):
            path = folder / "vis_data/config.py"
            if (folder / "vis_data/scalars.json").is_file() and path.is_file():
                try:
                    return Config(read_literals(path.read_text(encoding="utf-8"), str(path)))
                except (
                    OSError,
                    ValueError,
                ):  # an edited or half-written dump says nothing about the results
                    return None
        return None

    @cached_property
    def warnings(self) -> dict[str, int]:
        """Warnings and errors of the logs, and how often each was logged."""
        entries = [entry for folder in self.folders for entry in log_entries(folder)]
        texts = [text for level, text in entries if level in ("WARNING", "ERROR", "CRITICAL")]
        return dict(Counter(t for t in texts if not any(noise in t for noise in _NOISE)))


def read_training(work_dir: Path) -> Training:
    """Reads every ``<time>/vis_data/scalars.json`` of mmengine.

    A folder whose training begins at the first epoch is a new run: what lies before it was set
    aside and is left out. One that begins later goes on from there, and what the earlier one had
    logged beyond that point was trained again and is left out too.
    """
    folders = [path for path in sorted(work_dir.glob("[0-9]*_[0-9]*")) if path.is_dir()]
    result, first = Training(), 0
    for number, folder in enumerate(folders):
        train, val, unit, start = _segment(folder / "vis_data/scalars.json")
        if not train:
            continue
        if start == 0:
            result, first = Training(unit=unit), number
        else:
            result.resumed += bool(result.train)
            result.train = [row for row in result.train if row["x"] <= start]
            result.val = [row for row in result.val if row["x"] <= start]
        result.train += train
        result.val += val
    if result.train:
        result.folders = folders[first:]
    return result


def _segment(path: Path) -> tuple[list[dict], list[dict], str, float]:
    """Training and validation rows of one file, the unit of ``x``, and where training began."""
    rows = list(_json_lines(path)) if path.is_file() else []
    train = [row for row in rows if "lr" in row and "step" in row]
    val = [row for row in rows if "lr" not in row and "step" in row]
    if not train:
        return [], [], "epoch", 0
    by_epoch = all("epoch" in row and "iter" in row for row in train)
    if not by_epoch:
        begin = train[0]["step"]
        gap = train[1]["step"] - begin if len(train) > 1 else begin
        train, val = ([{**row, "x": row["step"]} for row in rows] for rows in (train, val))
        return train, val, "step", max(begin - gap, 0)
    steps = _steps_per_epoch(train)
    train = [{**row, "x": min(row["iter"] / steps, row["epoch"])} for row in train]
    # mmengine counts validations in epochs.
    return train, [{**row, "x": row["step"]} for row in val], "epoch", train[0]["epoch"] - 1


def _steps_per_epoch(train: Sequence[dict]) -> float:
    """mmengine logs at the same places of each epoch, and not always at its end."""
    firsts: dict[int, int] = {}
    for row in train:
        firsts.setdefault(row["epoch"], row["iter"])
    (e0, i0), *_, (e1, i1) = [*firsts.items(), *firsts.items()]
    if e1 > e0:
        return (i1 - i0) / (e1 - e0)
    last = train[-1]
    return last["iter"] / last["epoch"]


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the last line of a run that was killed while it wrote
        if isinstance(row, dict):
            yield row


def log_entries(folder: Path) -> list[tuple[str, str]]:
    """Level and text of every entry of the logs in a folder; further lines belong to the text."""
    entries: list[list[str]] = []
    for path in sorted(folder.glob("*.log")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            match = _LINE.match(line)
            if match:
                entries.append(list(match.groups()))
            elif entries:
                entries[-1][1] += "\n" + line
    return [(level, text.strip()) for level, text in entries]


@dataclass
class StageRecord:
    """One stage as its work directory shows it.

    Args:
        title: ``"stage 1"``; ``"stage 1, part 2"`` where that stage took several runs.
        config: Name of its config.
        finished: ``finished.json``; empty if there is none.
        training: Its curves, logs and configuration.
        assembly: ``assembly.json``, the experts' IoU before the first step; empty if not measured.
        result: JSON of its test; empty for stage 1 and where there is none.
    """

    title: str
    config: str
    finished: dict[str, Any] = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    assembly: dict[str, Any] = field(default_factory=dict)
    experts: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)


@dataclass
class RunRecord:
    """A whole run.

    Args:
        folder: Its work directory.
        payload: ``table.json``.
        stages: In their order.
        written: When the table was written.
    """

    folder: Path
    payload: dict[str, Any]
    stages: list[StageRecord]
    written: datetime

    @property
    def table(self) -> dict[str, dict[str, dict[str, Any]]]:
        """``table[data set][source]``: stage 1's experts, their mixtures, and the ensemble."""
        return self.payload["table"]

    @property
    def ensemble(self) -> dict[str, Any]:
        """Test result of the last stage; empty if there is none."""
        return self.stages[-1].result if self.stages else {}

    def experts(self, dataset: str) -> list[str]:
        """Names of the experts of stage 1."""
        combined = (*COMBINED, "router", "ensemble")
        return [name for name in self.table[dataset] if name not in combined]

    def after(self, dataset: str) -> dict[str, dict[str, Any]]:
        """The rows of the experts and their mixtures after stage 3; empty if there are none."""
        return (self.payload.get("ensemble_experts") or {}).get(dataset) or {}

    @property
    def expert_names(self) -> list[str]:
        """Names of all experts, in one order for the whole page."""
        return list(dict.fromkeys(name for d in self.table for name in self.experts(d)))


def load_run(work_dir: str | os.PathLike) -> RunRecord:
    """Everything a report can show. What is missing but the table is left empty.

    Raises:
        FileNotFoundError: There is no ``table.json``.
        ValueError: It is not what ``codmoe stages`` writes.
    """
    folder = Path(work_dir)
    path = folder / "table.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give the --work-dir of codmoe stages, which writes it "
            "when all stages are tested"
        )
    payload = _read(path)
    table = payload.get("table")
    nested = isinstance(table, Mapping) and all(isinstance(r, Mapping) for r in table.values())
    rows = [row for rows in table.values() for row in rows.values()] if table and nested else []
    if not rows or not all(isinstance(row, Mapping) and "n" in row for row in rows):
        raise ValueError(
            f"{path} is no table of codmoe stages: it has no `table` ({{data set: {{source: "
            "row}}) with rows in it; give the --work-dir of that tool"
        )
    configs, weights = (list(payload.get(key) or []) for key in ("configs", "weights"))
    stages = []
    titles = stage_titles(len(configs))
    for number, (title, config) in enumerate(zip(titles, configs, strict=True), 1):
        work = folder / f"stage{number}"
        stage = StageRecord(title, str(config), _read(work / "finished.json"))
        stage.assembly = _read(work / "assembly.json")
        stage.experts = _read(work / "experts_after.json")
        if work.is_dir():
            stage.training = read_training(work)
        if number > len(configs) - 2 and number <= len(weights):
            name = Path(weights[number - 1]).stem.removesuffix("_best")
            stage.result = _read(folder / f"{name}.json")
        stages.append(stage)
    return RunRecord(folder, payload, stages, datetime.fromtimestamp(path.stat().st_mtime))


def stage_titles(count: int) -> list[str]:
    """Names of the runs: the last two are stage 2 and 3, all before them are stage 1."""
    if count <= 3:
        return [f"stage {number}" for number in range(1, count + 1)]
    parts = [f"stage 1, part {number}" for number in range(1, count - 1)]
    return [*parts, "stage 2", "stage 3"]


def _read(path: Path) -> dict[str, Any]:
    """A JSON object with null read as NaN, as it was before it was written; else empty."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return _numbers(data) if isinstance(data, dict) else {}


# Keys under which null means "no number"; elsewhere it means None.
_MEASURED = ("table", "ensemble_experts", "breakdown", "attributes", "routing")


def _numbers(data: dict[str, Any]) -> dict[str, Any]:
    def visit(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: visit(item) for key, item in value.items()}
        if isinstance(value, list):
            return [visit(item) for item in value]
        return math.nan if value is None else value

    return {key: visit(value) if key in _MEASURED else value for key, value in data.items()}


def number(value: Any) -> float:
    """``value``, or NaN where it is no number."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if good else math.nan

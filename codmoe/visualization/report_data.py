"""Gathers what a run of all stages left in its work directory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from codmoe.visualization.report_logs import Training, read_training

COMBINED = ("uniform", "router", "ensemble", "oracle", "mixture")


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
        return [name for name in self.table[dataset] if name not in COMBINED]

    @property
    def expert_names(self) -> list[str]:
        """Names of all experts, in one order for the whole page."""
        return list(dict.fromkeys(name for d in self.table for name in self.experts(d)))


def load_run(work_dir: str | os.PathLike) -> RunRecord:
    """Everything a report can show. What is missing but the table is left empty.

    Raises:
        FileNotFoundError: There is no ``table.json``.
        ValueError: It is not what ``tools/run_stages.py`` writes.
    """
    folder = Path(work_dir)
    path = folder / "table.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give the --work-dir of tools/run_stages.py, which writes it "
            "when all stages are tested"
        )
    payload = _read(path)
    table = payload.get("table")
    rows = [row for rows in table.values() for row in rows.values()] if _nested(table) else []
    if not rows or not all(isinstance(row, Mapping) and "n" in row for row in rows):
        raise ValueError(
            f"{path} is no table of tools/run_stages.py: it has no `table` ({{data set: {{source: "
            "row}}) with rows in it; give the --work-dir of that tool"
        )
    configs, weights = (list(payload.get(key) or []) for key in ("configs", "weights"))
    stages = []
    titles = stage_titles(len(configs))
    for number, (title, config) in enumerate(zip(titles, configs, strict=True), 1):
        work = folder / f"stage{number}"
        stage = StageRecord(title, str(config), _read(work / "finished.json"))
        stage.assembly = _read(work / "assembly.json")
        if work.is_dir():
            stage.training = read_training(work)
        if number > len(configs) - 2 and number <= len(weights):
            name = Path(weights[number - 1]).stem.removesuffix("_best")
            stage.result = _read(folder / f"{name}.json")
        stages.append(stage)
    return RunRecord(folder, payload, stages, datetime.fromtimestamp(path.stat().st_mtime))


def stage_titles(count: int) -> list[str]:
    """What the runs are called: the last two are stage 2 and 3, all before them are stage 1."""
    if count <= 3:
        return [f"stage {number}" for number in range(1, count + 1)]
    parts = [f"stage 1, part {number}" for number in range(1, count - 1)]
    return [*parts, "stage 2", "stage 3"]


def _nested(table: Any) -> bool:
    return isinstance(table, Mapping) and all(isinstance(rows, Mapping) for rows in table.values())


def _read(path: Path) -> dict[str, Any]:
    """A JSON object with null read as NaN, as it was before it was written; else empty."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
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

"""What a stage's work directory tells of its training: curves, machine, configuration, warnings."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

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

    def opening(self) -> dict[str, str]:
        """Versions, processes, device and seed, as the newest training log says; may be empty."""
        found: dict[str, str] = {}
        for folder in self.folders:
            if (folder / "vis_data/scalars.json").is_file():
                for _, text in log_entries(folder):
                    match = _OPENING.match(text)
                    found = match.groupdict() if match else found
        return found

    def config(self) -> Config | None:
        """The whole config of the training (the newest file in the work directory is a test's)."""
        for folder in reversed(self.folders):
            path = folder / "vis_data/config.py"
            if (folder / "vis_data/scalars.json").is_file() and path.is_file():
                try:
                    return Config.fromfile(path, import_custom_modules=False)
                except Exception:  # an edited or half-written dump says nothing about the results
                    return None
        return None

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
        start = max(begin - gap, 0)
        return (
            [{**r, "x": r["step"]} for r in train],
            [{**r, "x": r["step"]} for r in val],
            ("step"),
            start,
        )
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
        except ValueError:  # the last line of a run that was killed while it wrote
            continue
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

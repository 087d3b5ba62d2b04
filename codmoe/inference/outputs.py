"""Outputs of a prediction: pictures, videos and one table, of one process or of many, which goes on
where it was interrupted.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from codmoe.datasets.reading import upright, write_map
from codmoe.files import check_writable, holding, replacing, save_text, sweep
from codmoe.inference.inputs import RECORD, Item, Video, check_readable
from codmoe.inference.prediction import Prediction
from codmoe.messages import listed, suggest

SHEET = "side-by-side"
"""What has words on it, and so is made of upright pictures: a viewer is not to turn it."""
PICTURES: dict[str, tuple[str, Callable[[Prediction], np.ndarray]]] = {
    "mask": (".png", lambda p: p.mask * 255),
    "probability": (".png", lambda p: (p.probability * 255).round().astype(np.uint8)),
    "overlay": (".jpg", lambda p: p.overlay()),
    "outline": (".jpg", lambda p: p.outline()),
    "cutout": (".png", lambda p: p.cutout()),
    SHEET: (".jpg", lambda p: p.side_by_side()),
}
"""Suffix of each kind of output, and what makes it."""
GREY = ("mask", "probability")
"""Kinds that are written without loss as video too."""
TABLES = (".csv", ".json", ".jsonl")
BOX = ("left", "top", "right", "bottom")


class Outputs:
    """Files of one run over some inputs, of which this process makes every ``world``-th.

    A process writes the rows of an input into its journal once all its files are there, each of
    which appears whole or not at all. The process that finds all inputs in the journals makes the
    table of them.

    Args:
        items: All inputs, of all processes.
        folder: Where pictures go; None for a table alone.
        kinds: Of :data:`PICTURES`. One lies in ``folder``, of several each in a folder of its own.
        table: File for one row an image, ``.csv``, ``.json`` or ``.jsonl``.
        overwrite: Replace what is there.
        resume: Keep a record in ``folder`` (or beside ``table``), and leave out what it has.
        shard: Number of this process and of all.

    Raises:
        ValueError: A kind is unknown, a table of another format, or two inputs have one name.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        folder: Path | None,
        kinds: Sequence[str],
        table: Path | None = None,
        overwrite: bool = False,
        resume: bool = False,
        shard: tuple[int, int] = (0, 1),
    ):
        for kind in kinds:
            if kind not in PICTURES:
                raise ValueError(f"save: no output {kind!r}; {suggest(kind, PICTURES)}")
        if table is not None and table.suffix not in TABLES:
            raise ValueError(f"table={str(table)!r}: name it {', '.join(TABLES)}")
        self.rank, self.world = shard
        if overwrite and self.world > 1:
            raise ValueError(
                "overwrite=True with several processes: one would delete what another has made; "
                "give a new folder, or delete this one first"
            )
        self.items, self.folder, self.table = items, folder, table
        self.parents: set[str] = set()
        self.kinds = tuple(dict.fromkeys(kinds)) if folder is not None else ()
        self.overwrite = overwrite
        self.record: Path | None = None
        if resume or self.world > 1:
            self.record = folder / RECORD if folder else table and table.with_name(f".{table.name}")
        self.complete = False
        """Whether all inputs of all processes are done."""
        self.rows: dict[str, list[dict]] = {}
        self.failed: list[str] = []
        self.made = self.skipped = 0
        self.checked = False
        if folder is not None or table is not None:
            self._check_names()
        if table is not None:
            check_writable(table)

    @property
    def notes(self) -> bool:
        """Whether rows are kept: for a table now, or for one that is asked for later."""
        return self.table is not None or self.record is not None

    def path(self, item: Item, kind: str) -> Path:
        """Where an output goes."""
        return Path(*self._place(item, kind))

    def _place(self, item: Item, kind: str) -> tuple[str, str]:
        """Folder and file; strings, for a million of them are made in seconds."""
        suffix = PICTURES[kind][0]
        if isinstance(item.source, Video):
            suffix = ".mkv" if kind in GREY else ".mp4"
        below, _, stem = item.name.rpartition("/")
        parts = (str(self.folder), kind if len(self.kinds) > 1 else "", below)
        return "/".join(part for part in parts if part), stem + suffix

    def _check_names(self) -> None:
        seen: set[str] = set()
        for item in self.items:
            if item.name in seen:
                raise ValueError(
                    f"two inputs would both be {item.name!r} in the outputs; rename one, or "
                    "give the folder above both, whose sub-folders are kept"
                )
            seen.add(item.name)
            if isinstance(item.source, Video) and "cutout" in self.kinds:
                raise ValueError(
                    f"{item} is a video, which has no transparency; leave 'cutout' out, or give "
                    "its frames as images"
                )
        self.parents = {self._place(i, k)[0] for i in self.items for k in self.kinds}
        files = [os.fspath(item.path) for item in self.items if item.path is not None]
        linked = [os.path.realpath(file) if os.path.islink(file) else file for file in files]
        places = set(map(os.path.realpath, set(map(os.path.dirname, linked))))
        if not places.isdisjoint(map(os.path.realpath, self.parents)):
            sources = set(map(os.path.realpath, files))
            for target in (self.path(i, k) for i in self.items for k in self.kinds):
                if os.path.realpath(target) in sources:
                    raise ValueError(
                        f"out_dir={self.folder}: {target.name} is one of the images; give another"
                    )

    def _there(self) -> set[str]:
        """Names of the inputs of which all outputs exist."""
        listings: dict[str, set[str]] = {}
        for parent in self.parents:
            listings[parent] = set()
            with suppress(OSError):
                listings[parent] = set(os.listdir(parent))
        self.some, whole = [], set()
        for item in self.items:
            places = [self._place(item, kind) for kind in self.kinds]
            there = [place for place in places if place[1] in listings[place[0]]]
            self.some += [os.path.join(*place) for place in there]
            if len(there) == len(places):
                whole.add(item.name)
        return whole

    def check(self, *, skip_unreadable: bool = False) -> None:
        """Looks at this process's files, and whether outputs are in the way, before weights are
        loaded.

        Raises:
            ValueError: Files are unreadable, or outputs may not be replaced.
        """
        if self.checked:
            return
        self.checked = True
        if not skip_unreadable:
            check_readable(self.items[self.rank :: self.world])
        if self.world == 1 and not (self.record and self.record.exists()):
            self.refuse_existing()

    def where(self) -> str:
        """Where everything lies, for the user."""
        parts = [f"{', '.join(self.kinds)} in {self.folder}"] if self.kinds else []
        if self.table is not None:
            still = "" if self.complete else " follows when all parts are done"
            parts.append(f"table {self.table}{still}")
        return ", ".join(parts)

    @contextmanager
    def held(self, settings: Mapping[str, Any]) -> Iterator[list[Item]]:
        """Holds the folder for this process; gives what is left for it to do.

        Args:
            settings: What decides how outputs look.

        Raises:
            ValueError: Outputs exist that this run did not make, or were made with other settings;
                or another process is at work on them.
        """
        if self.record is None:
            yield list(self.items)
            return
        with ExitStack() as stack:
            lock = self.record / f"{self.rank}.lock"
            stack.enter_context(holding(lock, str(self.folder or self.table), "give another --out"))
            for parent in self.parents:
                sweep(parent)
            with self._alone():
                self._settle({"outputs": list(self.kinds), **settings})
            done = self._journals()[1] & self._there()
            mine = self.items[self.rank :: self.world]
            todo = [item for item in mine if item.name not in done]
            self.skipped = len(mine) - len(todo)
            yield todo

    def refuse_existing(self) -> None:
        """Raises ValueError if outputs are there that may not be replaced."""
        self._there()
        found = [*self.some, *([self.table] if self.table and self.table.exists() else [])]
        if found and not self.overwrite:
            raise ValueError(
                f"there already: {listed(found, shown=2)}; --overwrite (overwrite=True) replaces "
                "them, or give another folder"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Waits until no other process is in this block."""
        assert self.record is not None
        for _ in range(600):
            with ExitStack() as stack:
                try:
                    stack.enter_context(holding(self.record / "settle.lock", "the record", "wait"))
                except ValueError:
                    time.sleep(0.1)
                    continue
                yield
                return
        raise ValueError(f"{self.record / 'settle.lock'} is held for a minute; delete it")

    def _settle(self, settings: Mapping[str, Any]) -> None:
        """Begins the record, or finds that it fits."""
        assert self.record is not None
        file = self.record / "run.json"
        settings = json.loads(json.dumps(settings, default=str))
        table = self.table and os.path.abspath(self.table)
        held = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        if held and (held["settings"] == settings) and not (self.overwrite and held["finished"]):
            if self.table and table not in held["tables"]:
                if self.table.exists() and not self.overwrite:
                    raise ValueError(
                        f"there already: {self.table}, of another run; --overwrite "
                        "(overwrite=True) replaces it, or give another --table"
                    )
                save_text(file, json.dumps(dict(held, tables=[*held["tables"], table])), keep=False)
            return
        if held and not self.overwrite:
            keys = [k for k in settings if settings[k] != held["settings"].get(k)]
            changes = [f"{k} was {held['settings'].get(k)!r}, now {settings[k]!r}" for k in keys]
            raise ValueError(
                f"{self.record.parent} holds outputs that were made otherwise "
                f"({listed(changes, shown=2)}); give another --out, or --overwrite"
            )
        if held is None:
            self.refuse_existing()
        for journal in self.record.glob("*.jsonl"):
            journal.unlink()
        begun = dict(settings=settings, tables=[table] if table else [], finished=False)
        save_text(file, json.dumps(begun), keep=False)

    def _journals(self) -> tuple[dict[str, str], set[str]]:
        """The last line of each input in all journals, and the names of those that could be read.

        Raises:
            ValueError: An input of the same name was another file.
        """
        lines: dict[str, str] = {}
        read: set[str] = set()
        items = {item.name: item for item in self.items}
        for journal in sorted(self.record.glob("*.jsonl")) if self.record else ():
            with journal.open(encoding="utf-8") as file:
                for line in file:
                    try:
                        entry = json.loads(line)
                    except ValueError:  # cut off as the process was killed
                        continue
                    name, failed = entry["name"], any("error" in row for row in entry["rows"])
                    if name not in items or (failed and name in read):
                        continue
                    if not failed and entry["bytes"] != items[name].size:
                        if self.overwrite:
                            continue
                        raise ValueError(
                            f"{self.folder or self.table} has {name!r} of another file than "
                            f"{items[name]} is now; give another --out, or --overwrite"
                        )
                    lines[name] = line
                    if not failed:
                        read.add(name)
        return lines, read

    def write(self, item: Item, prediction: Prediction) -> None:
        """Writes the pictures of an image."""
        turned = item.orientation if self.kinds else 1
        for kind in self.kinds:
            shown, tag = prediction, turned
            if kind == SHEET:  # with words on it, which no viewer is to turn
                shown, tag = _upright(prediction, turned), 1
            write_map(self.path(item, kind), PICTURES[kind][1](shown), tag, keep=False)

    @contextmanager
    def film(self, item: Item) -> Iterator[Callable[[Prediction, float], None]]:
        """A function that writes a video's next frame; the files appear when the block ends."""
        assert isinstance(item.source, Video)
        rate, live = item.source.rate(), isinstance(item.source.source, int)
        writers: dict[str, cv2.VideoWriter] = {}
        written = 0
        with ExitStack() as stack:
            paths = {
                k: stack.enter_context(replacing(self.path(item, k), keep=False))
                for k in self.kinds
            }

            def add(prediction: Prediction, seconds: float) -> None:
                nonlocal written
                # A camera's frames stay as long as it took to the next, whatever predicting takes.
                times = max(int(seconds * rate) + 1 - written, 0) if live else 1
                written += times
                for kind, path in paths.items():
                    values = PICTURES[kind][1](prediction)
                    if kind not in GREY:
                        values = cv2.cvtColor(values, cv2.COLOR_RGB2BGR)
                    if kind not in writers:
                        writers[kind] = _writer(path, kind, rate, values)
                    for _ in range(times):
                        writers[kind].write(values)

            try:
                yield add
            finally:
                for writer in writers.values():
                    writer.release()

    def add(self, item: Item, rows: list[dict]) -> None:
        """Notes that an input is done."""
        self.made += 1
        if self.record is None:
            if self.table is not None:
                self.rows[item.name] = rows
            return
        line = json.dumps(dict(name=item.name, bytes=item.size, rows=rows)) + "\n"
        path = self.record / f"{self.rank}-of-{self.world}.jsonl"
        torn = path.exists() and path.stat().st_size and _last_byte(path) != b"\n"
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" * bool(torn) + line)

    def fail(self, item: Item, error: Exception) -> None:
        """Notes an input that cannot be read."""
        self.failed.append(str(item))
        self.add(item, [dict(image=str(item), error=str(error))])
        self.made -= 1

    def finish(self, experts: Sequence[str]) -> None:
        """Makes the table if all inputs of all processes are done."""
        if self.record is None:
            self.complete = True
            if self.table is not None:
                self._save_table((self.rows[i.name] for i in self.items), experts)
            return
        lines, _ = self._journals()
        self.complete = all(item.name in lines for item in self.items)
        if not self.complete:
            return
        with self._alone():
            file = self.record / "run.json"
            held = json.loads(file.read_text(encoding="utf-8"))
            if self.table is not None:
                rows = (json.loads(lines[item.name])["rows"] for item in self.items)
                self._save_table(rows, experts)
            save_text(file, json.dumps(dict(held, finished=True)), keep=False)

    def _save_table(self, items: Iterator[list[dict]], experts: Sequence[str]) -> None:
        assert self.table is not None
        rows = (row for each in items for row in each)
        # Of a file's name nothing is lost that is no UTF-8.
        with (
            replacing(self.table, keep=False) as temporary,
            temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            if self.table.suffix == ".csv":
                weights = [f"weight_{name}" for name in experts]
                heads = ["image", "frame", "object_share", *BOX, "confidence", *weights, "error"]
                writer = csv.DictWriter(file, heads, lineterminator="\n", extrasaction="ignore")
                writer.writeheader()
                writer.writerows(map(_flat, rows))
                return
            lines = self.table.suffix == ".jsonl"
            file.write("" if lines else "[\n")
            for number, row in enumerate(rows):
                file.write("" if lines or not number else ",\n")
                file.write(json.dumps(row) + "\n" * lines)
            file.write("" if lines else "\n]\n")


def _upright(found: Prediction, orientation: int) -> Prediction:
    """An image's prediction, and its picture, as viewers show the image."""
    if orientation == 1:
        return found
    return replace(
        found,
        probability=upright(found.probability, orientation),
        expert_maps={k: upright(v, orientation) for k, v in found.expert_maps.items()},
        image=upright(found.picture(), orientation),
    )


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as CSV has it."""
    box = dict(zip(BOX, row.get("box") or (), strict=False))
    weights = {f"weight_{name}": weight for name, weight in row.get("weights", {}).items()}
    return {**row, **box, **weights}


def _writer(path: Path, kind: str, rate: float, frame: np.ndarray) -> cv2.VideoWriter:
    height, width = frame.shape[:2]
    code = cv2.VideoWriter.fourcc(*("FFV1" if kind in GREY else "mp4v"))
    writer = cv2.VideoWriter(os.path.abspath(path), code, rate, (width, height), kind not in GREY)
    if not writer.isOpened():
        raise ValueError(
            f"{path.name}: this build of OpenCV writes no such videos (FFmpeg is "
            "missing); install opencv-python from PyPI"
        )
    return writer


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1)

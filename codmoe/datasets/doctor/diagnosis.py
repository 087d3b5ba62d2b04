"""Examines data sets and prints the report of ``codmoe doctor``."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from codmoe.console import TextTable
from codmoe.datasets.doctor.checks import Examined, Finding, all_findings
from codmoe.datasets.doctor.pairing import Listing, list_part
from codmoe.datasets.doctor.records import inspect, start_worker
from codmoe.datasets.layouts import (
    Folders,
    Part,
    Tree,
    check_apart,
    recognise,
    require_folder,
    resolve_root,
)
from codmoe.machine import available_cores
from codmoe.messages import is_quiet, listed

_CHUNK = 8


@dataclass
class Report:
    """Result of :func:`examine`.

    Args:
        root: Folder that was examined.
        layout: Names of the layouts recognised.
        sets: ``name``, ``role``, ``images``, ``expected`` and folders of each set.
        findings: The worst first.
        images: Number of images looked at.
        seconds: Time that took.
    """

    root: str
    layout: str
    sets: list[dict]
    findings: list[Finding]
    images: int
    seconds: float

    @property
    def errors(self) -> int:
        """Number of findings that must be mended."""
        return sum(finding.level == "error" for finding in self.findings)

    def payload(self) -> dict:
        """The report as plain values, with every path of every finding."""
        return {**asdict(self), "errors": self.errors}


def examine(
    root: str | os.PathLike,
    *,
    image_dir: str | None = None,
    mask_dir: str | None = None,
    waived: Sequence[str] = (),
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Reads every image and mask below ``root`` as training would, and lists what is wrong.

    Args:
        root: Folder of one data set or of several, in any known layout.
        image_dir: With ``mask_dir``: a pair of folders below ``root`` in no known layout.
        mask_dir: Folder of masks.
        waived: Names or stems of files of which a copy in training and test is meant.
        workers: Processes; all cores by default.
        progress: Draw a bar on stderr.

    Raises:
        FileNotFoundError: There is no such folder, or no known layout in it.
        ValueError: Folders fit more than one layout, or only one of two folders is given.
    """
    started = time.time()
    root = resolve_root(root)
    tree = Tree(root, _parts(root, image_dir, mask_dir))
    parts = tree.parts
    listings = [list_part(part, parts) for part in parts]
    jobs = [job for listing in listings for job in listing.jobs]
    names = {Path(image or "") for image, _ in jobs}
    if absent := set(waived) - {p.name for p in names} - {p.stem for p in names}:
        raise ValueError(f"--waive names {listed(sorted(absent), show=repr)}, which is not there")
    records = _inspect_all(jobs, workers or available_cores(), progress)
    examined, start = [], 0
    for listing in listings:
        stop = start + len(listing.jobs)
        examined.append(Examined(listing.part, records[start:stop]))
        start = stop
    by_name = [finding for listing in listings for finding in listing.findings]
    return Report(
        root=str(root),
        layout=tree.layout,
        sets=[_set(listing) for listing in listings],
        findings=all_findings(examined, by_name, set(waived)),
        images=sum(listing.images for listing in listings),
        seconds=round(time.time() - started, 1),
    )


def _parts(root: Path, image_dir: str | None, mask_dir: str | None) -> tuple[Part, ...]:
    if image_dir is None and mask_dir is None:
        return recognise(root).parts
    if image_dir is None or mask_dir is None:
        raise ValueError("give both --images and --masks, or neither")
    require_folder(root, "ROOT")
    image = require_folder(root / image_dir, "--images")
    mask = require_folder(root / mask_dir, "--masks")
    check_apart(image, mask)
    layout = f"{image_dir}+{mask_dir}"
    name = image.resolve().parent.name or image.name  # as training names it
    return (Part(name, "", Folders(image, mask), layout),)


def _set(listing: Listing) -> dict:
    part = listing.part
    return {
        "name": part.name,
        "role": part.role,
        "layout": part.layout,
        "images": listing.images,
        "expected": part.expected,
        "left_out": listing.left_out,
        "image_dir": str(part.folders.image),
        "mask_dir": str(part.folders.mask),
    }


def _inspect_all(jobs: Sequence[tuple], workers: int, progress: bool) -> list[tuple]:
    # Forked where that exists: a fresh interpreter takes seconds to import torch.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[speed]}"),
    )
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # a fork of a process with OpenCV's threads hangs
    with ProcessPoolExecutor(workers, context, start_worker) as pool:
        # All processes are forked here, before the bar's thread starts.
        results = pool.map(inspect, jobs, chunksize=_CHUNK)
        cv2.setNumThreads(threads)
        records, started = [], time.time()
        with Progress(
            *columns, console=Console(stderr=True, quiet=is_quiet()), disable=not progress
        ) as bar:
            task = bar.add_task("reading", total=len(jobs), speed="")
            try:
                for record in results:
                    records.append(record)
                    speed = f"{len(records) / max(time.time() - started, 1e-3):.0f} a second"
                    bar.update(task, advance=1, speed=speed)
            except BrokenProcessPool as error:
                where = jobs[min(len(records), len(jobs) - 1)]
                raise ValueError(
                    "a process died while reading, out of memory or in a decoder, at or soon "
                    f"after {where[0] or where[1]}; move that file away, or try fewer --workers"
                ) from error
    return records


SHOWN = 3
OF_A_FOLDER = ("number of images", "no images")
"""Checks that find one folder, not files, so that a count says nothing."""
COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


def print_report(report: Report) -> None:
    """Prints the sets and, below them, every finding with its first files and what to do."""
    rows = []
    for row in report.sets:
        expected, images = row["expected"], row["images"]
        colour = "" if expected in (None, images) else "red"
        name = f"{row['name']} {row['role']}".strip()
        protocol = f"{expected:,}" if expected else "-"
        left_out = f"{row['left_out']:,}" if row["left_out"] else ""
        rows.append([name, Text(f"{images:,}", colour), protocol, left_out, row["image_dir"]])
    heads = ["set", "images", "protocol", "left out", "folder of images"]
    title = f"{report.root}: {report.layout}"
    TextTable(heads, rows, (0, -1), title, wrap=True).print()
    if report.findings:
        cells: list[list[str | Text]] = [
            [Text(f.level, COLOURS[f.level]), _found(f, report.root), f.advice]
            for f in report.findings
        ]
        TextTable(["", "found", "what to do"], cells, range(3), wrap=True).print()
    counts = {level: sum(f.level == level for f in report.findings) for level in COLOURS}
    kinds = ", ".join(
        f"{count} kind{'s' * (count != 1)} of {level}" for level, count in counts.items()
    )
    speed = report.images / max(report.seconds, 0.1)
    print(
        f"{report.images:,} images in {report.seconds:.0f} s ({speed:.0f} a second): {kinds}. "
        + _verdict(counts)
    )


def _verdict(counts: dict[str, int]) -> str:
    if counts["error"]:
        return "Mend the errors before training."
    return "Look at the warnings before training." if counts["warning"] else "Ready to train on."


def _found(finding: Finding, root: str) -> Text:
    rows = [_few([_relative(path, root) for path in row]) for row in finding.files[:SHOWN]]
    more = len(finding.files) - SHOWN
    if more > 0:
        rows.append(f"and {more:,} more")
    count = f" ({len(finding.files):,})"
    if len(finding.files[0]) > 1:
        count = f" ({len(finding.files):,} group{'s' * (len(finding.files) > 1)})"
    if finding.check in OF_A_FOLDER:
        count = ""
    text = Text.assemble(
        f"{finding.where}: ", (f"{finding.check}{count}", "bold"), f", {finding.what}"
    )
    return text.append("".join(f"\n{row}" for row in rows), "dim")


def _few(paths: list[str]) -> str:
    rest = [f"{len(paths) - SHOWN} more"] if len(paths) > SHOWN else []
    return "  =  ".join([*paths[:SHOWN], *rest])


def _relative(path: str, root: str) -> str:
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path

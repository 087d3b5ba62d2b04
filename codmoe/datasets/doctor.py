"""Examines data sets before a GPU-hour is spent on them: ``tools/data/doctor.py``."""

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

from codmoe.datasets.doctor_checks import Examined, Finding, all_findings
from codmoe.datasets.doctor_files import inspect, start_worker
from codmoe.datasets.doctor_pairing import Listing, list_part
from codmoe.datasets.layouts import Folders, require_folder, resolve_root
from codmoe.datasets.trees import Part, recognise
from codmoe.machine import available_cores

_CHUNK = 8


@dataclass
class Report:
    """What :func:`examine` found.

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
        """As plain values, with every path of every finding."""
        return {**asdict(self), "errors": self.errors}


def examine(
    root: str | os.PathLike,
    *,
    image_dir: str | None = None,
    mask_dir: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Read every image and mask below ``root`` as training would, and list what is wrong.

    Args:
        root: Folder of one data set or of several, in any known layout.
        image_dir: With ``mask_dir``: a pair of folders below ``root`` in no known layout.
        mask_dir: Folder of masks.
        workers: Processes; all cores by default.
        progress: Draw a bar on stderr.

    Raises:
        FileNotFoundError: There is no such folder, or no known layout in it.
        ValueError: Folders fit more than one layout, or only one of two folders is given.
    """
    started = time.time()
    root = resolve_root(root)
    parts = _parts(root, image_dir, mask_dir)
    listings = [list_part(part, parts) for part in parts]
    jobs = [job for listing in listings for job in listing.jobs]
    records = _inspect_all(jobs, workers or available_cores(), progress)
    examined, start = [], 0
    for listing in listings:
        stop = start + len(listing.jobs)
        examined.append(Examined(listing.part, records[start:stop]))
        start = stop
    findings = [finding for listing in listings for finding in listing.findings]
    findings = all_findings(examined, findings)
    return Report(
        root=str(root),
        layout=", ".join(dict.fromkeys(part.layout for part in parts)),
        sets=[_set(listing) for listing in listings],
        findings=findings,
        images=sum(listing.images for listing in listings),
        seconds=round(time.time() - started, 1),
    )


def _parts(root: Path, image_dir: str | None, mask_dir: str | None) -> tuple[Part, ...]:
    if (image_dir is None) != (mask_dir is None):
        raise ValueError("give both --image-dir and --mask-dir, or neither")
    if image_dir is None:
        return recognise(root).parts
    require_folder(root, "ROOT")
    image = require_folder(root / image_dir, "--image-dir")
    mask = require_folder(root / mask_dir, "--mask-dir")
    layout = f"{image_dir}+{mask_dir}"
    return (Part(root.resolve().name, "", Folders(image, mask), layout),)


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
        with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
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

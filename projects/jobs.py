"""Jobs of a study: commands that wait for each other's files, several at a time on each GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from codmoe.interruption import PARENT

GRACE = 60.0
"""Seconds in which a job that is told to end may keep what it has."""


@dataclass
class Job:
    """A command of this Python, the file that it makes, and those that it needs."""

    name: str
    command: list[str]
    makes: Path
    needs: list[Path] = field(default_factory=list)


def run_jobs(
    jobs: list[Job], logs: Path, *, gpus: int = 1, per_gpu: int = 2, limit: float = 1e9
) -> list[str]:
    """Run the jobs whose file is not there, until none is left or none can begin.

    Args:
        jobs: In the order in which they begin, as far as what they need is there.
        logs: Folder of their logs, and of ``times.jsonl``: a line for each job that ended.
        gpus: Number of GPUs: the first of ``CUDA_VISIBLE_DEVICES``, where that is set.
        per_gpu: Jobs at a time on each.
        limit: Seconds after which all jobs are told to end.

    Returns:
        The names of the jobs whose file is still not there.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = {job.name: job for job in jobs if not job.makes.exists()}
    began = time.time()
    running: list[tuple[Job, str, subprocess.Popen, float]] = []
    paths = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    # Commands of ours end once this process has gone.
    own = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", PARENT: str(os.getpid())}
    environment = dict(os.environ, **own)
    visible = [g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g]
    names = (visible or [str(g) for g in range(gpus)])[:gpus]

    def say(text: str) -> None:
        print(f"{time.time() - began:.0f} s: {text}", flush=True)

    def ended(job: Job, gpu: str, process: subprocess.Popen, start: float) -> None:
        code, seconds = process.returncode, time.time() - start
        say(f"{job.name} on {gpu}: {code}, {seconds:.0f} s")
        note_time(logs, job, code, seconds, at_a_time=per_gpu)

    while waiting or running:
        for item in list(running):
            if item[2].poll() is not None:
                running.remove(item)
                ended(*item)
        busy = {job.makes for job, *_ in running}
        ready = [j for j in waiting.values() if all(n.exists() and n not in busy for n in j.needs)]
        load = [sum(gpu == g for _, g, *_ in running) for gpu in names]
        if time.time() - began > limit or not (ready or running):
            for _, _, process, _ in running:
                process.terminate()
            deadline = time.time() + GRACE
            for item in running:
                try:
                    item[2].wait(max(deadline - time.time(), 0.1))
                except subprocess.TimeoutExpired:
                    item[2].kill()
                    item[2].wait()
                ended(*item)
            break
        if not ready or min(load) >= per_gpu:
            time.sleep(0.5)
            continue
        job, gpu = ready[0], names[load.index(min(load))]
        del waiting[job.name]
        say(f"{job.name} on {gpu}")
        where = dict(environment, CUDA_VISIBLE_DEVICES=gpu)
        with (logs / f"{job.name}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, *job.command], env=where, stdout=log, stderr=subprocess.STDOUT
            )
        running.append((job, gpu, process, time.time()))
    left = [job.name for job in jobs if not job.makes.exists()]
    if left:
        say(f"left: {', '.join(left)}; logs: {logs}")
    return left


def note_time(logs: Path, job: Job, code: int | None, seconds: float, at_a_time: int) -> None:
    """Add a line to ``times.jsonl``."""
    line = dict(job=job.name, code=code, seconds=round(seconds, 1), at_a_time=at_a_time)
    with (logs / "times.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def seconds_of(logs: Path, name: str) -> float:
    """What a job took, all its parts together where it was cut off."""
    lines = (logs / "times.jsonl").read_text().splitlines()
    return sum(line["seconds"] for line in map(json.loads, lines) if line["job"] == name)

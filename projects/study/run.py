"""Trains and tests the rows of a study: python -m projects.study.run --gpus 2 --per-gpu 3

Rows run beside each other on a few GPUs, within a time limit. They are names or patterns of configs
("polyp_*"), the most wanted first; all by default. Goes on from where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from codmoe.engine.checkpoints import AtomicBackend
from codmoe.engine.launch import set_aside
from codmoe.engine.stages import check_data, child_environment, train_command
from codmoe.machine import available_cores, check_gpus
from projects.study.jobs import (
    Job,
    device_environment,
    estimate,
    publish,
    read_state,
    record,
    say,
    testing_command,
)
from projects.study.plan import CONFIGS, VARIABLE, Row, Run, plan_study, sources_first, study_rows

STATE = "study_state.json"
_POLL = 0.2
_GRACE = 15.0
# After running out of memory: alone on the GPU, and in all.
_TRIES, _TRIES_IN_ALL = 3, 10


class Places:
    """GPUs that several runs share.

    Args:
        gpus: Their number; 0 for the CPU.
        per_gpu: Runs that share one; no two of them need much memory.
    """

    def __init__(self, gpus: int, per_gpu: int):
        self.gpus, self.per_gpu = gpus, per_gpu
        self._too_many: set[frozenset[str]] = set()

    def find(self, run: Run, jobs: Sequence[Job]) -> int | None:
        """The emptiest GPU that has room for a run, or None.

        Runs that have once been too many for a GPU do not come together again.
        """
        phase = "test" if run.is_finished() else "train"
        free = {}
        for gpu in range(max(self.gpus, 1)):
            held = [job for job in jobs if job.gpu == gpu]
            two = run.is_heavy and phase == "train" and any(job.is_heavy for job in held)
            together = {*_names(held), _name(run, phase)}
            full = any(combination <= together for combination in self._too_many)
            if len(held) < self.per_gpu and not (self.gpus and two) and not full:
                free[gpu] = len(held)
        return min(free, key=free.__getitem__, default=None)

    def mark_shared(self, job: Job, jobs: Iterable[Job]) -> None:
        """Tell jobs that share a GPU from now on."""
        for other in jobs:
            if other is not job and other.gpu == job.gpu:
                other.shared = job.shared = True

    def were_too_many(self, job: Job, jobs: Iterable[Job]) -> None:
        """Remember what ran on a GPU whose memory ran out under ``job``, one of ``jobs``."""
        held = [other for other in jobs if other.gpu == job.gpu]
        if len(held) > 1:
            self._too_many.add(frozenset(_names(held)))


def _names(jobs: Iterable[Job]) -> set[str]:
    return {_name(job.run, job.phase) for job in jobs}


def _name(run: Run, phase: str) -> str:
    """A run and how far it is: a test takes less memory than the training before it."""
    return f"{run.label} {phase}"


@dataclass
class Study:
    """The runs of a study and what has become of them.

    Args:
        runs: As :func:`~projects.study.plan.plan_study` returns them.
        work_dir: Folder of logs, weights and state.
        out: Folder of the small results.
        gpus: GPUs to use; 0 for the CPU.
        per_gpu: Runs that share one, so that one computes while another starts or tests; no two of
            them need much memory (:attr:`Run.is_heavy`).
        workers: Loader workers per run; None shares out the cores.
        time_limit: Seconds after which everything is stopped; None for no limit.
        keep_weights: Patterns of rows whose weights stay when no later row needs them any more.
    """

    runs: Sequence[Run]
    work_dir: Path
    out: Path
    gpus: int = 1
    per_gpu: int = 2
    workers: int | None = None
    time_limit: float | None = None
    keep_weights: Sequence[str] = ()
    status: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.gpus < 0 or self.per_gpu < 1:
            raise ValueError(f"gpus={self.gpus}, per_gpu={self.per_gpu}: give at least 0 and 1")
        self.slots = max(self.gpus, 1) * self.per_gpu
        if self.workers is None:
            self.workers = max(1, available_cores() // self.slots - 1)
        self.jobs: list[Job] = []
        self.places = Places(self.gpus, self.per_gpu)
        self.tries: dict[str, dict[str, int]] = {}
        self.started = time.time()
        self.signal: int | None = None
        self.earlier = read_state(self.work_dir / STATE)
        for run in self.runs:
            measured = self.earlier.get(run.label, {})
            known: dict[str, Any] = {
                key: measured[key] for key in ("seconds", "epochs") if key in measured
            }
            self.status[run.label] = dict(state="done" if run.is_done() else "waiting", **known)
        # Weights of a finished run may be gone: what starts from them now needs them once more.
        for run in reversed(sources_first(self.runs)):
            if self.state(run) == "waiting" and not run.is_finished():
                for source in run.above:
                    if not source.weights.is_file():
                        self.status[source.label]["state"] = "waiting"

    def state(self, run: Run) -> str:
        """``waiting``, ``running``, ``done``, ``failed``, ``blocked`` or ``interrupted``."""
        return self.status[run.label]["state"]

    def run(self) -> dict[str, dict[str, Any]]:
        """Run what is not done yet; returns what became of each run.

        A run that fails is told and stops nobody but those that start from its weights.
        """
        signals = (signal.SIGINT, signal.SIGTERM)
        earlier = {s: signal.signal(s, self._note) for s in signals}
        for run in self.runs:
            if self.state(run) == "done":
                publish(run, self.out)
        try:
            while not self._over():
                self._collect()
                self._block()
                self._fill()
                self._save()
                if not self.jobs:
                    break
                while not self._over() and all(job.poll() is None for job in self.jobs):
                    time.sleep(_POLL)
        finally:
            self._collect()
            self._stop_all()
            self._save()
            for signum, handler in earlier.items():
                signal.signal(signum, handler)
        return self.status

    def _note(self, signum: int, frame: Any) -> None:
        self.signal = signum

    def _left(self) -> float:
        return float("inf") if self.time_limit is None else self.time_limit - self._spent()

    def _spent(self) -> float:
        return time.time() - self.started

    def _over(self) -> bool:
        return self.signal is not None or self._left() <= 0

    def _fill(self) -> None:
        """Start what can start, in order of priority."""
        for run in self.runs:
            if len(self.jobs) >= self.slots:
                return
            if self.state(run) != "waiting":
                continue
            if not all(self._has_weights(source) for source in run.above):
                continue
            gpu = self.places.find(run, self.jobs)
            if gpu is None:
                continue
            expected = estimate(run, self.runs, self.status)
            if expected > self._left():
                self.status[run.label]["reason"] = f"would take {expected:.0f} s"
                continue
            self._start(run, gpu)

    def _has_weights(self, source: Run) -> bool:
        """Whether a run is trained, so that others can start from it, whatever its test does."""
        if self.state(source) == "done":
            return source.weights.is_file()
        testing = any(job.run is source and job.phase == "test" for job in self.jobs)
        return (testing or self.state(source) == "failed") and source.is_finished()

    def _start(self, run: Run, gpu: int) -> None:
        job = Job(run, gpu, time.time(), log=self.work_dir / "logs" / f"{run.label}.log")
        self.jobs.append(job)
        self.places.mark_shared(job, self.jobs)
        run.work_dir.mkdir(parents=True, exist_ok=True)
        if run.is_finished():
            self._launch(job, "test")
            return
        resume = run.is_interrupted()
        job.whole = not resume
        if not resume:
            # Before the mark: a start that fails must not make an earlier run pass for this one.
            set_aside(run.work_dir)
        run.mark.write_text(run.fingerprint)
        self._launch(job, "train", resume)

    def _launch(self, job: Job, phase: str, resume: bool = False) -> None:
        run = job.run
        options = run.options + [
            f"{part}_dataloader.num_workers={self.workers}"
            for part in ("train", "val", "test")
            # 0 goes with persistent_workers=False, and is wanted.
            if run.cfg[f"{part}_dataloader"].get("num_workers")
        ]
        arguments = ["--cfg-options", *options]
        if phase == "train":
            command = train_command(run, 1, arguments, resume)
        else:
            command = testing_command(run, arguments)
        environment = device_environment(job.gpu, self.gpus, self.slots)
        if run.dataset:
            environment[VARIABLE] = run.dataset
        job.launch(phase, command, dict(child_environment(), **environment))
        told = dict(state="running", phase=phase, gpu=job.gpu, log=str(job.log))
        self.status[run.label] = told | dict(epochs=run.epochs)
        where = f"GPU {job.gpu}" if self.gpus else "the CPU"
        say(f"{run.label}: {'resuming' if resume else phase} on {where}")

    def _collect(self) -> None:
        """See which processes have ended, and go on from there."""
        running = list(self.jobs)
        for job in [job for job in running if job.poll() is not None]:
            run, code = job.run, job.poll()
            if code:
                if job.ran_out_of_memory():
                    self.places.were_too_many(job, running)
                self._failed(job, f"{job.phase} ended with exit code {code}")
            elif job.phase == "train" and not self._over():
                self._launch(job, "test")
            elif job.phase == "train":
                self._end(job, "interrupted")
            else:
                try:
                    record(run, self.out)
                except (OSError, ValueError, KeyError) as error:
                    self._failed(job, f"its result cannot be read: {error!r}")
                else:
                    taken = dict(seconds=round(time.time() - job.began, 1)) if job.whole else {}
                    self._end(job, "done", **taken)
                    self._tidy(run)

    def _failed(self, job: Job, why: str) -> None:
        tail, label = job.tail(), job.run.label
        if job.ran_out_of_memory():
            # Its own fault only if it had the GPU for itself.
            tries = self.tries.setdefault(label, dict(alone=0, all=0))
            tries["all"] += 1
            tries["alone"] += not job.shared
            if tries["alone"] < _TRIES and tries["all"] < _TRIES_IN_ALL:
                self._end(job, "waiting", error=why)
                return
        self._end(job, "failed", error=why, tail=tail)
        say(f"  {tail.strip().splitlines()[-1] if tail.strip() else '(no output)'}; {job.log}")

    def _end(self, job: Job, state: str, **more: Any) -> None:
        self.jobs.remove(job)
        self.status[job.run.label] |= dict(state=state, **more)
        seconds = time.time() - job.began
        say(f"{job.run.label}: {state} after {seconds:.0f} s {more.get('error', '')}".rstrip())

    def _block(self) -> None:
        for run in sources_first(self.runs):
            ended = ("failed", "blocked", "interrupted")
            lost = [s for s in run.above if self.state(s) in ended and not self._has_weights(s)]
            if lost and self.state(run) == "waiting":
                reason = f"{lost[0].label} {self.state(lost[0])}"
                self.status[run.label] = dict(state="blocked", reason=reason)

    def _tidy(self, run: Run) -> None:
        """Delete the training checkpoints of a finished run, and weights nobody starts from."""
        for path in [*run.work_dir.glob("epoch_*.pth"), run.work_dir / "last_checkpoint"]:
            path.unlink(missing_ok=True)
        for candidate in (run, *run.above):
            if self.state(candidate) != "done":
                continue
            kept = any(fnmatchcase(candidate.row, pattern) for pattern in self.keep_weights)
            users = [other for other in self.runs if candidate in other.above]
            # A row that is planned in the next call may need what no row of this one does.
            kept = kept or (candidate.is_source and not users)
            if not kept and all(self.state(user) == "done" for user in users):
                candidate.weights.unlink(missing_ok=True)

    def _stop_all(self) -> None:
        for job in self.jobs:
            job.send(signal.SIGTERM)
        deadline = time.time() + _GRACE
        for job in list(self.jobs):
            job.wait(max(0.1, deadline - time.time()))
            self._end(job, "interrupted")

    def _save(self) -> None:
        # Durations of runs that this call does not know stay: later ones are judged by them.
        merged = {**self.earlier, **self.status}
        state = dict(spent=round(self._spent(), 1), limit=self.time_limit, runs=merged)
        text = json.dumps(state, indent=1, ensure_ascii=False)
        AtomicBackend().put_text(text, self.work_dir / STATE)


def run_study(
    rows: Sequence[Row],
    *,
    seeds: Sequence[int] = (0,),
    work_dir: str = "work_dirs/study",
    out: str | None = None,
    options: Sequence[str] = (),
    **settings: Any,
) -> Study:
    """Plan, check the data and run; ``settings`` are :class:`Study`'s.

    Raises:
        FileNotFoundError, ValueError: Something is missing or does not fit; nothing ran.
    """
    check_gpus(settings.get("gpus", 1), "gpus")
    folder = Path(work_dir).absolute()
    runs = plan_study(rows, seeds=seeds, work_dir=folder, options=options)
    study = Study(runs, folder, Path(out).absolute() if out else folder / "results", **settings)
    check_data([run for run in runs if study.state(run) != "done"])
    study.run()
    counts: dict[str, int] = {}
    for entry in study.status.values():
        counts[entry["state"]] = counts.get(entry["state"], 0) + 1
    say(", ".join(f"{number} {state}" for state, number in sorted(counts.items())))
    say(f"results: {study.out}")
    return study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help="rows, patterns of rows, or config files")
    parser.add_argument(
        "--configs", type=Path, default=CONFIGS, metavar="DIR", help="folder of the rows"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--gpus", type=int, default=1, help="0 for the CPU")
    parser.add_argument("--per-gpu", type=int, default=2, help="runs that share a GPU")
    parser.add_argument(
        "--workers", type=int, help="loader workers per run; by the cores if absent"
    )
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="stop everything then")
    parser.add_argument("--work-dir", default="work_dirs/study", help="logs, weights and state")
    parser.add_argument("--out", help="folder of the small results; WORK_DIR/results by default")
    parser.add_argument("--keep-weights", nargs="+", default=[], metavar="ROWS", help="patterns")
    parser.add_argument("--list", action="store_true", help="print the rows and leave")
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="[ROWS:]KEY=VALUE", help="override configs"
    )
    args = parser.parse_args()
    try:
        rows = study_rows(args.rows, args.configs)
        if args.list:
            print("\n".join(row.name for row in rows))
            return
        study = run_study(
            rows,
            seeds=args.seeds,
            work_dir=args.work_dir,
            out=args.out,
            options=args.cfg_options,
            gpus=args.gpus,
            per_gpu=args.per_gpu,
            workers=args.workers,
            time_limit=args.time_limit,
            keep_weights=args.keep_weights,
        )
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    if study.signal is not None:
        sys.exit(128 + study.signal)
    if any(entry["state"] == "failed" for entry in study.status.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()

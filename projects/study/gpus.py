"""Which GPU the next run of a study gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from projects.study.jobs import Job
from projects.study.plan import Run


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

"""Which GPU the next run of a study gets."""

from __future__ import annotations

from collections.abc import Sequence

from codmoe.engine.study_jobs import Job
from codmoe.engine.study_plan import Run


class Places:
    """GPUs that several runs share.

    Args:
        gpus: Their number; 0 for the CPU.
        per_gpu: Runs that share one; no two of them need much memory.
    """

    def __init__(self, gpus: int, per_gpu: int):
        self.gpus, self.per_gpu = gpus, per_gpu
        self._too_many: dict[tuple[str, int], set[str]] = {}

    def find(self, run: Run, jobs: Sequence[Job]) -> int | None:
        """The emptiest GPU that has room for a run, or None.

        Where its memory ran out before, one of those that it shared the GPU with has to have gone.
        """
        heavy = run.is_heavy and not run.is_finished()
        free = {}
        for gpu in range(max(self.gpus, 1)):
            held = [job for job in jobs if job.gpu == gpu]
            crowded = self.gpus and heavy and any(job.is_heavy for job in held)
            before = self._too_many.get((run.label, gpu))
            crowded = crowded or (before and before <= _names(held))
            if len(held) < self.per_gpu and not crowded:
                free[gpu] = len(held)
        return min(free, key=free.__getitem__, default=None)

    def was_full(self, job: Job, jobs: Sequence[Job]) -> bool:
        """Remember whom a run shared its GPU with when memory ran out; False if with nobody."""
        beside = _names(other for other in jobs if other.gpu == job.gpu and other is not job)
        self._too_many[job.run.label, job.gpu] = beside
        return bool(beside)


def _names(jobs) -> set[str]:
    """What runs, and how far: a test takes less memory than the training before it."""
    return {f"{job.run.label} {job.phase}" for job in jobs}

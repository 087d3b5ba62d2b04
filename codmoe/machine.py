"""Cores, memory and devices of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import torch

# Limit, use and its composition, as containers see them: version 2 and version 1.
CGROUPS = tuple(
    (*(f"/sys/fs/cgroup/{name}" for name in names), cached)
    for *names, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    )
)


def available_cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes of host memory that are to be had now, by the machine and by the limit of the container
    that this process runs in; None where the system does not say (it is asked as Linux is).
    """
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(s.split()[1]) for s in lines if s.startswith("MemAvailable:")]
    except OSError:
        pass
    for limit, used, stat, cached in CGROUPS:
        try:
            most, now = (int(Path(file).read_text()) for file in (limit, used))
            rows = (line.split() for line in Path(stat).read_text().splitlines())
            # Files that were read lie in memory until somebody needs it.
            now -= next((int(value) for key, value in rows if key == cached), 0)
        except (OSError, ValueError):  # no such file, or "max"
            continue
        found.append(max(most - now, 0))
    return min(found, default=None)


def check_gpus(count: int, key: str) -> None:
    """Raises ValueError unless this machine has so many GPUs; ``key`` is what asked for them."""
    there = torch.cuda.device_count()
    if count > there:
        raise ValueError(f"{key}={count}, but this machine has {there} GPU(s); use {key}={there}")


def check_device(device: str) -> None:
    """Raises ValueError unless tensors can be put there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {device!r} is not to be had here ({str(error).splitlines()[0]}); use 'cpu'"
        ) from error

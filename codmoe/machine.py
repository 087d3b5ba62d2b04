"""What the machine offers: cores and devices."""

from __future__ import annotations

import os

import torch


def available_cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_device(device: str) -> None:
    """Raises ValueError unless tensors can be put there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {device!r} is not to be had here ({str(error).splitlines()[0]}); use 'cpu'"
        ) from error

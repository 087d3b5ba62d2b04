"""Times calls side by side: the same clock, warmed up, in random order."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from codmoe.messages import muted

Call = Callable[[], Any]
Name = TypeVar("Name", bound=Hashable)


@dataclass
class Sample:
    """Times of one call.

    Args:
        seconds: Of each repeat, the device waited for before and after.
        burst: Seconds a call when several follow each other and only the last is waited for.
    """

    seconds: list[float]
    burst: float

    def figures(self, batch: int) -> dict[str, Any]:
        """``n``, ``median_ms``, ``p10_ms``, ``p90_ms`` and ``images_per_second``, of ``batch`` a
        call.
        """
        ordered = sorted(self.seconds)
        # The smallest values that one tenth and nine tenths do not exceed.
        p10, p90 = (ordered[-(-tenths * len(ordered) // 10) - 1] for tenths in (1, 9))
        return dict(
            n=len(ordered),
            median_ms=1e3 * statistics.median(ordered),
            p10_ms=1e3 * p10,
            p90_ms=1e3 * p90,
            images_per_second=batch / self.burst,
        )


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given; nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def side_by_side(
    calls: Mapping[Name, Call], device: torch.device, *, repeats: int = 30
) -> dict[Name, Sample]:
    """Times warmed-up calls on a device, by any name.

    Every one of ``repeats`` rounds runs each call once, in an order drawn anew: a clock that
    drifts, or another process, touches all alike.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    order, draw = list(calls), random.Random(0)
    for _ in range(repeats):
        draw.shuffle(order)
        for name in order:
            synchronise(device)
            started = time.perf_counter()
            calls[name]()
            synchronise(device)
            seconds[name].append(time.perf_counter() - started)
    samples = {}
    for name, call in calls.items():
        if device.type != "cuda":
            # A call on the CPU returns when it is done: nothing can overlap.
            samples[name] = Sample(seconds[name], statistics.fmean(seconds[name]))
            continue
        rounds = max(repeats // 2, 1)
        synchronise(device)
        started = time.perf_counter()
        for _ in range(rounds):
            call()
        synchronise(device)
        samples[name] = Sample(seconds[name], (time.perf_counter() - started) / rounds)
    return samples


def warmed(call: Call, device: torch.device, rounds: int) -> Call:
    """``call``, after ``rounds`` runs of it."""
    for _ in range(rounds):
        call()
    synchronise(device)
    return call


def working_memory(call: Call, device: torch.device) -> float:
    """MiB that a call needs at its peak beyond what lies allocated before it.

    On the CPU by what torch's allocator tells its profiler; scratch memory of libraries is not in
    it.
    """
    if device.type != "cuda":
        return _peak_by_profiler(call) / 2**20
    synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    synchronise(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _peak_by_profiler(call: Call) -> int:
    """Bytes."""
    profile = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    )
    with muted(2):  # of torch 2.13: "USDT:… SyncActivityProfilerHandler", at its end, too
        profile.start()
    try:
        call()
    finally:
        with muted(2):
            profile.stop()
    recorded: Any = profile.profiler
    events = recorded.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        held += change
        peak = max(peak, held)
    return peak


def reserved(device: torch.device) -> float:
    """MiB that are taken from a GPU, without what lies unused; 0 on the CPU.

    What a CUDA graph computes with counts here, and not as allocated: it is free between calls, and
    nobody else's.
    """
    if device.type != "cuda":
        return 0.0
    synchronise(device)
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device) / 2**20


def allocated(device: torch.device) -> float:
    """MiB that lie allocated on a GPU; 0 on the CPU."""
    return torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0

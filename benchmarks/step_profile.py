"""Says what the device does in a training step, by torch's profiler: how long it is busy, with
which kernels, and for which part of the model."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.runner import Runner
from torch.profiler import profile, record_function

from codmoe.compiled.speed import PARTS, regions
from codmoe.engine.ddp import bare_model

RANGE = "codmoe "
FORWARD, BACKWARD = "forward ", "backward "
REST, ADDED, OPTIMISER, BETWEEN = "rest", "adding up gradients", "optimiser", "between"
_NODE = "autograd::engine::evaluate_function: "
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")
TOP = 10


class StepProfile:
    """Profiles steps of a Runner that trains: :meth:`start` before them, :meth:`stop` after.

    Args:
        runner: Its model's parts, backward pass and optimiser get ranges of their own meanwhile.
    """

    def __init__(self, runner: Runner):
        # As torch does for graphs of its own: what it profiles with cannot be unloaded beside them.
        os.environ.setdefault("TEARDOWN_CUPTI", "0")
        self.profile = profile(acc_events=True)
        self.ranges = _ranges(runner)

    def start(self) -> None:
        """The device has to be idle."""
        self.ranges.__enter__()
        self.profile.start()

    def stop(self, steps: int) -> dict[str, Any]:
        """Figures of one of ``steps`` steps, as of :func:`read_trace`; the device has to be
        idle.
        """
        self.profile.stop()
        self.ranges.__exit__(None, None, None)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self.profile.export_chrome_trace(str(path))
            return read_trace(json.loads(path.read_text())["traceEvents"], steps)


@contextmanager
def _ranges(runner: Runner) -> Iterator[None]:
    model, wrapper = bare_model(runner), runner.optim_wrapper
    changed = [(model, "_run_forward", FORWARD + REST), (wrapper, "backward", BACKWARD + REST)]
    changed.append((wrapper, "step", OPTIMISER))
    # Where torch puts a compiled call, which no hook of the module is part of.
    parts = {name: module for part in PARTS for name, module in regions(model, part)}
    earlier = {name: module._compiled_call_impl for name, module in parts.items()}
    try:
        for owner, method, label in changed:
            setattr(owner, method, _named(label, getattr(owner, method)))
        for name, module in parts.items():
            call = earlier[name] or module._call_impl
            module._compiled_call_impl = _named(FORWARD + name, call)
        yield
    finally:
        for owner, method, _ in changed:
            delattr(owner, method)
        for name, module in parts.items():
            module._compiled_call_impl = earlier[name]


def _named(label: str, call: Callable) -> Callable:
    def named(*args, **kwargs):
        with record_function(RANGE + label):
            return call(*args, **kwargs)

    return named


def read_trace(events: Sequence[Mapping[str, Any]], steps: int) -> dict[str, Any]:
    """Figures of one step from torch's trace of some.

    Args:
        events: Of the trace. Where there is no device, the innermost operations of the CPU stand
            for its kernels.
        steps: How many steps they are of.

    Returns:
        ``busy_ms``, in which the device ran at least one kernel; ``kernel_ms``, their sum;
        ``kernels``, their number; ``launches``, of kernels and graphs; ``parts``, by
        ``"forward <part>"``, ``"backward <part>"``, ..., each ``ms`` and ``kernels``; ``top``, the
        kernels that take longest, each ``name``, ``ms`` and ``count``. Which part a backward pass
        is of follows from the sequence numbers of autograd's nodes.
    """
    whole = [e for e in events if e.get("ph") == "X" and "dur" in e]
    labels, leaves = _labels(whole)
    kernels = [e for e in whole if e.get("cat") in _ON_DEVICE]
    launches = {e["args"]["correlation"]: i for i, e in enumerate(whole)
                if e.get("cat") in _LAUNCHES and "correlation" in e.get("args", ())}  # fmt: skip
    if kernels:
        of = [labels.get(launches.get(e["args"].get("correlation"), -1)) for e in kernels]
    else:
        kernels, of = [whole[i] for i in leaves], [labels[i] for i in leaves]
    parts: dict[str, Counter[str]] = defaultdict(Counter)
    names: dict[str, Counter[str]] = defaultdict(Counter)
    for event, label in zip(kernels, of, strict=True):
        for counts, key in ((parts, label or BETWEEN), (names, event["name"])):
            counts[key].update(us=event["dur"], count=1)
    longest = sorted(names, key=lambda name: -names[name]["us"])[:TOP]
    used = {e["args"].get("correlation") for e in kernels if "args" in e}
    return dict(
        busy_ms=covered((e["ts"], e["ts"] + e["dur"]) for e in kernels) / steps / 1e3,
        kernel_ms=sum(e["dur"] for e in kernels) / steps / 1e3,
        kernels=len(kernels) / steps,
        launches=len(used & set(launches)) / steps,
        parts={
            label: dict(ms=c["us"] / steps / 1e3, kernels=c["count"] / steps)
            for label, c in sorted(parts.items(), key=lambda item: -item[1]["us"])
        },
        top=[
            dict(
                name=name[:200],
                ms=names[name]["us"] / steps / 1e3,
                count=names[name]["count"] / steps,
            )
            for name in longest
        ],
    )


def covered(intervals: Iterator[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(end - max(begin, reached), 0.0)
        reached = max(reached, end)
    return total


def _labels(events: Sequence[Mapping[str, Any]]) -> tuple[dict[int, str | None], list[int]]:
    """What each event of a host's thread belongs to, and which operations have none within.

    Both by the number of the event.
    """
    threads: dict[Any, list[int]] = defaultdict(list)
    for i, event in enumerate(events):
        if event.get("cat") in ("cpu_op", "user_annotation", *_LAUNCHES):
            threads[event["tid"]].append(i)
    nodes: dict[int, str] = {}
    labels: dict[int, str | None] = {}
    inner: set[int] = set()

    def follow(numbers: list[int]) -> None:
        stack: list[int] = []
        for i in sorted(numbers, key=lambda i: (events[i]["ts"], -events[i]["dur"])):
            event = events[i]
            while stack and _end(events[stack[-1]]) <= event["ts"]:
                stack.pop()
            above = labels[stack[-1]] if stack else None
            if stack and event["cat"] == "cpu_op":
                inner.add(stack[-1])
            labels[i] = _label(event, above, nodes)
            stack.append(i)

    # The threads with ranges first, as the nodes of a backward pass are made there.
    ours = {e["tid"] for e in events if e.get("cat") == "user_annotation"}
    for tid in sorted(threads, key=lambda tid: tid not in ours):
        follow(threads[tid])
    leaves = [i for i in labels if events[i]["cat"] == "cpu_op" and i not in inner]
    return labels, leaves


def _end(event: Mapping[str, Any]) -> float:
    return event["ts"] + event["dur"]


def _label(event: Mapping[str, Any], above: str | None, nodes: dict[int, str]) -> str | None:
    """Of an event within another, or None; notes the nodes that a forward pass makes."""
    name, number = event["name"], event.get("args", {}).get("Sequence number")
    if event["cat"] == "user_annotation":
        return name.removeprefix(RANGE) if name.startswith(RANGE) else above
    if name.startswith(_NODE):
        if "AccumulateGrad" in name:
            return BACKWARD + ADDED
        return BACKWARD + nodes.get(number, REST)
    if number is not None and above is not None and above.startswith(FORWARD):
        # The last operation that names a number is the one that makes its node.
        nodes[number] = above.removeprefix(FORWARD)
    return above

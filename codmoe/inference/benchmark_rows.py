"""Measures one model on one batch, row by row."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from codmoe.engine.ddp import every_expert_runs
from codmoe.inference import benchmark_cases as cases
from codmoe.inference.timing import (
    Call,
    allocated,
    captured,
    reserved,
    side_by_side,
    synchronise,
    warmed,
    working_memory,
)
from codmoe.models.moe import ModelLevelMoE

Say = Callable[[str], None]


class Inference:
    """One model on one batch: its routes and its parts.

    Args:
        model: In evaluation mode.
        images: Normalised, (N, 3, H, W).
        summary: As :func:`summarise` gives it for their size.
    """

    def __init__(self, model: ModelLevelMoE, images: Tensor, summary: Mapping[str, Any]):
        self.model, self.images, self.device = model, images, images.device
        self.weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
        self.flops: dict[str, int] = {}
        self.parameters: dict[str, int] = {}
        for row in summary["parts"]:
            name = f"backbone at {row['scale']:g}×" if "scale" in row else row["part"]
            self.flops[name], self.parameters[name] = row["flops"], row["parameters"]

    def cost(self, route: str) -> tuple[float, float]:
        """Operations and active parameters of one image, the mean over the batch."""
        names = self.model.expert_names
        if route == "auto":
            with torch.inference_mode():
                decision = self.model.router(self.images, self.model.backbone(self.images))
            chosen = [[names[i] for i in image] for image in decision.indices.tolist()]
        else:
            chosen = [list(names) if route == "all" else route.split(",")]
        fixed = ["backbone", "combiner", *(["router"] if route == "auto" else [])]
        flops = parameters = 0
        for image in chosen:
            scales = {s for n in image for s in self.model.experts[n].input_scales} - {1.0}
            run = [*fixed, *image, *(f"backbone at {s:g}×" for s in scales)]
            flops += sum(self.flops[part] for part in run)
            parameters += sum(self.parameters[part] for part in run)
        return flops / len(chosen), parameters / len(chosen)

    def rows(
        self,
        routes: Sequence[str],
        precisions: Sequence[str],
        executions: Sequence[str],
        parts: bool,
        *,
        repeats: int,
        warmup: int,
        say: Say,
    ) -> Iterator[dict[str, Any]]:
        """One row a route, precision and execution; with ``parts`` one a part and precision."""
        known: list[dict[str, Any]] = []
        calls: dict[int, Call] = {}

        def add(row: dict[str, Any], make: Callable[[], Call]) -> None:
            say(", ".join(str(v) for v in row.values()) + f": {tuple(self.images.shape)}")
            graphs = row["execution"] in ("cudagraph", "engine")
            before = reserved(self.device) if graphs else 0.0
            try:
                call = warmed(make(), self.device, warmup)
                # What a graph computes with stays its own between calls.
                held = reserved(self.device) - before if graphs else 0.0
                working = working_memory(call, self.device)
            except Exception as error:  # out of memory, not compilable, not capturable: one row's
                row["error"] = _reason(error)
                _clear(self.device)
            else:
                row["working_mb"] = working + max(held, 0.0)
                row["weights_mb"] = self.weights
                calls[len(known)] = call
            known.append(row)

        _forget_compiled()
        costs = {route: self.cost(route) for route in routes}
        for route, precision, execution in itertools.product(routes, precisions, executions):
            flops, parameters = costs[route]
            row = dict(what="inference", part="whole", route=route)
            row |= dict(precision=precision, execution=execution)
            add(row, lambda r=route, p=precision, e=execution: self._whole(r, p, e))
            row |= dict(gflops=flops / 1e9, active_parameters=parameters)
        for precision in precisions if parts else ():
            timed = cases.parts_of(self.model, self.images, precision)
            for part, call in timed.items():
                row = dict(what="inference", part=part, precision=precision, execution="eager")
                add(row, lambda c=call: c)
                row |= dict(gflops=self.flops[part] / 1e9, active_parameters=self.parameters[part])
        for index, sample in side_by_side(calls, self.device, repeats=repeats).items():
            known[index] |= sample.figures(len(self.images))
        yield from known

    def _whole(self, route: str, precision: str, execution: str) -> Call:
        if execution == "engine":
            return cases.through_engine(self.model, self.images, route, precision)
        run = cases.on_route(self.model, route)
        if execution == "cudagraph":
            if route == "auto":
                raise ValueError("the router's choice is read on the host; give a route by names")
            # A weight's copy in the cache of autocast would outlive the graph's memory.
            call = cases.in_precision(run, self.images, precision, cache=False)
            return captured(call, self.device)
        if execution == "compiled":
            run = torch.compile(run, dynamic=False)
        return cases.in_precision(run, self.images, precision)


def training_row(
    cfg: Config,
    model: ModelLevelMoE,
    batch: int,
    size: int,
    precision: str,
    execution: str,
    layout: str,
    *,
    repeats: int,
    warmup: int,
    say: Say,
) -> dict[str, Any]:
    """Row of the training step of a config on one batch; ``model`` is trained meanwhile."""
    row = dict(what="train", part="whole", route="auto", precision=precision, execution=execution)
    say(f"training, {precision}, {execution}: {batch} images of {size} × {size}")
    device = next(model.parameters()).device
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    benchmarked = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = _tries_algorithms(cfg)
    _forget_compiled()
    try:
        if execution in ("cudagraph", "engine"):
            raise ValueError("a training step is not captured")
        before = allocated(device)
        compiled = execution == "compiled"
        step = cases.training_step(
            cfg, model, batch=batch, size=size, precision=precision, layout=layout,
            compiled=compiled,
        )  # fmt: skip
        warmed(step, device, max(warmup, 1))
        held, working = allocated(device) - before, working_memory(step, device)
        if device.type == "cuda":  # elsewhere the optimiser's state is not counted
            row |= dict(working_mb=working + max(held, 0.0), weights_mb=weights / 2**20)
        sample = side_by_side({"step": step}, device, repeats=repeats)["step"]
        row |= sample.figures(batch)
    except Exception as error:
        row["error"] = _reason(error)
        _clear(device)
    finally:
        torch.backends.cudnn.benchmark = benchmarked
    row["active_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return row


def _tries_algorithms(cfg: Config) -> bool:
    """Whether training times the algorithms of each convolution first, as the engine settles it."""
    return bool((cfg.get("env_cfg") or {}).get("cudnn_benchmark")) and every_expert_runs(cfg.model)


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def _forget_compiled() -> None:
    """Room for as many compiled variants as are asked for: beyond a limit torch runs them eagerly,
    and says so only in a warning.
    """
    torch._dynamo.reset()
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        if hasattr(torch._dynamo.config, limit):
            setattr(torch._dynamo.config, limit, 1024)


def _clear(device: torch.device) -> None:
    if device.type == "cuda":
        synchronise(device)
        torch.cuda.empty_cache()

"""Latency, throughput, memory and operations of a model, route by route."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from rich.console import Console
from torch import Tensor

from codmoe.compiled.graphs import capture, reason_of, warm_up
from codmoe.compiled.prepared import CompiledMoE
from codmoe.compiled.speed import set_memory_format
from codmoe.console import TextTable
from codmoe.engine.checkpoints import load_parts
from codmoe.engine.config import load_config, require_sections
from codmoe.evaluation.cost import UNIT, summarise
from codmoe.evaluation.timing import (
    Call,
    reserved,
    side_by_side,
    synchronise,
    warmed,
    working_memory,
)
from codmoe.files import save_json
from codmoe.inference.summary import side_of
from codmoe.machine import check_device
from codmoe.messages import suggest
from codmoe.models.build import skip_pretrained
from codmoe.models.moe import ModelLevelMoE
from codmoe.registry import MODELS

EXECUTIONS = ("eager", "compiled", "cudagraph", "prepared")
PRECISIONS = dict(fp32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16)
Case = tuple[dict[str, Any], Callable[[], Call]]
"""What a row says of a call before it is measured, and what makes the call."""


def benchmark(
    config: str | Path,
    *,
    batch_sizes: Sequence[int] = (1, 8),
    sizes: Sequence[int] | None = None,
    routes: Sequence[str] = ("auto",),
    precisions: Sequence[str] = ("fp32",),
    executions: Sequence[str] = ("eager",),
    repeats: int = 30,
    warmup: int = 5,
    device: str | None = None,
    checkpoint: str | None = None,
    options: Mapping[str, Any] | None = None,
    json_file: str | Path | None = None,
) -> dict[str, Any]:
    """Measures every combination of what is given, prints a table and writes JSON.

    Args:
        config: Path, or name of a shipped config.
        batch_sizes: Images a call.
        sizes: Sides of the images in pixels; by default the one at which the config tests.
        routes: ``"auto"`` (the model's own router), ``"all"``, or names as ``"sinet,ujsc"``.
        precisions: Of ``"fp32"``, ``"fp16"``, ``"bf16"``; the last two are autocast.
        executions: Of :data:`EXECUTIONS`.
        repeats: Calls of each that count.
        warmup: Calls before them.
        device: Default: the first GPU if there is one.
        checkpoint: Weights. Without them the router chooses blindly.
        options: Overrides of the config.
        json_file: Where the result goes; a file that is there is kept under a dated name.

    Returns:
        ``rows``, flat, whose keys ``columns`` explains; ``notes``; what ran where.

    Raises:
        FileNotFoundError: No such config or checkpoint.
        ValueError: The config has faults, or something asked for is not known or does not fit.
    """
    cfg, where = load_config(config, options), device_of(device)
    require_sections(cfg, "model")
    executions = check(locals())
    model = build(cfg, checkpoint, where)
    check_routes(routes, model.expert_names)
    set_memory_format(model, "channels_last")
    shared = dict(experts=len(model.expert_names), top_k=model.router.top_k)
    rows: list[dict[str, Any]] = []
    for size in sizes or [side_of(model, cfg)]:
        summary = summarise(model, size)
        for batch in batch_sizes:
            images = images_of(batch, size, where)
            cases = route_cases(model, images, summary, routes, precisions, executions)
            found = measure(cases, images, repeats, warmup)
            rows += [{**shared, "size": size, "batch": batch, **row} for row in found]
    return tell(rows, COLUMNS, NOTES, config, checkpoint, where, json_file)


def build(cfg: Config, checkpoint: str | None, device: torch.device) -> ModelLevelMoE:
    """A config's model in evaluation mode, with a checkpoint's weights or with random ones."""
    cfg = deepcopy(cfg)
    skip_pretrained(cfg.model)
    model = MODELS.build(cfg.model)
    if checkpoint is not None:
        load_parts(model, checkpoint)
    return model.to(device).eval()


def device_of(name: str | None) -> torch.device:
    """The device named, or the first GPU if there is one.

    Raises:
        ValueError: There is no such device.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(name)
    return torch.device(name)


def check(asked: Mapping[str, Any]) -> list[str]:
    """The executions asked for, after a look at everything asked for.

    Raises:
        ValueError: Something is not known, or out of its range.
    """
    for key, names, valid in (
        ("precisions", asked["precisions"], PRECISIONS),
        ("executions", asked["executions"], EXECUTIONS),
    ):
        for name in names:
            if name not in valid:
                raise ValueError(f"{key}: {name!r} is unknown; {suggest(name, valid)}")
    for key in ("batch_sizes", "sizes"):
        if any(value < 1 for value in asked[key] or ()):
            raise ValueError(f"{key}={list(asked[key])} must be 1 or more")
    if asked["repeats"] < 1 or asked["warmup"] < 0:
        raise ValueError("repeats must be 1 or more, warmup 0 or more")
    return asked["executions"]


def check_routes(routes: Sequence[str], names: Sequence[str]) -> None:
    """Raises:
    ValueError: A route names an expert that is not there.
    """
    for route in routes:
        for name in () if route == "auto" else experts_of(route, names):
            if name not in names:
                raise ValueError(
                    f"route {route!r}: no expert {name!r}; {suggest(name, names)} "
                    f"(experts: {', '.join(names)}; or 'auto', 'all')"
                )


def experts_of(route: str, names: Sequence[str]) -> tuple[str, ...]:
    """Experts that a route other than ``"auto"`` names."""
    return tuple(names) if route == "all" else tuple(route.split(","))


def images_of(batch: int, size: int, device: torch.device, layout: str = "channels_last") -> Tensor:
    """Random normalised images, (batch, 3, size, size), the same in every run."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=generator).to(device)
    last = layout == "channels_last"
    return images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def in_precision(
    run: Callable[[Tensor], Any], images: Tensor, precision: str, *, cache: bool = True
) -> Call:
    """A call of ``run`` on ``images`` without gradients, under autocast for fp16 and bf16."""
    dtype = PRECISIONS[precision]
    half = dtype != torch.float32

    def call() -> Any:
        with (
            torch.inference_mode(),
            torch.autocast(images.device.type, dtype, enabled=half, cache_enabled=cache),
        ):
            return run(images)

    return call


def on_route(model: ModelLevelMoE, route: str) -> ModelLevelMoE:
    """The model by its own router (``"auto"``), or with the experts that a route names.

    A named route runs no router and never asks the host whom to run, so it can be captured whole.
    """
    return model if route == "auto" else model.on_route(experts_of(route, model.expert_names))


def call_of(
    model: ModelLevelMoE, images: Tensor, route: str, precision: str, execution: str
) -> Call:
    """One way to run a model on images.

    Raises:
        ValueError: A CUDA graph without a GPU, or of a route that the host has to read.
    """
    if execution == "prepared":
        # On a named route its router runs and is waited for all the same.
        last = images.is_contiguous(memory_format=torch.channels_last)
        layout = "channels_last" if last else "contiguous"
        settings: dict[str, Any] = dict(memory_format=layout, batches=(len(images),))
        prepared = CompiledMoE(model, dtype=precision, **settings)
        names = None if route == "auto" else experts_of(route, model.expert_names)
        return lambda: prepared(images, names=names)
    if execution == "cudagraph" and route == "auto":
        raise ValueError("the router's choice is read on the host; give a route by names")
    return executed(on_route(model, route), images, precision, execution)


def executed(run: Callable[[Tensor], Any], images: Tensor, precision: str, execution: str) -> Call:
    """A call of ``run`` on ``images``: ``"eager"``, ``"compiled"``, or whole in a ``"cudagraph"``.

    Raises:
        ValueError: A CUDA graph without a GPU.
    """
    if execution == "cudagraph":
        if not images.is_cuda:
            raise ValueError("CUDA graphs need a GPU")
        # A weight's copy in the cache of autocast would outlive the graph's memory.
        call = in_precision(run, images, precision, cache=False)
        stream, graph = torch.cuda.Stream(images.device), torch.cuda.CUDAGraph()
        warm_up(call, stream)
        capture(graph, call, stream)
        return graph.replay
    if execution == "compiled":
        run = torch.compile(run, dynamic=False)
    return in_precision(run, images, precision)


class Costs:
    """Operations and parameters of parts and routes, from what :func:`summarise` counted.

    Attributes:
        flops: Operations of each part on one image, ``"backbone at 0.5×"`` included.
        parameters: Parameters of each part.
    """

    def __init__(self, model: ModelLevelMoE, summary: Mapping[str, Any]):
        self.model = model
        self.flops: dict[str, int] = {}
        self.parameters: dict[str, int] = {}
        for row in summary["parts"]:
            name = f"backbone at {row['scale']:g}×" if "scale" in row else row["part"]
            self.flops[name], self.parameters[name] = row["flops"], row["parameters"]

    def part(self, name: str) -> dict[str, float]:
        """Columns of a part, on one image."""
        return dict(gflops=self.flops[name] / 1e9, active_parameters=self.parameters[name])

    def route(self, route: str, images: Tensor) -> dict[str, float]:
        """Columns of a route, of one image, the mean over the batch."""
        names = self.model.expert_names
        if route == "auto":
            with torch.inference_mode():
                decision = self.model.router(images, self.model.backbone(images))
            chosen = [[names[i] for i in image] for image in decision.indices.tolist()]
        else:
            chosen = [list(experts_of(route, names))]
        fixed = ["backbone", "combiner", *(["router"] if route == "auto" else [])]
        flops = parameters = 0
        for image in chosen:
            scales = {s for n in image for s in self.model.expert_parts[n].input_scales} - {1.0}
            run = [*fixed, *image, *(f"backbone at {s:g}×" for s in scales)]
            flops += sum(self.flops[part] for part in run)
            parameters += sum(self.parameters[part] for part in run)
        return dict(gflops=flops / len(chosen) / 1e9, active_parameters=parameters / len(chosen))


def route_cases(
    model: ModelLevelMoE,
    images: Tensor,
    summary: Mapping[str, Any],
    routes: Sequence[str],
    precisions: Sequence[str],
    executions: Sequence[str],
) -> Iterator[Case]:
    """A case for each route, precision and execution."""
    costs = Costs(model, summary)
    cost = {route: costs.route(route, images) for route in routes}
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    for route, precision, execution in itertools.product(routes, precisions, executions):
        row = dict(route=route, precision=precision, execution=execution, weights_mb=weights)
        yield row | cost[route], partial(call_of, model, images, route, precision, execution)


def measure(
    cases: Iterable[Case], images: Tensor, repeats: int, warmup: int
) -> list[dict[str, Any]]:
    """Rows of cases with their figures, all timed in turns; ``error`` says why there are none."""
    device = images.device
    rows: list[dict[str, Any]] = []
    calls: dict[int, Call] = {}
    forget_compiled()
    for row, make in cases:
        say(", ".join(v for v in row.values() if isinstance(v, str)) + f": {tuple(images.shape)}")
        graphs = row["execution"] in ("cudagraph", "prepared")
        before = reserved(device) if graphs else 0.0
        try:
            call = warmed(make(), device, warmup)
            # What a graph computes with stays its own between calls.
            held = reserved(device) - before if graphs else 0.0
            row = row | dict(working_mb=working_memory(call, device) + max(held, 0.0))
        except Exception as error:  # out of memory, not compilable, not capturable: one row's
            row = row | failure(error, device)
        else:
            calls[len(rows)] = call
        rows.append(row)
    for index, sample in side_by_side(calls, device, repeats=repeats).items():
        rows[index] |= sample.figures(len(images))
    return rows


def say(text: str) -> None:
    """Tells what is being measured."""
    Console().print(text, style="dim", highlight=False, markup=False)


def failure(error: Exception, device: torch.device) -> dict[str, str]:
    """The column of an error; what it left on the device is given back."""
    if device.type == "cuda":
        synchronise(device)
        torch.cuda.empty_cache()
    return dict(error=reason_of(error))


def forget_compiled() -> None:
    """Room for as many compiled variants as are asked for: beyond a limit torch runs them eagerly,
    and says so only in a warning.
    """
    torch._dynamo.reset()
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        if hasattr(torch._dynamo.config, limit):
            setattr(torch._dynamo.config, limit, 1024)


COLUMNS = dict(
    route="auto: the model's own router; all; or the experts named",
    experts="experts in the model",
    top_k="experts that the router chooses for an image",
    size="side of the images in pixels",
    batch="images a call",
    precision="fp32; fp16 or bf16 by autocast",
    execution="eager, compiled (torch.compile), cudagraph (captured, launched at once), "
    "prepared (CompiledMoE)",
    n="calls that count",
    median_ms="milliseconds from an idle device to the result",
    p10_ms="of these, what one of ten calls does not exceed",
    p90_ms="of these, what nine of ten calls do not exceed",
    images_per_second="when calls follow each other and only the last is waited for",
    working_mb="MiB beyond the weights at the peak of a call; with CUDA graphs what they keep "
    "between calls, too, and of the prepared model its copy of the weights",
    weights_mb="MiB of weights",
    gflops="operations of one image / 1e9, a multiply-add counting as two",
    active_parameters="parameters that one image touches",
    error="why there are no figures",
)
NOTES = (
    "From normalised images on the device to logits; loading and resizing are not in it.",
    "A route by names runs these experts on every image and no router; 'auto' runs the router, "
    "which without a checkpoint chooses blindly. Its operations are the mean over the batch.",
    "All rows of one batch are timed in turns, in random order.",
)
_SHOWN = dict(
    median_ms=("median (ms)", ".2f"),
    p90_ms=("p90 (ms)", ".2f"),
    images_per_second=("images/s", ".1f"),
    working_mb=("working MiB", ",.0f"),
    gflops=("GFLOPs an image", ".1f"),
)
_MEASURED = (*_SHOWN, "n", "p10_ms", "weights_mb", "active_parameters", "error")


def tell(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    notes: Sequence[str],
    config: str | Path,
    checkpoint: str | None,
    device: torch.device,
    json_file: str | Path | None,
) -> dict[str, Any]:
    """Prints rows as a table and writes them, with what ran where, as JSON; returns that."""
    rows = [{key: row.get(key) for key in columns} for row in rows]
    result = dict(
        config=str(config),
        checkpoint=checkpoint,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        threads=torch.get_num_threads(),
        versions=dict(torch=str(torch.__version__), python=platform.python_version()),
        tf32=dict(
            convolutions=torch.backends.cudnn.allow_tf32,
            matrix_products=torch.get_float32_matmul_precision() != "highest",
        ),
        unit=UNIT,
        columns=dict(columns),
        notes=list(notes),
        rows=rows,
    )
    table_of(result).print()
    if json_file is not None:
        print(f"wrote {save_json(json_file, result)}")
    return result


def table_of(result: Mapping[str, Any]) -> TextTable:
    """The rows of a benchmark for the terminal; what is the same in all stands in the title."""
    rows = result["rows"]
    naming = [key for key in result["columns"] if key not in _MEASURED]
    varied = [key for key in naming if len({row[key] for row in rows}) > 1 or key == "route"]
    same = [f"{key} {rows[0][key]}" for key in naming if rows and key not in varied]
    errors = {row["error"]: row for row in reversed(rows) if row["error"]}
    failed = [
        f"no figures for {', '.join(str(row[key]) for key in varied)}: {error}"
        for error, row in errors.items()
    ]
    heads = [*varied, *(title for title, _ in _SHOWN.values()), "active (M)", "n"]
    shown = []
    for row in rows:
        named = ["" if row[key] is None else str(row[key]) for key in varied]
        figures = [
            "-" if row[key] is None else format(row[key], spec) for key, (_, spec) in _SHOWN.items()
        ]
        active = row["active_parameters"]
        shown.append([*named, *figures, f"{active / 1e6:.2f}" if active else "-", str(row["n"])])
    title = f"{result['device']}, {', '.join(same)}; {result['unit']}"
    return TextTable(heads, shown, range(len(varied)), title, [*failed, *result["notes"]])

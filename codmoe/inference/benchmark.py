"""Latency, throughput, memory and operations of a model, whole and part by part."""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from rich.console import Console
from torch import Tensor

from codmoe.compiled.layout import FORMATS, compile_parts, set_memory_format
from codmoe.compiled.prepared import CompiledMoE
from codmoe.console import TextTable
from codmoe.engine import runner as message_hub
from codmoe.engine.checkpoints import load_parts
from codmoe.engine.config import load_config
from codmoe.engine.ddp import every_expert_runs
from codmoe.engine.handover import skip_pretrained
from codmoe.engine.optim import settle_fused
from codmoe.files import replacing, save_json
from codmoe.inference.summary import UNIT, summarise
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
from codmoe.machine import check_device
from codmoe.messages import suggest
from codmoe.models.build import DEFAULT_EXPERTS
from codmoe.models.dispatch import PyramidBank, run_experts
from codmoe.models.moe import ModelLevelMoE
from codmoe.models.routers import FixedRouter
from codmoe.registry import MODELS

EXECUTIONS = ("eager", "compiled", "cudagraph", "engine")


def benchmark(
    config: str | Path,
    *,
    batch_sizes: Sequence[int] = (1, 8),
    sizes: Sequence[int] = (448,),
    experts: Sequence[int | None] = (None,),
    top_k: Sequence[int | None] = (None,),
    routes: Sequence[str] = ("auto",),
    precisions: Sequence[str] = ("fp32",),
    executions: Sequence[str] = ("eager",),
    layouts: Sequence[str] = ("channels_last",),
    parts: bool = True,
    train: bool = False,
    repeats: int = 30,
    warmup: int = 5,
    device: str | None = None,
    checkpoint: str | None = None,
    options: Mapping[str, Any] | None = None,
    json_file: str | Path | None = None,
    plot: str | Path | None = None,
) -> dict[str, Any]:
    """Measures every combination of what is given, prints a table and writes JSON and a plot.

    Args:
        config: Path, or name of a shipped config.
        batch_sizes: Images a call.
        sizes: Sides of the images in pixels.
        experts: Numbers of experts, copies included; None takes the config's own.
        top_k: Experts an image; None takes the config's own.
        routes: ``"auto"`` (the model's own router), ``"all"``, or names as ``"sinet,ujsc"``.
        precisions: Of ``"fp32"``, ``"fp16"``, ``"bf16"``; the last two are autocast.
        executions: Of :data:`EXECUTIONS`.
        layouts: Memory formats, ``"channels_last"`` or ``"contiguous"``.
        parts: Whether each part is timed on its own, too (uncompiled).
        train: Also time training steps, with the losses and the optimiser of the config.
        repeats: Calls of each that count.
        warmup: Calls before them.
        device: Default: the first GPU if there is one.
        checkpoint: Weights. Without them the router chooses blindly.
        options: Overrides of the config.
        json_file: Where the result goes; a file that is there is kept under a dated name.
        plot: Picture of latency and memory against everything that was given several values.

    Returns:
        ``rows``, flat, whose keys ``columns`` explains; ``notes``; what ran where.

    Raises:
        FileNotFoundError: No such config or checkpoint.
        ValueError: The config has faults, or something asked for is not known or does not fit.
    """
    cfg = load_config(config, options)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    check_device(str(device))
    _check(cfg, locals())

    def say(text: str) -> None:
        Console().print(f"  {text}", style="dim", soft_wrap=True)

    rows: list[dict[str, Any]] = []
    measure = dict(repeats=repeats, warmup=warmup, say=say)
    for count, k, layout in itertools.product(experts, top_k, layouts):
        model = build(cfg, experts=count, top_k=k, checkpoint=checkpoint, device=device)
        set_memory_format(model, layout)
        shared = dict(experts=len(model.expert_names), top_k=model.router.top_k, layout=layout)
        for size in sizes:
            summary = summarise(model, size)
            for batch in batch_sizes:
                here = dict(shared, size=size, batch=batch)
                group = Inference(model, images_of(batch, size, device, layout), summary)
                for row in group.rows(routes, precisions, executions, parts, **measure):
                    rows.append({**here, **row})
        if not train:
            continue
        for size, batch, name, run in itertools.product(sizes, batch_sizes, precisions, executions):
            del model
            model = build(cfg, experts=count, top_k=k, checkpoint=checkpoint, device=device)
            row = training_row(cfg, model, batch, size, name, run, layout, **measure)
            rows.append({**shared, "size": size, "batch": batch, **row})
    rows = [{key: row.get(key) for key in COLUMNS} for row in rows]
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
        columns=COLUMNS,
        notes=list(NOTES),
        rows=rows,
    )
    benchmark_table(result).print()
    if plot is not None:
        print(f"wrote {save_plot(rows, plot)}")
    if json_file is not None:
        print(f"wrote {save_json(json_file, result)}")
    return result


def _check(cfg: Config, asked: Mapping[str, Any]) -> None:
    for key, valid in dict(precisions=PRECISIONS, executions=EXECUTIONS, layouts=FORMATS).items():
        for name in asked[key]:
            if name not in valid:
                raise ValueError(f"{key}: {name!r} is unknown; {suggest(name, valid)}")
    for key in ("batch_sizes", "sizes", "experts", "top_k"):
        if any(value is not None and value < 1 for value in asked[key]):
            raise ValueError(f"{key}={list(asked[key])} must be 1 or more")
    if asked["repeats"] < 1 or asked["warmup"] < 0:
        raise ValueError("repeats must be 1 or more, warmup 0 or more")
    for count in asked["experts"]:
        names = list(expert_names(cfg, count))
        check_routes(asked["routes"], names)
        for k in asked["top_k"]:
            if k is not None and k > len(names):
                raise ValueError(f"top_k={k} is more than the {len(names)} experts; leave it out")


PRECISIONS = dict(fp32=None, fp16=torch.float16, bf16=torch.bfloat16)


def expert_names(cfg: Mapping[str, Any], count: int | None = None) -> dict[str, dict]:
    """Configs of ``count`` experts by name: the config's own in alphabetical order, then copies of
    them, ``sinet_2`` and so on. None takes the config's own.
    """
    section = cfg["model"]
    own = section.get("experts") or dict(
        list(DEFAULT_EXPERTS.items())[: section.get("num_experts") or 4]
    )
    own = {name: own[name] for name in sorted(own) if own[name] is not None}
    names = list(own)
    count = len(own) if count is None else count
    chosen = {}
    for i in range(count):
        name, copies = names[i % len(names)], i // len(names)
        chosen[f"{name}_{copies + 1}" if copies else name] = own[name]
    return chosen


def build(
    cfg: Config,
    *,
    experts: int | None = None,
    top_k: int | None = None,
    checkpoint: str | None = None,
    device: torch.device,
) -> ModelLevelMoE:
    """A model of a config, with another number of experts or choices, in evaluation mode."""
    cfg = deepcopy(cfg)
    skip_pretrained(cfg.model)
    if experts is not None:
        cfg.model.pop("num_experts", None)
        chosen = expert_names(cfg, experts)
        cfg.model.experts = {**dict.fromkeys(cfg.model.get("experts") or {}), **chosen}
    if top_k is not None:
        cfg.model.top_k = top_k
    model = MODELS.build(cfg.model)
    if checkpoint is not None:
        load_parts(model, checkpoint)
    return model.to(device).eval()


def check_routes(routes: Sequence[str], names: Sequence[str]) -> None:
    """Raises:
    ValueError: A route names an expert that is not there.
    """
    for route in routes:
        for name in () if route in ("auto", "all") else route.split(","):
            if name not in names:
                raise ValueError(
                    f"route {route!r}: no expert {name!r}; {suggest(name, names)} "
                    f"(experts: {', '.join(names)}; or 'auto', 'all')"
                )


def on_route(model: ModelLevelMoE, route: str) -> Callable[[Tensor], Tensor]:
    """Images → logits by the model's own router (``"auto"``), or by the experts that a route names.

    A named route runs no router but :class:`FixedRouter` and never asks the host whom to run, so it
    can be captured whole.
    """
    if route == "auto":
        return model
    names = model.expert_names if route == "all" else tuple(route.split(","))
    channels, device = model.router.in_channels, next(model.parameters()).device
    router = FixedRouter(
        in_channels=channels, expert_names=model.expert_names, weights=dict.fromkeys(names, 1.0)
    ).to(device)

    def run(images: Tensor) -> Tensor:
        pyramid = model.backbone(images)
        decision = router(images, pyramid)
        bank = PyramidBank(images, pyramid, model.backbone, model.backbone.size_divisor)
        outputs = run_experts(model.experts, bank, dict.fromkeys(names))
        return model.combiner(outputs, decision, tuple(images.shape[-2:]))

    return run


def images_of(batch: int, size: int, device: torch.device, layout: str) -> Tensor:
    """Random normalised images, (batch, 3, size, size), the same in every run."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=generator).to(device)
    last = layout == "channels_last"
    return images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@contextmanager
def _precision(device: torch.device, precision: str, cache: bool = True) -> Iterator[None]:
    dtype = PRECISIONS[precision]
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=cache),
    ):
        yield


def in_precision(
    run: Callable[[Tensor], Any], images: Tensor, precision: str, *, cache: bool = True
) -> Call:
    """A call of ``run`` on ``images`` without gradients, under autocast for fp16 and bf16."""

    def call():
        with _precision(images.device, precision, cache):
            return run(images)

    return call


def through_engine(model: ModelLevelMoE, images: Tensor, route: str, precision: str) -> Call:
    """A call of a :class:`CompiledMoE`. On a named route its router runs and is waited for all the
    same; its choice is replaced.
    """
    last = images.is_contiguous(memory_format=torch.channels_last)
    layout = "channels_last" if last else "contiguous"
    engine = CompiledMoE(model, dtype=precision, memory_format=layout, batches=(len(images),))
    names = dict(auto=None, all=model.expert_names).get(route, route.split(","))
    return lambda: engine(images, names=names)


def parts_of(model: ModelLevelMoE, images: Tensor, precision: str) -> dict[str, Call]:
    """A call of each part on the whole batch: backbone, further scales, router, experts, combiner.

    What a part reads is computed before.
    """
    backbone, size = model.backbone, tuple(images.shape[-2:])

    def fresh() -> PyramidBank:
        return PyramidBank(images, pyramid, backbone, backbone.size_divisor)

    with _precision(images.device, precision):
        pyramid = backbone(images)
        decision = model.router(images, pyramid)
        bank = fresh()
        levels = {n: [bank.get(s, None) for s in e.input_scales] for n, e in model.experts.items()}
        outputs = run_experts(model.experts, bank, dict.fromkeys(model.experts))
    scales = sorted({s for e in model.experts.values() for s in e.input_scales} - {1.0})
    runs: dict[str, Callable[[Tensor], Any]] = dict(backbone=backbone)
    runs |= {f"backbone at {s:g}×": lambda x, s=s: fresh().get(s, None) for s in scales}
    runs["router"] = lambda x: model.router(x, pyramid)
    for name, expert in model.experts.items():
        runs[name] = lambda x, e=expert, n=name: e(x, levels[n])
    runs["combiner"] = lambda x: model.combiner(outputs, decision, size)
    return {name: in_precision(run, images, precision) for name, run in runs.items()}


def training_step(
    cfg: Config,
    model: ModelLevelMoE,
    *,
    batch: int,
    size: int,
    precision: str,
    layout: str,
    compiled: bool = False,
) -> Call:
    """A call that is one training step of the config: its losses, backward pass, clipping, update.

    Raises:
        ValueError: fp16 or bf16 without a GPU.
    """
    device, cfg = next(model.parameters()).device, deepcopy(cfg)
    if precision != "fp32" and device.type != "cuda":
        raise ValueError(f"training in {precision} needs a GPU")
    message_hub.install("benchmark")  # the norm of the gradient is told to the latest hub
    set_memory_format(model, layout)
    if compiled:
        compile_parts(model, dict(backbone=True, experts=True))
    wrapper = cfg.optim_wrapper
    amp = dict(fp16=("float16", "dynamic"), bf16=("bfloat16", 1.0)).get(precision)
    wrapper.type = "CODAmpOptimWrapper" if amp else "CODOptimWrapper"
    if amp:
        wrapper.update(dtype=amp[0], loss_scale=amp[1])
    if device.type == "cuda":
        settle_fused(cfg)
    optimiser = build_optim_wrapper(model.train(), wrapper)
    if amp:  # as TrainingProgressHook does
        model.run_state.scale_loss = optimiser.loss_scaler.scale
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, size, size), generator=generator, dtype=torch.uint8)
    coarse = torch.randn(batch, 1, 8, 8, generator=generator)
    masks = (F.interpolate(coarse, (size, size), mode="bilinear") > 0.3).to(torch.uint8)
    data = dict(inputs=images.to(device), targets=masks.to(device))
    return lambda: model.train_step(data, optimiser)


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
            timed = parts_of(self.model, self.images, precision)
            for part, call in timed.items():
                row = dict(what="inference", part=part, precision=precision, execution="eager")
                add(row, lambda c=call: c)
                row |= dict(gflops=self.flops[part] / 1e9, active_parameters=self.parameters[part])
        for index, sample in side_by_side(calls, self.device, repeats=repeats).items():
            known[index] |= sample.figures(len(self.images))
        yield from known

    def _whole(self, route: str, precision: str, execution: str) -> Call:
        if execution == "engine":
            return through_engine(self.model, self.images, route, precision)
        run = on_route(self.model, route)
        if execution == "cudagraph":
            if route == "auto":
                raise ValueError("the router's choice is read on the host; give a route by names")
            # A weight's copy in the cache of autocast would outlive the graph's memory.
            call = in_precision(run, self.images, precision, cache=False)
            return captured(call, self.device)
        if execution == "compiled":
            run = torch.compile(run, dynamic=False)
        return in_precision(run, self.images, precision)


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
        step = training_step(
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


COLUMNS = dict(
    what="inference, or train for one training step",
    part="whole, or one part on the whole batch",
    route="auto: the model's own router; all; or the experts named. Empty for parts",
    experts="experts in the model",
    top_k="experts that the router chooses for an image",
    size="side of the images in pixels",
    batch="images a call",
    layout="memory format of images and weights",
    precision="fp32; fp16 or bf16 by autocast",
    execution="eager, compiled (torch.compile), cudagraph (captured, launched at once), "
    "engine (CompiledMoE)",
    n="calls that count",
    median_ms="milliseconds from an idle device to the result",
    p90_ms="of these, what nine of ten calls do not exceed",
    images_per_second="when calls follow each other and only the last is waited for",
    working_mb="MiB beyond the weights at the peak of a call; with CUDA graphs what they keep "
    "between calls, too, and of the engine its copy of the weights; training on GPUs alone",
    weights_mb="MiB of weights",
    gflops="operations of one image / 1e9, a multiply-add counting as two; of inference",
    active_parameters="parameters that one image touches; of training those that learn",
    error="why there are no figures",
)
NOTES = (
    "From normalised images on the device to logits; loading and resizing are not in it.",
    "A route by names runs these experts on every image and no router; 'auto' runs the router, "
    "which without a checkpoint chooses blindly. Its operations are the mean over the batch.",
    "Parts of a route add up to its operations exactly; their times do not have to: each is timed "
    "from an idle device.",
    "Algorithms of convolutions are tried out first (cudnn_benchmark) in training as the config "
    "says, and not in inference.",
    "All rows of one batch and memory format are timed in turns, in random order; training steps "
    "one after another.",
)
AXES = dict(
    batch="images a batch",
    size="side of the images (pixels)",
    experts="experts in the model",
    top_k="experts an image",
)
_SHOWN = dict(
    median_ms=("median (ms)", ".2f"),
    p90_ms=("p90 (ms)", ".2f"),
    images_per_second=("images/s", ".1f"),
    working_mb=("working MiB", ",.0f"),
    gflops=("GFLOPs an image", ".1f"),
)
_NAMING = ("experts", "top_k", "size", "batch", "layout", "precision", "execution")


def benchmark_table(result: Mapping[str, Any]) -> TextTable:
    """The rows of a benchmark for the terminal; what is the same in all stands in the title."""
    rows = result["rows"]
    varied = [key for key in _NAMING if len({row[key] for row in rows}) > 1]
    same = [f"{key} {rows[0][key]}" for key in _NAMING if rows and key not in varied]
    errors = {row["error"]: row for row in reversed(rows) if row["error"]}
    failed = [
        f"no figures for {row['what']} {row['route'] or row['part']}, {row['precision']}, "
        f"{row['execution']}: {error}"
        for error, row in errors.items()
    ]
    names = ["what", "route or part", *varied]
    heads = [*names, *(title for title, _ in _SHOWN.values()), "active (M)", "n"]
    shown = []
    for row in rows:
        name = row["route"] if row["part"] == "whole" else f"  {row['part']}"
        cells = [row["what"], name, *(str(row[key]) for key in varied)]
        figures = [
            "-" if row[key] is None else format(row[key], spec) for key, (_, spec) in _SHOWN.items()
        ]
        active = row["active_parameters"]
        millions = "-" if not active else f"{active / 1e6:.2f}"
        shown.append([*cells, *figures, millions, str(row["n"])])
    title = f"{result['device']}, {', '.join(same)}; {result['unit']}"
    notes = [*failed, *result["notes"]]
    return TextTable(heads, shown, range(len(names)), title, notes)


def save_plot(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> Path:
    """Latency, and memory where it is known, against everything that has several values.

    A line for each combination of the rest. A file that is already there is kept.

    Raises:
        ValueError: Nothing has several values.
    """
    whole = [row for row in rows if row["part"] == "whole" and row["median_ms"] is not None]
    axes = [axis for axis in AXES if len({row[axis] for row in whole}) > 1]
    if not axes:
        raise ValueError(
            "plot: nothing has several values that ran; give several --batch-sizes, --sizes, "
            "--experts or --top-k"
        )
    labels = dict(median_ms="median latency (ms)", working_mb="working memory (MiB)")
    shown = [
        (what, key)
        for what in ("inference", "train")
        for key in labels
        if any(row["what"] == what and row[key] is not None for row in whole)
    ]
    figure = Figure(figsize=(5.5 * len(axes), 3.6 * len(shown)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shown), len(axes), squeeze=False)
    for line, (what, key) in zip(panels, shown, strict=True):
        of_kind = [row for row in whole if row["what"] == what and row[key] is not None]
        for panel, axis in zip(line, axes, strict=True):
            _draw(panel, of_kind, axis, key)
            panel.set(xlabel=AXES[axis], ylabel=f"{what}: {labels[key]}")
            panel.set_ylim(bottom=0)
            panel.grid(linewidth=0.4, color="#dddddd")
    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary)
    return path


def _draw(panel, rows: Sequence[Mapping[str, Any]], axis: str, value: str) -> None:
    others = [key for key in ("route", *_NAMING) if key != axis]
    varied = [key for key in others if len({row[key] for row in rows}) > 1]
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        named = (f"{key} {row[key]}" if isinstance(row[key], int) else row[key] for key in varied)
        lines.setdefault(", ".join(named), []).append((row[axis], row[value]))
    for index, (name, points) in enumerate(lines.items()):
        xs, ys = zip(*sorted(points), strict=True)
        style = dict(color=f"C{index % 10}", linestyle=("-", "--", ":")[index // 10 % 3])
        panel.plot(xs, ys, marker="o", markersize=3, linewidth=1, label=name, **style)
    panel.set_xticks(sorted({row[axis] for row in rows}))
    if varied:
        panel.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)

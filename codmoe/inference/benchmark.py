"""Latency, throughput, memory and operations of a model, whole and part by part."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from rich.console import Console

from codmoe.engine.config import load_config
from codmoe.engine.speed import FORMATS, set_memory_format
from codmoe.evaluation.tables import save_json
from codmoe.inference import benchmark_cases as cases
from codmoe.inference.benchmark_rows import Inference, training_row
from codmoe.inference.benchmark_tables import COLUMNS, NOTES, save_plot, table_of
from codmoe.inference.summary import UNIT, summarise
from codmoe.machine import check_device
from codmoe.registry import suggest

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
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a file has no edge

    def say(text: str) -> None:
        console.print(f"  {text}", style="dim")

    rows: list[dict[str, Any]] = []
    measure = dict(repeats=repeats, warmup=warmup, say=say)
    for count, k, layout in itertools.product(experts, top_k, layouts):
        model = cases.build(cfg, experts=count, top_k=k, checkpoint=checkpoint, device=device)
        set_memory_format(model, layout)
        shared = dict(experts=len(model.expert_names), top_k=model.router.top_k, layout=layout)
        for size in sizes:
            summary = summarise(model, size)
            for batch in batch_sizes:
                here = dict(shared, size=size, batch=batch)
                group = Inference(model, cases.images_of(batch, size, device, layout), summary)
                for row in group.rows(routes, precisions, executions, parts, **measure):
                    rows.append({**here, **row})
        if not train:
            continue
        for size, batch, name, run in itertools.product(sizes, batch_sizes, precisions, executions):
            del model
            model = cases.build(cfg, experts=count, top_k=k, checkpoint=checkpoint, device=device)
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
    console.print(table_of(result))
    if plot is not None:
        console.print(f"wrote {save_plot(rows, plot)}")
    if json_file is not None:
        console.print(f"wrote {save_json(json_file, result)}")
    return result


def _check(cfg: Config, asked: Mapping[str, Any]) -> None:
    for key, valid in dict(
        precisions=cases.PRECISIONS, executions=EXECUTIONS, layouts=FORMATS
    ).items():
        for name in asked[key]:
            if name not in valid:
                raise ValueError(f"{key}: {name!r} is unknown; {suggest(name, valid)}")
    for key in ("batch_sizes", "sizes", "experts", "top_k"):
        if any(value is not None and value < 1 for value in asked[key]):
            raise ValueError(f"{key}={list(asked[key])} must be 1 or more")
    if asked["repeats"] < 1 or asked["warmup"] < 0:
        raise ValueError("repeats must be 1 or more, warmup 0 or more")
    for count in asked["experts"]:
        names = list(cases.expert_names(cfg, count))
        cases.check_routes(asked["routes"], names)
        for k in asked["top_k"]:
            if k is not None and k > len(names):
                raise ValueError(f"top_k={k} is more than the {len(names)} experts; leave it out")

"""Measures a model part by part, in training steps, and as it grows: python -m benchmarks.model
ensemble/stage3 --experts 4 8 16 --top-k 1 2 4 --train --plot growth.png --json growth.json"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from torch import Tensor

from codmoe import cli
from codmoe.commands.benchmark_command import SHARED, call
from codmoe.commands.options import option
from codmoe.compiled.speed import FORMATS, compile_parts, set_memory_format
from codmoe.engine import runner as message_hub
from codmoe.engine.config import load_config
from codmoe.engine.ddp import every_expert_runs
from codmoe.engine.optim import settle_fused
from codmoe.evaluation.cost import summarise
from codmoe.evaluation.timing import (
    Call,
    allocated,
    side_by_side,
    warmed,
    working_memory,
)
from codmoe.files import replacing
from codmoe.inference.benchmark import (
    COLUMNS,
    NOTES,
    Case,
    Costs,
    build,
    check,
    check_routes,
    device_of,
    failure,
    forget_compiled,
    images_of,
    in_precision,
    measure,
    route_cases,
    say,
    tell,
)
from codmoe.inference.summary import side_of
from codmoe.messages import suggest
from codmoe.models.build import DEFAULT_EXPERTS
from codmoe.models.dispatch import PyramidBank, run_experts
from codmoe.models.moe import ModelLevelMoE

OUR_COLUMNS = dict(
    what="inference, or train for one training step",
    part="whole, or one part on the whole batch; a part has no route",
    layout="memory format of images and weights",
    **COLUMNS,
)
OUR_NOTES = (
    *NOTES,
    "Parts of a route add up to its operations exactly; their times do not have to: each is timed "
    "from an idle device.",
    "Of training, memory is measured on GPUs alone, and operations not at all; active parameters "
    "are those that learn; steps are timed one after another.",
    "Algorithms of convolutions are tried out first (cudnn_benchmark) in training as the config "
    "says, and not in inference.",
)
AXES = dict(
    batch="images a batch",
    size="side of the images (pixels)",
    experts="experts in the model",
    top_k="experts an image",
)


def benchmark(
    config: str | Path,
    *,
    batch_sizes: Sequence[int] = (1, 8),
    sizes: Sequence[int] | None = None,
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
    """Measures as :func:`codmoe.inference.benchmark.benchmark` does, and more.

    Args:
        config, batch_sizes, sizes, routes, precisions, executions: As there.
        experts: Numbers of experts, copies included; None takes the config's own.
        top_k: Experts an image; None takes the config's own.
        layouts: Memory formats, ``"channels_last"`` or ``"contiguous"``.
        parts: Whether each part is timed on its own, too (uncompiled).
        train: Also time training steps, with the losses and the optimiser of the config.
        repeats, warmup, device, checkpoint, options, json_file: As there.
        plot: Picture of latency and memory against everything that was given several values.

    Raises:
        FileNotFoundError: No such config or checkpoint.
        ValueError: The config has faults, or something asked for is not known or does not fit.
    """
    cfg, where = load_config(config, options), device_of(device)
    executions = check(locals())
    _check_growth(cfg, experts, top_k, routes, layouts)
    rows: list[dict[str, Any]] = []
    for count, k, layout in itertools.product(experts, top_k, layouts):
        grown_cfg = grown(cfg, count, k)
        model = build(grown_cfg, checkpoint, where)
        set_memory_format(model, layout)
        shared = dict(experts=len(model.expert_names), top_k=model.router.top_k, layout=layout)
        sides = sizes or [side_of(model, cfg)]
        for size in sides:
            summary = summarise(model, size)
            for batch in batch_sizes:
                images = images_of(batch, size, where, layout)
                cases = list(route_cases(model, images, summary, routes, precisions, executions))
                cases = [({"part": "whole", **row}, make) for row, make in cases]
                for precision in precisions if parts else ():
                    cases += part_cases(model, images, summary, precision)
                here = dict(shared, what="inference", size=size, batch=batch)
                rows += [here | row for row in measure(cases, images, repeats, warmup)]
        if not train:
            continue
        for size, batch, name, run in itertools.product(sides, batch_sizes, precisions, executions):
            del model
            model = build(grown_cfg, checkpoint, where)
            case = dict(batch=batch, size=size, precision=name, layout=layout)
            rows.append(shared | training_row(cfg, model, case, run, repeats, warmup))
    if plot is not None:
        print(f"wrote {save_plot(rows, plot)}")
    return tell(rows, OUR_COLUMNS, OUR_NOTES, config, checkpoint, where, json_file)


def _check_growth(
    cfg: Config,
    experts: Sequence[int | None],
    top_k: Sequence[int | None],
    routes: Sequence[str],
    layouts: Sequence[str],
) -> None:
    for name in layouts:
        if name not in FORMATS:
            raise ValueError(f"layouts: {name!r} is unknown; {suggest(name, FORMATS)}")
    for key, values in dict(experts=experts, top_k=top_k).items():
        if any(value is not None and value < 1 for value in values):
            raise ValueError(f"{key}={list(values)} must be 1 or more")
    for count in experts:
        names = list(expert_names(cfg, count))
        check_routes(routes, names)
        for k in top_k:
            if k is not None and k > len(names):
                raise ValueError(f"top_k={k} is more than the {len(names)} experts; leave it out")


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


def grown(cfg: Config, experts: int | None, top_k: int | None) -> Config:
    """A config with another number of experts or choices."""
    cfg = deepcopy(cfg)
    if experts is not None:
        cfg.model.pop("num_experts", None)
        chosen = expert_names(cfg, experts)
        cfg.model.experts = {**dict.fromkeys(cfg.model.get("experts") or {}), **chosen}
    if top_k is not None:
        cfg.model.top_k = top_k
    return cfg


def part_cases(
    model: ModelLevelMoE, images: Tensor, summary: Mapping[str, Any], precision: str
) -> Iterator[Case]:
    """A case for each part on the whole batch: backbone, further scales, router, experts, combiner.

    What a part reads is computed before.
    """
    backbone, size, costs = model.backbone, tuple(images.shape[-2:]), Costs(model, summary)

    def fresh() -> PyramidBank:
        return PyramidBank(images, model.passes(), pyramid=pyramid)

    def inputs(images: Tensor):
        pyramid = backbone(images)
        bank = PyramidBank(images, model.passes(), pyramid=pyramid)
        levels = {n: bank.pyramids(e, None) for n, e in model.experts.items()}
        outputs = run_experts(model.experts, bank, dict.fromkeys(model.experts))
        return pyramid, model.router(images, pyramid), levels, outputs

    pyramid, decision, levels, outputs = in_precision(inputs, images, precision)()
    scales = sorted({s for e in model.experts.values() for s in e.input_scales} - {1.0})
    runs: dict[str, Callable[[Tensor], Any]] = dict(backbone=backbone)
    runs |= {f"backbone at {s:g}×": lambda x, s=s: fresh().get(s, None) for s in scales}
    runs["router"] = lambda x: model.router(x, pyramid)
    for name, expert in model.experts.items():
        runs[name] = lambda x, e=expert, n=name: e(x, levels[n])
    runs["combiner"] = lambda x: model.combiner(outputs, decision, size)
    for part, run in runs.items():
        row = dict(part=part, precision=precision, execution="eager", **costs.part(part))
        yield row, partial(in_precision, run, images, precision)


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
    MMLogger.get_current_instance().setLevel(logging.WARNING)  # or a line for each parameter
    set_memory_format(model, layout)
    if compiled:
        # Not captured: no hook tells torch here where a step begins.
        compile_parts(model, dict(backbone=True, experts=True, mode=None))
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


def training_row(
    cfg: Config,
    model: ModelLevelMoE,
    case: Mapping[str, Any],
    execution: str,
    repeats: int,
    warmup: int,
) -> dict[str, Any]:
    """Row of the training step of a config on one batch; ``model`` is trained meanwhile.

    Args:
        cfg: The config.
        model: Its model.
        case: ``batch``, ``size``, ``precision`` and ``layout``.
        execution: ``"eager"`` or ``"compiled"``.
        repeats: Steps that count.
        warmup: Steps before them.
    """
    row = dict(case, what="train", part="whole", route="auto", execution=execution)
    say(f"training, {case['precision']}, {execution}: {case['batch']} images of {case['size']} px")
    device = next(model.parameters()).device
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    benchmarked = torch.backends.cudnn.benchmark
    # Whether algorithms of convolutions are timed first is settled as for a training.
    tries = bool((cfg.get("env_cfg") or {}).get("cudnn_benchmark")) and every_expert_runs(cfg.model)
    torch.backends.cudnn.benchmark = tries
    forget_compiled()
    try:
        if execution in ("cudagraph", "prepared"):
            raise ValueError("a training step is not captured")
        before = allocated(device)
        step = training_step(cfg, model, compiled=execution == "compiled", **case)
        warmed(step, device, max(warmup, 1))
        held, working = allocated(device) - before, working_memory(step, device)
        if device.type == "cuda":  # elsewhere the optimiser's state is not counted
            row |= dict(working_mb=working + max(held, 0.0), weights_mb=weights / 2**20)
        sample = side_by_side({"step": step}, device, repeats=repeats)["step"]
        row |= sample.figures(case["batch"])
    except Exception as error:
        row |= failure(error, device)
    finally:
        torch.backends.cudnn.benchmark = benchmarked
    row["active_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return row


def save_plot(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> Path:
    """Latency, and memory where it is known, against everything that has several values.

    A line for each combination of the rest. A file that is already there is kept.

    Raises:
        ValueError: Nothing has several values.
    """
    whole = [row for row in rows if row["part"] == "whole" and row.get("median_ms") is not None]
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
        if any(row["what"] == what and row.get(key) is not None for row in whole)
    ]
    figure = Figure(figsize=(5.5 * len(axes), 3.6 * len(shown)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shown), len(axes), squeeze=False)
    for line, (what, key) in zip(panels, shown, strict=True):
        of_kind = [row for row in whole if row["what"] == what and row.get(key) is not None]
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
    naming = ("route", "experts", "top_k", "size", "batch", "layout", "precision", "execution")
    others = [key for key in naming if key != axis]
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


MORE = (
    option("--experts", type=int, nargs="+", default=[None], help="numbers of experts"),
    option("--top-k", type=int, nargs="+", default=[None], help="experts an image"),
    option("--layouts", nargs="+", default=["channels_last"], help="channels_last contiguous"),
    option("--no-parts", dest="parts", action="store_false", help="leave the parts out"),
    option("--train", action="store_true", help="also time training steps of the config"),
    option("--plot", help="picture of latency and memory against what has several values"),
)


def main() -> None:
    cli.main(partial(call, benchmark), *SHARED, *MORE, description=__doc__ or "")


if __name__ == "__main__":
    main()

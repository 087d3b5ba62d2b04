"""Figures of a benchmark as a table and as a plot."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from codmoe.files import replacing

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


def table_of(result: Mapping[str, Any]) -> Table:
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
    table = Table(
        title=f"{result['device']}, {', '.join(same)}; {result['unit']}",
        caption="\n".join([*failed, *result["notes"]]),
    )
    for title in ("what", "route or part", *varied):
        table.add_column(title, no_wrap=True)
    for title, _ in (*_SHOWN.values(), ("active (M)", ""), ("n", "")):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        name = row["route"] if row["part"] == "whole" else f"  {row['part']}"
        cells = [row["what"], name, *(str(row[key]) for key in varied)]
        figures = [
            "-" if row[key] is None else format(row[key], spec) for key, (_, spec) in _SHOWN.items()
        ]
        active = row["active_parameters"]
        millions = "-" if not active else f"{active / 1e6:.2f}"
        table.add_row(*cells, *figures, millions, str(row["n"]))
    return table


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

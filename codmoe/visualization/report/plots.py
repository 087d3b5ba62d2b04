"""Curves of a training as SVG that takes its ink from the page, so that it reads light and dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from codmoe.visualization.report.data import Training

# Stands for the text colour of the page, whatever that is.
_INK = "#010203"
# After Okabe and Ito, so that colour-blind people tell them apart; on white and on near black.
# Marks and dashes tell them apart without any colour.
_COLOURS = ("#2b83c6", "#dd8d0c", "#12a07c", "#c774a4", "#6ab7e8", "#d0551b", "#98981f", "#8d6e63")
_MARKS, _DASHES = "os^Dv*Xp", ("-", (0, (6, 1.5)), (0, (3, 1)), (0, (5, 1, 1, 1)))
_LOSS_STYLES = dict(mixture="--", router=":")
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
_SIZE = (4.1, 2.9)


@dataclass
class Line:
    """One line of a panel: values ``y`` over ``x``."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = _INK
    style: Any = "-"
    width: float = 1.4
    marker: str = ""
    alpha: float = 1.0


def colours(experts: Sequence[str]) -> dict[str, str]:
    """One colour per expert, the same in all plots."""
    return {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(experts)}


def marks(experts: Sequence[str]) -> dict[str, str]:
    """One mark per expert, the same in all plots."""
    return {name: _MARKS[i % len(_MARKS)] for i, name in enumerate(experts)}


def panel(
    title: str, lines: Sequence[Line], *, x: str, y: str, columns: int = 4, whole: bool = True
) -> Markup:
    """One plot as an ``<svg>`` element; ``whole`` has whole numbers on the horizontal axis."""
    settings: Any = {**dict.fromkeys(_INKED, _INK), "svg.fonttype": "none", "font.size": 8}
    settings["text.parse_math"] = False
    with matplotlib.rc_context(settings):
        # A legend of many rows adds its height, so that the axes keep theirs.
        rows = math.ceil(sum(bool(line.label) for line in lines) / columns)
        size = (_SIZE[0], _SIZE[1] + 0.15 * max(0, rows - 2))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            axes.plot(
                line.x, line.y, linestyle=line.style, color=line.colour, lw=line.width,
                marker=line.marker, markersize=3 if len(line.x) > 1 else 7, alpha=line.alpha,
            )  # fmt: skip
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=whole))
        axes.set_title(title, size=9, loc="left")
        axes.set(xlabel=x, ylabel=y)
        axes.grid(color=_INK, alpha=0.12, lw=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        # matplotlib leaves out labels that begin with an underscore.
        named = [(h, f" {t.label}") for h, t in zip(axes.get_lines(), lines, strict=True)]
        named = [pair for pair in named if pair[1].strip()]
        if len(named) > 1:
            figure.legend(
                *zip(*named, strict=True), loc="outside lower center", ncols=columns, fontsize=7.5,
                frameon=False, handlelength=1.6, columnspacing=1.2,
            )  # fmt: skip
        buffer = io.StringIO()
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    return Markup(svg.replace(_INK, "currentColor").strip())


def learning_curves(training: Training, experts: Sequence[str]) -> list[Markup]:
    """Losses, IoU on the validation set and learning rate; a panel without values is left out."""
    shade, mark, unit = colours(experts), marks(experts), training.unit
    found = []
    losses = [Line("total", *_series(training.train, "loss"), width=1.8)]
    for part, keys in _loss_parts(training.train).items():
        colour, style = shade.get(part, _INK), _LOSS_STYLES.get(part, "-")
        losses.append(Line(part, *_sum(training.train, keys), colour, style, width=1.1))
    losses = [_relative(line) for line in losses if len(line.x)]
    if losses:
        y = "loss, relative to the first"
        found.append(panel("training loss (first → last)", losses, x=unit, y=y, columns=2))
    kinds = dict(IoU=("mixture", _INK, "-", 1.8), IoU_uniform=("uniform", _INK, ":", 1.1))
    kinds["IoU_oracle"] = ("oracle", _INK, "--", 1.0)
    kinds |= {f"IoU_{name}": (name, shade[name], "-", 1.2) for name in experts}
    scores = [
        Line(label, *_series(training.val, key), colour, style, w, mark.get(label, ""))
        for key, (label, colour, style, w) in kinds.items()
    ]
    scores = [line for line in scores if len(line.x)]
    if scores:
        found.append(panel("IoU on the validation set", scores, x=unit, y="IoU"))
    rates = [Line("learning rate", *_series(training.train, "base_lr"))]
    if not len(rates[0].x):
        rates = [Line("learning rate", *_series(training.train, "lr"))]
    if len(rates[0].x):
        found.append(panel("learning rate", rates, x=unit, y="base learning rate"))
    return found


def routing_curves(training: Training, experts: Sequence[str]) -> list[Markup]:
    """Shares of the experts and mutual information; nothing where the router has no choice."""
    information = _series(training.train, "mutual_information")
    seen = _series(training.val, "mutual_information")
    if not any(abs(value) > 1e-12 for value in (*information[1], *seen[1])):
        return []
    shade, mark, unit, shares = colours(experts), marks(experts), training.unit, []
    for name in experts:
        x, y = _series(training.train, f"share_{name}")
        vx, vy = _series(training.val, f"share_{name}")
        if len(x):
            line = Line(name, x, y, shade[name])
            shares.append(replace(line, label="", width=0.9, alpha=0.45) if len(vx) else line)
        if len(vx):
            shares.append(Line(name, vx, vy, shade[name], marker=mark[name], width=1.5))
    found = [panel("share of each expert", shares, x=unit, y="mean weight")] if shares else []
    curves = [
        Line("training", *information, width=0.9, alpha=0.5),
        Line("validation", *seen, marker="o"),
    ]
    curves = [line for line in curves if len(line.x)]
    title = "mutual information of image and expert"
    return [*found, panel(title, curves, x=unit, y="nats")]


def threshold_curves(rows: Mapping[str, Any], experts: Sequence[str]) -> list[Markup]:
    """Precision against recall, and F and IoU against the threshold, of each source of a test."""
    shade: dict[str, Any] = colours(experts)
    dashes: dict[str, Any] = {name: _DASHES[i % 4] for i, name in enumerate(experts)}
    dashes["uniform"] = ":"
    kinds = (
        ("precision and recall", "Recall", "Precision", "recall", "precision"),
        ("F-measure, β² 0.3", "threshold", "Fm", "threshold", "mean F of the images"),
        ("IoU", "threshold", "IoU", "threshold", "mean IoU of the images"),
    )
    found = []
    for title, x_key, y_key, x, y in kinds:
        lines = []
        for source in (*experts, "uniform", "mixture"):
            curves = (rows.get(source) or {}).get("curves") or {}
            if x_key in curves and y_key in curves:
                # Every third of 256 values, both ends among them.
                points = curves[x_key][::3], curves[y_key][::3]
                look = (
                    shade.get(source, _INK),
                    dashes.get(source, ":" if source == "uniform" else "-"),
                )
                lines.append(Line(source, *points, *look, 2.0 if source == "mixture" else 1.2))
        if lines:
            found.append(panel(title, lines, x=x, y=y, whole=False))
    return found


def cost_plots(
    cost: Mapping[str, Any], rows: Mapping[str, Any], experts: Sequence[str]
) -> list[Markup]:
    """IoU of each source against its operations and its time."""
    shade, mark = colours(experts), marks(experts)
    others = dict(uniform="P", mixture="h")
    found = []
    for key, scale, x in (("flops", 1e9, "GFLOPs of one image"), ("ms", 1, "ms of one image")):
        lines = [
            Line(name, [value / scale], [iou], shade.get(name, _INK), "",
                 marker={**mark, **others}[name])
            for name in (*experts, *others)
            if isinstance(value := (cost.get(name) or {}).get(key), (int, float))
            and isinstance(iou := (rows.get(name) or {}).get("IoU"), float)
        ]  # fmt: skip
        if lines:
            found.append(panel(f"IoU and {x}", lines, x=x, y="IoU", whole=False))
    return found


def _relative(line: Line) -> Line:
    """The losses of the parts differ by orders of magnitude, and by a few per cent over a run."""
    first, last = line.y[0], line.y[-1]
    scale = first if first and math.isfinite(first) else 1.0
    label = f"{line.label} {first:.3g} → {last:.3g}"
    return replace(line, label=label, y=[value / scale for value in line.y])


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    pairs = [(row["x"], row[key]) for row in rows if isinstance(row.get(key), (int, float))]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _loss_parts(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Keys of the losses by the part of the model they belong to (``sinet.loss_structure``)."""
    parts: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        part, dot, rest = key.partition(".")
        if dot and "loss" in rest:
            parts.setdefault(part, []).append(key)
    return parts


def _sum(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> tuple[list, list]:
    # A sparse step may lack an expert's losses; a part of them would look like a dip.
    whole = [row for row in rows if all(isinstance(row.get(key), (int, float)) for key in keys)]
    return [row["x"] for row in whole], [sum(row[key] for key in keys) for row in whole]

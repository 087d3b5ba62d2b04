"""Curves over the 256 thresholds: precision against recall, F and E against the threshold."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from codmoe.messages import printable, suggest
from codmoe.visualization.grid import write_figure

# kind: (x, y) as keys of a result's `curves`, with the names of the axes.
CURVES = {
    "PR": (("Recall", "recall"), ("Precision", "precision")),
    "F": (("threshold", "threshold"), ("Fm", "F-measure (β² 0.3)")),
    "E": (("threshold", "threshold"), ("Em", "E-measure")),
}
_PANEL, _COLUMNS = 3.2, 4
_DASHES = ("-", "--", "-.", ":")

# {method: {data set: {"threshold": [...], "Precision": [...], ...}}}
MethodCurves = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]


@rc_context({"text.parse_math": False})
def save_curves(curves: MethodCurves, path: str | os.PathLike, *, kind: str = "PR") -> Path:
    """Draws one panel per data set with a line per method, and writes it to ``path``; see
    :func:`write_figure`. Methods without this curve on a data set have no line there.

    Args:
        curves: ``{method: {data set: curves}}``, as ``"curves"`` of a result's row.
        path: File to write.
        kind: ``"PR"``, ``"F"`` or ``"E"``.

    Raises:
        ValueError: The kind is unknown, no method has this curve, or its two lists differ in
            length.
    """
    if kind not in CURVES:
        raise ValueError(f"There is no curve {kind!r}; {suggest(kind, CURVES)}")
    (x, x_label), (y, y_label) = CURVES[kind]
    datasets = dict.fromkeys(
        name for sets in curves.values() for name, found in sets.items() if {x, y} <= set(found)
    )
    if not datasets:
        raise ValueError(f"No result has the curves {x} and {y}; score the maps again to get them.")
    columns = min(_COLUMNS, len(datasets))
    rows = math.ceil(len(datasets) / columns)
    size = (columns * _PANEL + 0.3, rows * _PANEL + 0.3 + 0.2 * math.ceil(len(curves) / columns))
    figure = Figure(figsize=size, dpi=200, facecolor="white", layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    lines: dict[str, Line2D] = {}
    for panel, dataset in zip(panels, datasets, strict=False):
        for index, (method, sets) in enumerate(curves.items()):
            found = sets.get(dataset, {})
            if {x, y} <= set(found):
                if len(found[x]) != len(found[y]):
                    raise ValueError(
                        f"{method!r} on {dataset!r}: {x} has {len(found[x])} values and {y} "
                        f"{len(found[y])}; they must be equally many."
                    )
                lines.setdefault(method, _draw(panel, found[x], found[y], index))
        panel.set_title(printable(dataset), size=9)
        panel.set(xlabel=x_label, ylabel=y_label, xlim=(0, 1), ylim=(0, 1.01))
        panel.grid(linewidth=0.4, color="#dddddd")
    for panel in panels[len(datasets) :]:
        panel.set_axis_off()
    # matplotlib leaves out labels that begin with an underscore.
    labels = [printable(f" {name}" if name.startswith("_") else name) for name in lines]
    figure.legend(
        list(lines.values()), labels, loc="outside lower center", ncols=columns, fontsize=8
    )
    return write_figure(figure, path)


def save_lr_range(
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    path: str | os.PathLike,
    marks: Mapping[str, float],
) -> Path:
    """Draws the losses of a learning-rate range test, as they are and smoothed, over the rising
    rates; ``marks`` are rates to mark, by what they are. See :func:`write_figure`.
    """
    figure = Figure(figsize=(6, 3.6), dpi=150, facecolor="white", layout="constrained")
    panel = figure.subplots()
    panel.plot(rates, losses, color="#999999", linewidth=0.8, label="loss")
    panel.plot(rates, smoothed, color="C0", linewidth=1.8, label="smoothed")
    for index, (name, rate) in enumerate(marks.items()):
        dash = _DASHES[1 + index % 3]
        panel.axvline(rate, color="black", linestyle=dash, label=f"{name} {rate:.2g}")
    panel.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    # Where it diverges it would make a flat line of all else.
    low = min((value for value in smoothed if math.isfinite(value)), default=0.0)
    high = max([*smoothed[: smoothed.index(low)], low]) if low in smoothed else low
    margin = 0.4 * (high - low) or 1.0
    panel.set_ylim(low - margin, high + margin)
    panel.legend(fontsize=8)
    return write_figure(figure, path)


def _draw(panel: Axes, x: Sequence[float], y: Sequence[float], index: int) -> Line2D:
    colour, dash = f"C{index % 10}", _DASHES[index // 10 % len(_DASHES)]
    return panel.plot(x, y, color=colour, linestyle=dash, linewidth=1.2)[0]

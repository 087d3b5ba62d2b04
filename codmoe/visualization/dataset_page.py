"""One page of plots about the objects of a data set: size, contrast, shape and place."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from rich.markup import escape
from rich.progress import Progress

from codmoe.evaluation.attributes import image_attributes
from codmoe.visualization.grid import write_figure

HEAT = 64
MAX_SETS = 4
_COLOURS = ("#2b6ca3", "#d1703c", "#4f9d69", "#8a5fa8")
_SIZES = {"axes.labelsize": 9, "axes.titlesize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8}
_LOOK: Any = {"text.parse_math": False, **_SIZES}


@dataclass
class SetAttributes:
    """Attributes of one data set's samples.

    Args:
        values: ``{attribute: (n,)}`` of :func:`image_attributes`.
        heat: Share of the images whose object covers a place, each image stretched to a square,
            (``HEAT``, ``HEAT``).
        sides: Width and height of the images in pixels, (n, 2).
        empty: Number of samples without object.
        kinds: ``{kind: number of samples}``, where samples have one.
    """

    values: dict[str, np.ndarray]
    heat: np.ndarray
    sides: np.ndarray
    empty: int = 0
    kinds: dict[str, int] = field(default_factory=dict)


def collect_attributes(dataset: Any, *, progress: bool = False) -> dict[str, SetAttributes]:
    """Attributes of every sample before its pipeline, by the name of its data set.

    Args:
        dataset: A data set with ``read_sample(index)``, or a group of them.
        progress: Show a bar.

    Raises:
        ValueError: The data set does not offer its samples, or a file is unreadable.
    """
    names = getattr(dataset, "names", None) or [getattr(dataset, "name", "data set")]
    found = {}
    with Progress(disable=not progress, transient=True) as bar:
        for name, leaf in zip(names, getattr(dataset, "datasets", [dataset]), strict=True):
            if not hasattr(leaf, "read_sample"):
                raise ValueError(f"{name}: {type(leaf).__name__} has no read_sample(index)")
            found[name] = _collect(leaf, bar, bar.add_task(escape(name), total=len(leaf)))
    return found


def _collect(dataset: Any, bar: Progress, task: Any) -> SetAttributes:
    def one(index: int) -> tuple[dict[str, float], np.ndarray, tuple[int, int]]:
        image, mask = dataset.read_sample(index)
        small = cv2.resize(mask.astype(np.float32), (HEAT, HEAT), interpolation=cv2.INTER_AREA)
        bar.advance(task)
        return image_attributes(image, mask), small, mask.shape[::-1]

    heat, rows, sides = np.zeros((HEAT, HEAT)), [], []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for values, small, side in pool.map(one, range(len(dataset))):
            rows.append(values)
            sides.append(side)
            heat += small
    columns = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    infos = (dataset.get_data_info(index) for index in range(len(rows)))
    kinds = Counter(info["kind"] for info in infos if "kind" in info)
    empty = int((columns["area"] == 0).sum())
    return SetAttributes(columns, heat / len(rows), np.array(sides), empty, dict(kinds))


@rc_context(_LOOK)
def save_attributes(found: Mapping[str, SetAttributes], path: str | os.PathLike) -> Path:
    """One page of plots: size, contrast, parts, boundary, image sizes and positions; see
    :func:`write_figure`. At most ``MAX_SETS`` data sets of :func:`collect_attributes` fit it.

    Raises:
        ValueError: There is no data set, or there are too many.
    """
    if not 1 <= len(found) <= MAX_SETS:
        raise ValueError(f"{len(found)} data sets; one page holds 1 to {MAX_SETS}")
    figure = Figure(figsize=(11, 8.2), dpi=130, facecolor="white", layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(2, 1.15)).ravel()
    axes = upper.subplots(2, 3)
    _histogram(axes[0, 0], found, "area", "object, share of the image", log=True)
    _histogram(axes[0, 1], found, "contrast", "contrast to its surroundings (0 = none)")
    _histogram(axes[0, 2], found, "boundary", "boundary, 1 = disc", log=True)
    _parts(axes[1, 0], found)
    _scatter(axes[1, 1], found)
    _sides(axes[1, 2], found)
    *maps, text = lower.subplots(1, max(len(found) + 1, 3), squeeze=False)[0]
    for ax in (*maps, text):
        ax.set_axis_off()
    for ax, (name, one) in zip(maps, found.items(), strict=False):
        shown = ax.imshow(one.heat, cmap="viridis", vmin=0, extent=(0, 1, 1, 0))
        lower.colorbar(shown, ax=ax, shrink=0.8).ax.tick_params(labelsize=7)
        ax.plot(one.values["centre_x"], one.values["centre_y"], "w.", markersize=1, alpha=0.4)
        ax.set_title(f"position, {name}")
    _summary(text, found)
    return write_figure(figure, path)


def _histogram(
    ax: Axes, found: Mapping[str, SetAttributes], key: str, label: str, log: bool = False
) -> None:
    values = {name: one.values[key][np.isfinite(one.values[key])] for name, one in found.items()}
    values = {name: v[v > 0] if log else v for name, v in values.items()}
    every = np.concatenate(list(values.values()))
    if len(every):
        low, high = (every.min(), every.max()) if log else (0, max(every.max(), 1e-3))
        high = high * 1.001 if high > low else low + 1
        bins = np.geomspace(low, high, 26) if log else np.linspace(low, high, 26)
        for (name, v), colour in zip(values.items(), _COLOURS, strict=False):
            shares = np.full(len(v), 1 / max(len(v), 1))
            ax.hist(
                v, bins.tolist(), weights=shares, histtype="step", color=colour, label=name, lw=1.4
            )
    if log:
        _log_axis(ax)
    ax.set(xlabel=label, ylabel="share of the images")
    if len(found) > 1:
        ax.legend(fontsize=7, frameon=False)


def _log_axis(ax: Axes) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _parts(ax: Axes, found: Mapping[str, SetAttributes]) -> None:
    labels, width = ["0", "1", "2", "3", "4", "≥ 5"], 0.8 / len(found)
    for place, (one, colour) in enumerate(zip(found.values(), _COLOURS, strict=False)):
        parts = np.minimum(one.values["parts"].astype(int), 5)
        shares = np.bincount(parts, minlength=6) / len(parts)
        ax.bar(np.arange(6) + (place + 0.5) * width - 0.4, shares, width, color=colour)
    ax.set_xticks(range(6), labels)
    ax.set(xlabel="number of parts", ylabel="share of the images")


def _scatter(ax: Axes, found: Mapping[str, SetAttributes]) -> None:
    for one, colour in zip(found.values(), _COLOURS, strict=False):
        seen = one.values["area"] > 0
        points = one.values["area"][seen], one.values["contrast"][seen]
        ax.plot(*points, ".", color=colour, markersize=3, alpha=0.4)
    _log_axis(ax)
    ax.set(xlabel="object, share of the image", ylabel="contrast")


def _sides(ax: Axes, found: Mapping[str, SetAttributes]) -> None:
    for one, colour in zip(found.values(), _COLOURS, strict=False):
        ax.plot(*one.sides.T, ".", color=colour, markersize=3, alpha=0.4)
    ax.set(xlabel="image width, px", ylabel="height, px")
    ax.margins(0.1)


def _summary(ax: Axes, found: Mapping[str, SetAttributes]) -> None:
    ax.set_axis_off()
    lines = []
    for name, one in found.items():
        area, contrast = (one.values[key] for key in ("area", "contrast"))
        seen = contrast[np.isfinite(contrast)]
        lines += [
            f"{name}: {len(area):,} samples",
            f"  without object: {one.empty:,}",
            f"  object, median share: {np.median(area):.1%}",
            f"  below 1 % of the image: {(area < 0.01).mean():.0%}",
            f"  contrast, median: {np.median(seen):.2f}" if len(seen) else "  no contrast",
        ]
        if one.kinds:
            lines.append("  " + ", ".join(f"{kind} {n:,}" for kind, n in one.kinds.items()))
    size = 9 if len(lines) < 14 else 6.5
    ax.text(0, 1, "\n".join(lines), va="top", size=size, transform=ax.transAxes)

"""A grid of pictures: image, truth, every expert's map, the mixture, the router's weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from codmoe.evaluation.measures import iou_and_dice
from codmoe.files import replacing
from codmoe.messages import printable

# Inches. Margins and gaps are absolute, so that text keeps its place for any number of rows.
_CELL, _BARS, _BAR, _GAP = 1.5, 1.25, 0.24, 0.07
_HEADING, _TITLE, _EDGE, _NAMES = 0.26, 0.2, 0.06, 0.62
_FONT, _SMALL = 8, 7
_TITLE_LENGTH = 50
_CHOSEN, _IDLE = "#2b6ca3", "#9aa5b1"


@dataclass
class GridRow:
    """One row of the grid.

    Args:
        image: RGB, (H, W, 3) uint8.
        gt: Ground truth in {0, 1}, (H, W).
        expert_probs: ``{name: (H, W)}``; an expert that was not run may be absent.
        mixture: Probability of the mixture, (H, W).
        weights: ``{name: weight}`` of the router; an absent expert has weight 0.
        title: Written above the image, such as its stem; a long one loses its middle.
    """

    image: np.ndarray
    gt: np.ndarray | Tensor
    expert_probs: Mapping[str, np.ndarray | Tensor]
    mixture: np.ndarray | Tensor
    weights: Mapping[str, float] = field(default_factory=dict)
    title: str = ""


@rc_context({"text.parse_math": False})
def save_grid(
    rows: Sequence[GridRow],
    path: str | os.PathLike,
    *,
    expert_names: Sequence[str],
) -> Path:
    """Draws the rows and writes them to ``path``; see :func:`write_figure`.

    Above each map stands its IoU (probability > 0.5, not normalised); the best expert's is bold.
    Maps are shown from 0 (black) to 1 (white), not stretched; columns and bars are in the order of
    ``expert_names``.

    Raises:
        ValueError: There are no rows, or a row's arrays do not fit together.
    """
    if not rows or not expert_names:
        raise ValueError("save_grid needs at least one row and one name in expert_names.")
    for row in rows:
        _check(row, expert_names)
    columns = len(expert_names) + 3
    heights = [_CELL * float(np.clip(len(r.image) / r.image.shape[1], 0.4, 1.6)) for r in rows]
    width = _EDGE + columns * (_CELL + _GAP) + _NAMES + _BARS + _EDGE
    height = _HEADING + sum(heights) + len(rows) * (_TITLE + _GAP) + _EDGE
    figure = Figure(figsize=(width, height), dpi=200, facecolor="white")

    headings = ["image", "truth", *expert_names, "mixture"]
    for column, heading in enumerate(headings):
        x = _EDGE + column * (_CELL + _GAP) + _CELL / 2
        _text(figure, x, height - _HEADING / 2, heading, width, height, weight="bold")
    x_bars = _EDGE + columns * (_CELL + _GAP) + _NAMES
    x_weights = x_bars + (_BARS - _NAMES) / 2
    _text(figure, x_weights, height - _HEADING / 2, "weights", width, height, weight="bold")

    top = height - _HEADING
    for row, cell in zip(rows, heights, strict=True):
        bottom = top - _TITLE - cell
        left = [_EDGE + c * (_CELL + _GAP) for c in range(columns)]
        axes = [
            figure.add_axes((x / width, bottom / height, _CELL / width, cell / height))
            for x in left
        ]
        _draw_maps(axes, row, expert_names)
        axes[0].set_title(shortened(row.title, _TITLE_LENGTH), size=_SMALL, pad=2, loc="left")
        # Bars of one thickness in every row, as long as the row is high enough for them.
        bars = min(cell, _BAR * len(expert_names))
        box = (x_bars / width, (bottom + (cell - bars) / 2) / height, _BARS / width, bars / height)
        _draw_weights(figure.add_axes(box), row, expert_names)
        top = bottom - _GAP

    return write_figure(figure, path)


def _draw_maps(axes: Sequence[Axes], row: GridRow, names: Sequence[str]) -> None:
    maps = [*[row.expert_probs.get(name) for name in names], row.mixture]
    ious = [None if prob is None else iou_and_dice(prob, row.gt)[0] for prob in maps]
    best = max((iou for iou in ious[:-1] if iou is not None), default=None)
    axes[0].imshow(row.image, aspect="auto")
    for ax, picture in zip(axes[1:], [row.gt, *maps], strict=True):
        if picture is None:
            ax.set_facecolor("#f0f0f0")
            ax.text(
                0.5, 0.5, "not run", ha="center", va="center", size=_FONT, transform=ax.transAxes
            )
        else:
            ax.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=1, aspect="auto")
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set(linewidth=0.4, color="#666666")
    for index, (ax, iou) in enumerate(zip(axes[2:], ious, strict=True)):
        if iou is not None:
            bold = len(names) > 1 and index < len(names) and iou == best
            weight = "bold" if bold else "normal"
            ax.set_title(f"IoU {iou:.3f}", size=_SMALL, pad=2, weight=weight)


def _draw_weights(ax: Axes, row: GridRow, names: Sequence[str]) -> None:
    values = [float(row.weights.get(name, 0.0)) for name in names]
    colours = [_CHOSEN if value > 0 else _IDLE for value in values]
    ax.barh(range(len(names)), values, height=0.55, color=colours)
    for index, (value, colour) in enumerate(zip(values, colours, strict=True)):
        ax.text(value + 0.03, index, f"{value:.2f}", va="center", size=_SMALL, color=colour)
    # Room at the right of a full bar for its figure.
    ax.set(xlim=(0, 1.35), ylim=(len(names) - 0.4, -0.6), xticks=[])
    ax.set_yticks(range(len(names)), names, size=_SMALL)
    ax.tick_params(length=0, pad=2)
    for side, spine in ax.spines.items():
        spine.set_visible(side == "left")
        spine.set(linewidth=0.6, color="#666666")


def check_picture(path: str | os.PathLike) -> None:
    """Raises:
    ValueError: The suffix is that of no picture.
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in Figure().canvas.get_supported_filetypes():
        raise ValueError(f"{path} is named like no picture; give it .png, .pdf, .svg or .jpg")


def write_figure(figure: Figure, path: str | os.PathLike) -> Path:
    """Writes a figure in the format of the suffix (png, pdf, svg, jpg), whole or not at all; a file
    that is there is kept under a dated name.

    Raises:
        ValueError: The suffix is that of no picture.
    """
    check_picture(path)
    with replacing(path) as temporary:
        figure.savefig(temporary)
    return Path(path)


def shortened(title: str, length: int) -> str:
    """A title without its middle where it is longer than ``length`` characters."""
    title, half = printable(title), length // 2
    return title if len(title) <= length else f"{title[:half]}…{title[-half + 1 :]}"


def _text(
    figure: Figure, x: float, y: float, text: str, width: float, height: float, **style
) -> None:
    figure.text(x / width, y / height, text, ha="center", va="center", size=_FONT, **style)


def _check(row: GridRow, expert_names: Sequence[str]) -> None:
    image = row.image
    name = repr(row.title or "?")
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3):
        raise ValueError(f"Row {name}: image must be a uint8 array of shape (H, W, 3).")
    if image.shape[2] != 3:
        raise ValueError(f"Row {name}: image has {image.shape[2]} channels; give RGB.")
    if tuple(row.gt.shape) != image.shape[:2]:
        raise ValueError(
            f"Row {name}: the truth is {tuple(row.gt.shape)} and the image {image.shape[:2]}; "
            "bring them to one size."
        )
    unknown = sorted((set(row.expert_probs) | set(row.weights)) - set(expert_names))
    if unknown:
        raise ValueError(
            f"Row {name} names experts that are not in expert_names: {', '.join(unknown)}."
        )

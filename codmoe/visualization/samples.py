"""A grid of samples as the network gets them, with the outlines of their masks."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from codmoe.visualization.grid import shortened, write_figure

# Inches, and below them pixels: longer side of a cell's picture.
_CELL, _TITLE, _GAP, _FONT = 1.8, 0.2, 0.06, 6.5
_PIXELS = 360
_OUTLINE, _DARK = (255, 220, 40), (20, 20, 20)
_TITLE_LENGTH = 22


def outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An RGB image (H, W, 3) uint8, enlarged or reduced to a cell's longer side of 360 pixels, with
    the outline of its mask (H, W) in {0, 1}.
    """
    factor = _PIXELS / max(image.shape[:2])
    size = tuple(max(round(side * factor), 1) for side in image.shape[1::-1])
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    picture = cv2.resize(np.ascontiguousarray(image), size, interpolation=method)
    large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for colour, width in ((_DARK, 4), (_OUTLINE, 2)):
        cv2.drawContours(picture, contours, -1, colour, width, cv2.LINE_AA)
    return picture


def unpacked(item: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Image (H, W, 3), mask (H, W) or None, and title of what a pipeline made of one sample.

    Raises:
        ValueError: The pipeline does not end with ``PackCODInputs``.
    """
    if not isinstance(item, Mapping) or not {"inputs", "data_samples"} <= set(item):
        raise ValueError("the pipeline does not end with dict(type='PackCODInputs')")
    image, sample = item["inputs"].numpy().transpose(1, 2, 0), item["data_samples"]
    if image.dtype != np.uint8:
        # Normalised in the pipeline instead of by the model: stretched back to what can be seen.
        low, high = float(image.min()), float(image.max())
        image = np.rint((image - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
    mask = sample.target[0].numpy() if "target" in sample else None
    area = "no mask" if mask is None else f"{mask.mean():.1%}"
    return image, mask, f"{shortened(sample.get('stem', ''), _TITLE_LENGTH)} · {area}"


@rc_context({"text.parse_math": False})
def save_samples(
    items: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    *,
    columns: int = 6,
) -> Path:
    """Draws samples and writes them to ``path``; see :func:`write_figure`.

    They are given as the pipeline makes them. Above each stand its stem and its object's share of
    the image.

    Raises:
        ValueError: There are no samples, or they are not packed.
    """
    if not items or columns < 1:
        raise ValueError("save_samples needs at least one sample and one column")
    cells = [unpacked(item) for item in items]
    columns = min(columns, len(cells))
    rows = math.ceil(len(cells) / columns)
    ratio = max(image.shape[0] / image.shape[1] for image, _, _ in cells)
    width = columns * (_CELL + _GAP) + _GAP
    height = rows * (_CELL * ratio + _TITLE + _GAP) + _GAP
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    for place, (image, mask, title) in enumerate(cells):
        row, column = divmod(place, columns)
        left = _GAP + column * (_CELL + _GAP)
        top = height - _GAP - row * (_CELL * ratio + _TITLE + _GAP) - _TITLE
        box = (left / width, (top - _CELL * ratio) / height, _CELL / width, _CELL * ratio / height)
        ax = figure.add_axes(box)
        ax.imshow(outlined(image, np.zeros(image.shape[:2], np.uint8) if mask is None else mask))
        ax.set_axis_off()
        ax.set_title(title, size=_FONT, pad=2, loc="left")
    return write_figure(figure, path)

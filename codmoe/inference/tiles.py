"""Large images in overlapping tiles, whose maps are blended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import cv2
import numpy as np

OVERLAP = 0.25
"""Least share of a tile's side that its neighbour covers too."""
Window = tuple[slice, slice]


def check_tile(tile: int | None) -> None:
    """Raises ValueError unless this is a side for tiles."""
    if tile is not None and tile < 64:
        raise ValueError(f"tile={tile}: give the side of a tile in pixels, 64 or more")


def needs_tiles(shape: tuple[int, ...], tile: int | None) -> bool:
    """Whether an image (H, W, …) is larger than one tile."""
    return tile is not None and max(shape[:2]) > tile


def windows(shape: tuple[int, ...], tile: int) -> Iterator[tuple[Window, np.ndarray]]:
    """The tiles of an image (H, W, …), row by row, and the share of each in its pixels' values.

    Tiles are spread evenly. A tile's share falls linearly towards those of its sides that have a
    neighbour; in every pixel the shares of all tiles add up to 1.
    """
    rows, columns = (_along(side, tile) for side in shape[:2])
    for row, down in rows:
        for column, across in columns:
            yield (row, column), down[:, None] * across


def _along(side: int, tile: int) -> list[tuple[slice, np.ndarray]]:
    if side <= tile:
        return [(slice(0, side), np.ones(side, np.float32))]
    count = int(np.ceil((side - tile) / (tile * (1 - OVERLAP)))) + 1
    starts = np.linspace(0, side - tile, count).round().astype(int)
    ramp = np.minimum(np.arange(1, tile + 1), np.arange(tile, 0, -1)).astype(np.float32)
    total = np.zeros(side, np.float32)
    for start in starts:
        total[start : start + tile] += ramp
    places = [slice(int(start), int(start) + tile) for start in starts]
    return [(place, ramp / total[place]) for place in places]


def blended(
    image: np.ndarray,
    tile: int,
    whole: np.ndarray,
    predict: Callable[[list[np.ndarray]], list[np.ndarray]],
    batch_size: int,
) -> np.ndarray:
    """The map of a large image: the mean of the logits of its tiles and of the whole image.

    Tiles see detail, and the whole image what the object is: in a tile without one, or of the
    inside of one, a model finds something else. What it gains and loses is measured in
    docs/inference.md.

    Args:
        image: RGB, (H, W, 3) uint8.
        tile: Side of a tile in pixels of the image.
        whole: Map of the whole image, of any size.
        predict: Makes maps (h, w) of pieces (h, w, 3).
        batch_size: Pieces at a time.

    Returns:
        (H, W) float32.
    """
    height, width = image.shape[:2]
    found = np.zeros((height, width), np.float32)
    tiles = windows(image.shape, tile)
    while batch := list(islice(tiles, batch_size)):
        maps = predict([image[window] for window, _ in batch])
        for (window, share), map_ in zip(batch, maps, strict=True):
            np.add(found[window], share * map_, out=found[window])
    whole = cv2.resize(whole, (width, height), interpolation=cv2.INTER_LINEAR)
    for first in range(0, height, tile):  # as much memory as a row of tiles takes
        rows = slice(first, first + tile)
        one, other = found[rows].clip(0, 1), whole[rows]
        object_ = np.sqrt(one * other)
        background = np.sqrt((1 - one) * (1 - other))
        found[rows] = object_ / np.maximum(object_ + background, 1e-12)
    return found

"""The four kinds of synthetic camouflage: outlines of their objects and what betrays them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from codmoe.datasets.synthetic_shapes import COMPACT, SHAPES, any_shape, silhouette
from codmoe.datasets.synthetic_textures import randint, uniform
from codmoe.registry import suggest

KINDS = ("clutter", "figure", "multiscale", "ambiguous")
MIN_AREA, MAX_AREA = 0.01, 0.4
REVEALED = 0.4


class Piece(NamedTuple):
    """How a piece of texture differs from its surroundings.

    Args:
        turn: How far its texture is turned, in radians.
        zoom: How much coarser its texture is.
        rim: Strength of the contour's shading; the lit and the far side differ.
        soft: Half the width of the blended rim, as a share of the image's side.
        shade: Change of brightness inside.
        contrast: Contrast of the texture inside.
    """

    turn: float
    zoom: float
    rim: float
    soft: float = 0.0
    shade: float = 0.0
    contrast: float = 1.0


def check_kind(kind: str) -> None:
    """Raises ValueError if it is none."""
    if kind not in KINDS:
        raise ValueError(f"kinds: {kind!r} is no kind of synthetic image; {suggest(kind, KINDS)}")


def _signed(rng: np.random.Generator, low: float, high: float) -> float:
    return uniform(rng, low, high) * (1 if rng.random() < 0.5 else -1)


def _zoom(rng: np.random.Generator, low: float, high: float) -> float:
    factor = uniform(rng, low, high)
    return factor if rng.random() < 0.75 else 1 / factor


def draw_object(rng: np.random.Generator, kind: str) -> Piece:
    """How the object of an image differs from its surroundings."""
    if kind == "clutter":
        return Piece(_signed(rng, 1.0, 1.57), _zoom(rng, 1.3, 1.5), rim=0.36, contrast=0.8)
    if kind == "figure":
        shade = _signed(rng, 0.03, 0.07)
        turn, zoom = _signed(rng, 0.4, 0.8), _zoom(rng, 1.05, 1.2)
        return Piece(turn, zoom, rim=0.55, shade=shade, contrast=0.9)
    if kind == "multiscale":
        return Piece(_signed(rng, 1.0, 1.57), _zoom(rng, 1.2, 1.5), rim=0.42, contrast=0.8)
    soft = uniform(rng, 0.02, 0.045)
    return Piece(_signed(rng, 1.0, 1.57), _zoom(rng, 1.25, 1.5), rim=0.0, soft=soft, contrast=0.85)


def revealed(piece: Piece, visibility: float) -> Piece:
    """The object made easier to see: lighter or darker than its surroundings, by ``REVEALED`` of
    their brightness at a visibility of 1.
    """
    side = 1 if piece.turn > 0 else -1  # as random as the turn is
    return piece._replace(shade=piece.shade + side * REVEALED * visibility)


def draw_distractors(
    rng: np.random.Generator, kind: str, size: int
) -> list[tuple[np.ndarray, Piece]]:
    """What looks like an object by its rim and is none: depth maps (size, size) and pieces."""
    if kind != "clutter":
        return []
    found = []
    for _ in range(randint(rng, 5, 9)):
        depth = silhouette(rng, size, uniform(rng, 0.02, 0.1), any_shape(rng))
        found.append((depth, Piece(_signed(rng, 0, 0.12), 1.0, rim=0.30)))
    return found


def draw_shadow(rng: np.random.Generator, kind: str) -> tuple[float, float]:
    """Length and strength of shadows, of object and distractors alike; none in half the images."""
    length, strength = uniform(rng, 0.01, 0.03), uniform(rng, 0.1, 0.35)
    return length, strength if kind != "ambiguous" and rng.random() < 0.5 else 0.0


def outlines(rng: np.random.Generator, kind: str, size: int) -> list[np.ndarray]:
    """Depth maps of the objects of one image, drawn again until their area is in the limits."""
    for _ in range(8):
        if kind == "multiscale":
            plan = randint(rng, 0, 3)
            if plan == 0:
                areas = [uniform(rng, 0.013, 0.022)]
            elif plan == 1:
                areas = [uniform(rng, 0.27, 0.37)]
            else:
                areas = [uniform(rng, 0.08, 0.2)]
                areas += [uniform(rng, 0.008, 0.03) for _ in range(randint(rng, 1, 4))]
        elif kind == "figure":
            areas = [uniform(rng, 0.06, 0.25)]
        else:
            areas = [uniform(rng, 0.05, 0.2)]
        names = COMPACT if kind == "ambiguous" else tuple(SHAPES)
        depths = [silhouette(rng, size, a, any_shape(rng, names)) for a in areas]
        covered = float((np.max(depths, axis=0) > 0).mean())
        if MIN_AREA <= covered <= MAX_AREA:
            return depths
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return [0.2 * size - np.sqrt(x**2 + y**2)]

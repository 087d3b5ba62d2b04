"""Builds a synthetic camouflage image of pieces of texture, shadows and light."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from codmoe.datasets.synthetic.shapes import COMPACT, SHAPES, any_shape, blade, silhouette
from codmoe.datasets.synthetic.textures import (
    Texture,
    make_texture,
    randint,
    smooth_noise,
    uniform,
)
from codmoe.messages import suggest

KINDS = ("clutter", "figure", "multiscale", "ambiguous")
# Smallest and largest share of the image that is object.
MIN_AREA, MAX_AREA = 0.01, 0.4
# Change of brightness at a visibility of 1.
REVEALED = 0.4
# An occluder leaves at least so much of the object.
KEPT_BY_OCCLUDERS = 0.6


class Piece(NamedTuple):
    """Difference of a piece of texture from its surroundings.

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


def daylight(rng: np.random.Generator, size: int) -> np.ndarray:
    """Brightness of the light in one of four settings, about 1 on average, (size, size)."""
    setting = randint(rng, 0, 3)
    light = 1 + uniform(rng, 0.05, 0.16) * smooth_noise(rng, size, 3)
    axis = (np.arange(size) + 0.5) / size - 0.5
    if setting == 1:  # slanting, from one side
        angle, fall = uniform(rng, 0, 2 * np.pi), uniform(rng, 0.2, 0.5)
        light = light * (1 + fall * (np.cos(angle) * axis[None] + np.sin(angle) * axis[:, None]))
    elif setting == 2:  # through leaves
        leaves = smooth_noise(rng, size, randint(rng, 4, 8)) * uniform(rng, 2, 5)
        light = light * (1.08 - uniform(rng, 0.15, 0.35) * np.clip(leaves + 0.3, 0, 1))
    elif setting == 3:  # a lamp
        x, y = uniform(rng, -0.3, 0.3), uniform(rng, -0.3, 0.3)
        radius = (axis[None] - x) ** 2 + (axis[:, None] - y) ** 2
        light = light * 1.15 / (1 + uniform(rng, 0.6, 1.4) * radius)
    return light * uniform(rng, 0.82, 1.1)


def rim_shading(
    depth: np.ndarray, alpha: np.ndarray, sun: tuple[float, float], reach: float
) -> np.ndarray:
    """Shading that falls off from a contour to both sides, lighter where it faces the sun.

    Args:
        depth: Depth below the outline in pixels, (h, w).
        alpha: Share of the piece in each pixel, (h, w).
        sun: Direction (x, y) of the light, of length 1.
        reach: Distance in pixels at which it has fallen to half.

    Returns:
        Relative change of brightness for a rim of strength 1, (h, w).
    """
    slope_y, slope_x = np.gradient(depth)
    facing = -(slope_x * sun[0] + slope_y * sun[1])
    near = 1 / (1 + (depth / reach) ** 2)
    return near * (0.7 * facing * alpha - 0.35 - 0.35 * alpha)


def cast_shadow(
    light: np.ndarray,
    depth: np.ndarray,
    sun: tuple[float, float],
    length: float,
    strength: float,
) -> None:
    """Darkens what lies behind an outline, seen from the sun.

    Args:
        light: Brightness, changed in place, (size, size).
        depth: Depth below the outline in pixels, (size, size).
        sun: Direction (x, y) of the light, of length 1.
        length: Length of the shadow as a share of the image's side.
        strength: Share of the light that is taken away.
    """
    size, reach = len(light), length * len(light)
    dx, dy = round(-sun[0] * reach), round(-sun[1] * reach)
    to_y, to_x = slice(max(dy, 0), size + min(dy, 0)), slice(max(dx, 0), size + min(dx, 0))
    of_y, of_x = slice(max(-dy, 0), size - max(dy, 0)), slice(max(-dx, 0), size - max(dx, 0))
    dark = np.clip(0.5 + depth[of_y, of_x] / max(reach, 1.0), 0, 1)
    light[to_y, to_x] *= 1 - strength * dark


class Scene:
    """Image in the making: fields that become colour, the light on them, and the object's mask.

    Args:
        rng: Where the randomness comes from.
        size: Side of the image in pixels.
    """

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size = rng, size
        self.texture: Texture = make_texture(rng, size)
        fields = self.texture.sample(np.arange(size * size))
        self.tone, self.accent = (field.reshape(size, size) for field in fields)
        self.daylight = daylight(rng, size)
        self.light = self.daylight.copy()
        warmth = uniform(rng, -0.08, 0.08)
        self.light_colour = np.array([1 + warmth, 1.0, 1 - warmth])
        self.noise = uniform(rng, 2, 9)
        angle = uniform(rng, 0, 2 * np.pi)
        self.sun = np.cos(angle), np.sin(angle)
        self.mask = np.zeros((size, size), bool)

    def cast_shadow(self, depth: np.ndarray, length: float, strength: float) -> None:
        """See :func:`cast_shadow`."""
        cast_shadow(self.light, depth, self.sun, length, strength)

    def add(self, depth: np.ndarray, piece: Piece, is_object: bool = True) -> None:
        """Lays a piece of the scene's own texture over what lies under an outline.

        Args:
            depth: Depth below the outline in pixels, (size, size).
            piece: How it differs from its surroundings.
            is_object: Whether it belongs to the mask; if not, it hides what it covers of it.
        """
        rng, size = self.rng, self.size
        shift = rng.random(2) * size
        width = max(piece.soft * size, 0.5)
        margin = depth > -3 * max(width, 0.016 * size)
        if not margin.any():
            return
        ys, xs = np.flatnonzero(margin.any(1)), np.flatnonzero(margin.any(0))
        rows, cols = slice(ys[0], ys[-1] + 1), slice(xs[0], xs[-1] + 1)
        depth = depth[rows, cols]
        alpha = np.clip(0.5 + 0.5 * depth / width, 0, 1)
        inside = alpha > 0.5
        if not inside.any():
            return
        window = rows, cols
        covered = alpha > 0
        part, core = alpha[covered], inside[covered]
        at = (np.arange(rows.start, rows.stop)[:, None] * size + np.arange(cols.start, cols.stop))[
            covered
        ]
        patches = self.texture.sample(at, piece.turn, piece.zoom, shift)
        for field, patch in zip((self.tone, self.accent), patches, strict=True):
            under = field[window][covered]
            # A piece from elsewhere is by chance lighter or greener than what it covers, the more
            # so the smaller it is; that would be a cue of colour, so most of it is taken back.
            mean = patch[core].mean()
            patch = mean + piece.contrast * (patch - mean)
            patch += 0.8 * (under[core].mean() - mean)
            field[window][covered] = under + part * (patch - under)
        # What lies on top hides the shading beneath it.
        light = self.light[window] + alpha * (self.daylight[window] - self.light[window])
        relief = rim_shading(depth, alpha, self.sun, 0.016 * size + width)
        self.light[window] = light * (1 + piece.rim * relief + piece.shade * alpha)
        if is_object:
            self.mask[window] |= inside
        else:
            self.mask[window] &= ~inside

    def occlude(self, min_area: float) -> None:
        """Lays one to three blades over the image, the first of them across the object.

        Args:
            min_area: Share of the image that the object keeps; a blade that would take more, or
                more than ``1 - KEPT_BY_OCCLUDERS`` of the object, is left out.
        """
        rng, size = self.rng, self.size
        whole = max(KEPT_BY_OCCLUDERS * self.mask.sum(), min_area * size**2)
        for count in range(randint(rng, 1, 3)):
            rows, cols = np.nonzero(self.mask)
            xs, ys = (cols, rows) if count == 0 else (np.arange(size), np.arange(size))
            x, y = (float(p[randint(rng, 0, len(p) - 1)]) for p in (xs, ys))
            depth = blade(rng, size, (x, y))
            turn, shade = uniform(rng, 0, np.pi), uniform(rng, -0.15, 0.15)
            piece = Piece(turn, 1.0, rim=0.3, shade=shade)
            if (self.mask & (depth <= 0)).sum() >= whole:
                self.cast_shadow(depth, 0.012, 0.25)
                self.add(depth, piece, is_object=False)

    def render(self) -> np.ndarray:
        """The image, (size, size, 3) uint8 RGB."""
        size, rng = self.size, self.rng
        slope_y, slope_x = np.gradient(self.tone)
        relief = (slope_x * self.sun[0] + slope_y * self.sun[1]) * (size / 96) ** 0.5
        light = self.light * (1 - 0.10 * np.clip(relief, -2.5, 2.5))
        rgb = self.texture.colour(self.tone, self.accent)
        rgb *= light[..., None] * self.light_colour
        grain = rng.random((size, size)) + rng.random((size, size)) - 1
        rgb += (self.noise * grain)[..., None]
        return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def check_kind(kind: str, valid: Sequence[str] = KINDS) -> None:
    """Raises ValueError if it is none."""
    if kind not in valid:
        raise ValueError(f"kinds: {kind!r} is no kind of synthetic image; {suggest(kind, valid)}")


def _signed(rng: np.random.Generator, low: float, high: float) -> float:
    return uniform(rng, low, high) * (1 if rng.random() < 0.5 else -1)


def _zoom(rng: np.random.Generator, low: float, high: float) -> float:
    factor = uniform(rng, low, high)
    return factor if rng.random() < 0.75 else 1 / factor


def draw_object(rng: np.random.Generator, kind: str) -> Piece:
    """Draws how the object of an image differs from its surroundings."""
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
    """Draws what has an object's rim and is none: depth maps (size, size) and pieces."""
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

"""Draws the outlines of the synthetic camouflage images: animals, blobs, blades of grass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from codmoe.datasets.synthetic.textures import randint, smooth_noise, uniform, upsample


def creature(rng: np.random.Generator) -> np.ndarray:
    """Discs (x, y, radius) along a bent spine, with paired limbs, fins or wings, (K, 3)."""
    count, bend, heading = 8, uniform(rng, -0.35, 0.35), 0.0
    fat, peak = uniform(rng, 0.26, 0.5), uniform(rng, 0.3, 0.6)
    point, discs = np.zeros(2), []
    pairs = {randint(rng, 1, 6) for _ in range(randint(rng, 0, 3))}
    reach, sweep = uniform(rng, 0.25, 0.6), uniform(rng, -0.6, 0.9)
    for i in range(count):
        t = i / (count - 1)
        radius = fat * (1 - 0.75 * ((t - peak) / max(peak, 1 - peak)) ** 2)
        discs.append((*point, radius))
        if i in pairs:
            for side in (-1, 1):
                angle = heading + side * (np.pi / 2 + sweep)
                for k in (0.0, 0.33, 0.67, 1.0):
                    arm = (0.8 * radius + reach * k) * np.array([np.cos(angle), np.sin(angle)])
                    discs.append((*(point + arm), fat * (0.5 - 0.22 * k)))
        heading += bend
        point = point + 0.3 * np.array([np.cos(heading), np.sin(heading)])
    return np.array(discs)


def blob(rng: np.random.Generator) -> np.ndarray:
    """Overlapping discs around a centre: a compact figure, (K, 3)."""
    discs = [(0.0, 0.0, 0.6)]
    for _ in range(randint(rng, 3, 6)):
        angle, distance = uniform(rng, 0, 2 * np.pi), uniform(rng, 0.3, 0.75)
        radius = uniform(rng, 0.25, 0.5)
        discs.append((distance * np.cos(angle), distance * np.sin(angle), radius))
    return np.array(discs)


def fish(rng: np.random.Generator) -> np.ndarray:
    """A spindle with a forked tail and a fin on the back, (K, 3)."""
    slim = uniform(rng, 0.3, 0.55)
    t = np.linspace(0, 1, 7)
    bend = uniform(rng, -0.25, 0.25)
    discs = [
        (2 * k - 1, bend * (2 * k - 1) ** 2, slim * (1 - (2.1 * k - 1) ** 2 * 0.75)) for k in t
    ]
    spread = uniform(rng, 0.35, 0.7)
    for side in (-1, 1):
        for k in (0.35, 0.7, 1.0):
            discs.append((1 + 0.45 * k, bend + side * spread * k, 0.17 - 0.06 * k))
    at, height = uniform(rng, -0.4, 0.2), uniform(rng, 0.3, 0.7)
    discs += [(at + 0.2 * k, slim * (0.6 + height * k), 0.2 - 0.1 * k) for k in (0.0, 0.5, 1.0)]
    return np.array([(x, y, max(radius, 0.08)) for x, y, radius in discs])


def star(rng: np.random.Generator) -> np.ndarray:
    """Arms around a middle: starfish, crab, spider, lobed leaf, (K, 3)."""
    count, core = randint(rng, 4, 8), uniform(rng, 0.25, 0.45)
    discs, turn = [(0.0, 0.0, core)], uniform(rng, -0.5, 0.5)
    for arm in range(count):
        angle = 2 * np.pi * (arm + uniform(rng, -0.2, 0.2)) / count
        reach = uniform(rng, 0.6, 1.1)
        for k in (0.4, 0.65, 0.85, 1.0):
            bent = angle + turn * k
            radius = core * (0.62 - 0.42 * k)
            discs.append((reach * k * np.cos(bent), reach * k * np.sin(bent), max(radius, 0.07)))
    return np.array(discs)


def moth(rng: np.random.Generator) -> np.ndarray:
    """A thin body between two pairs of wings, (K, 3)."""
    discs = [(0.0, y, 0.14) for y in np.linspace(-0.5, 0.6, 5)]
    for start, end in ((-0.25, uniform(rng, -0.7, -0.3)), (0.15, uniform(rng, 0.4, 0.8))):
        reach, width = uniform(rng, 0.7, 1.1), uniform(rng, 0.22, 0.36)
        for side in (-1, 1):
            for k in (0.25, 0.6, 1.0):
                discs.append((side * reach * k, start + (end - start) * k, width * (0.6 + 0.4 * k)))
    return np.array(discs)


def snake(rng: np.random.Generator) -> np.ndarray:
    """A long body in bends of its own: snake, pipefish, stick insect, twig, (K, 3)."""
    wave, phase = uniform(rng, 0.15, 0.5), uniform(rng, 0, 2 * np.pi)
    bends, thick = uniform(rng, 0.4, 1.3), uniform(rng, 0.13, 0.22)
    t = np.linspace(0, 1, 16)
    x, y = 2.6 * t - 1.3, wave * np.sin(2 * np.pi * bends * t + phase)
    return np.column_stack([x, y, thick * (1 - 0.7 * t**3)])


SHAPES = {shape.__name__: shape for shape in (creature, blob, fish, star, moth, snake)}
# Without parts so thin that a soft rim would leave nothing of them.
COMPACT = ("creature", "blob", "fish", "moth")


def any_shape(rng: np.random.Generator, names: Sequence[str] = tuple(SHAPES)) -> str:
    """One of the names; the first, a creature, is twice as likely as the others."""
    return names[max(randint(rng, -1, len(names) - 1), 0)]


def _inside(discs: np.ndarray, x: np.ndarray, y: np.ndarray, softness: float) -> np.ndarray:
    """Depth below the outline of the discs' smooth union; negative outside."""
    depths = (radius - np.sqrt((x - cx) ** 2 + (y - cy) ** 2) for cx, cy, radius in discs)
    depth = next(depths)
    for one in depths:
        blend = np.maximum(softness - np.abs(depth - one), 0)
        depth = np.maximum(depth, one) + blend * blend / (4 * softness)
    return depth


def silhouette(
    rng: np.random.Generator, size: int, area: float, shape: str = "creature"
) -> np.ndarray:
    """A random outline somewhere in the image.

    Args:
        rng: Where the randomness comes from.
        size: Side of the image in pixels.
        area: Wanted share of the image; less remains where the outline leaves the image.
        shape: A name of ``SHAPES``.

    Returns:
        Approximate depth below the outline in pixels, positive inside, (size, size).
    """
    discs = SHAPES[shape](rng)
    discs[:, :2] -= (discs[:, :2].min(0) + discs[:, :2].max(0)) / 2
    angle = uniform(rng, 0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    discs[:, :2] = discs[:, :2] @ np.array([[cos, sin], [-sin, cos]])
    axis = np.linspace(-2.4, 2.4, 64)
    covered = (_inside(discs, axis[None], axis[:, None], 0.15) > 0).mean() * 4.8**2
    scale = np.sqrt(area / covered)
    discs *= scale
    # A tenth of the side may be hidden beyond the border, which then cuts the object.
    extent = np.minimum((np.abs(discs[:, :2]) + discs[:, 2:]).max(0) - 0.03, 0.5)
    discs[:, :2] += extent + (1 - 2 * extent) * rng.random(2)
    n = min(size, 112) + 3
    axis = (np.arange(n) - 1) / (n - 3)
    depth = _inside(discs, axis[None], axis[:, None], 0.15 * scale) * size
    rim = smooth_noise(rng, size, 7) + 0.5 * smooth_noise(rng, size, 18)
    return upsample(depth, size) + rim * (0.05 * scale * size)


def blade(rng: np.random.Generator, size: int, through: tuple[float, float]) -> np.ndarray:
    """As :func:`silhouette`, a long, slightly bent blade of grass or twig from one border to
    another, which covers the point ``through`` (x, y).
    """
    angle, bend = uniform(rng, 0, 2 * np.pi), uniform(rng, -0.4, 0.4)
    half = uniform(rng, 0.008, 0.022) * size
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = np.arange(size)[None, :] - through[0], np.arange(size)[:, None] - through[1]
    along, across = (cos * x + sin * y) / size, cos * y - sin * x
    return half * (1 - 0.5 * np.abs(along)) - np.abs(across - bend * size * along**2)

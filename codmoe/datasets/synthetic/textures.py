"""Makes the textures of the synthetic camouflage images, in numpy alone.

Everything is float64 on purpose: FFT and elementary functions differ between machines in their last
bits, and in float64 that difference is some ten orders of magnitude below the final uint8 step.
Only ``Generator.random`` is drawn from, the part of numpy's generator that has never changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Four colours each, from shadow to light.
PALETTES = {
    "leaf litter": ((38, 27, 20), (94, 62, 36), (146, 103, 60), (196, 160, 108)),
    "forest": ((20, 30, 18), (48, 68, 34), (92, 108, 52), (152, 160, 96)),
    "moss": ((30, 34, 24), (70, 78, 40), (112, 112, 66), (172, 170, 124)),
    "sand": ((104, 82, 58), (152, 124, 88), (190, 164, 124), (226, 206, 170)),
    "bark": ((34, 30, 28), (78, 68, 60), (122, 108, 96), (172, 160, 146)),
    "sea bed": ((18, 44, 52), (44, 86, 92), (96, 132, 124), (168, 178, 150)),
    "coral": ((52, 34, 48), (112, 70, 74), (158, 116, 100), (206, 178, 148)),
    "rock": ((46, 50, 54), (92, 96, 98), (136, 136, 132), (186, 184, 176)),
    "straw": ((62, 50, 28), (120, 98, 52), (172, 148, 84), (216, 198, 138)),
    "lichen": ((52, 58, 54), (98, 110, 98), (150, 164, 142), (204, 210, 186)),
    "snow": ((96, 104, 116), (146, 154, 164), (190, 196, 202), (230, 232, 234)),
    "clay": ((58, 34, 26), (112, 68, 50), (160, 106, 80), (206, 158, 126)),
}
STYLES = ("plain", "ridged", "stepped", "spotted", "strands", "cells")


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """One number in [low, high)."""
    return low + (high - low) * float(rng.random())


def randint(rng: np.random.Generator, low: int, high: int) -> int:
    """One integer in [low, high], both included."""
    return low + int(rng.random() * (high - low + 1))


def upsample(grid: np.ndarray, size: int) -> np.ndarray:
    """Cubic B-spline surface over the control points ``grid`` (n, n), sampled at (size, size).

    Control point ``i`` lies at ``(i - 1) / (n - 3)`` of the image's side, so that the outermost
    points lie outside the image.
    """
    n = grid.shape[0]
    position = (np.arange(size) + 0.5) / size * (n - 3) + 1
    base = np.minimum(position.astype(np.int64), n - 3)
    t = position - base
    weights = np.zeros((size, n))
    basis = (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )
    for k, weight in enumerate(basis):
        weights[np.arange(size), base + k - 1] = weight
    return weights @ grid @ weights.T


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise of about ``cells`` bumps along a side, roughly in [-1, 1], (size, size)."""
    return upsample((rng.random((cells + 3, cells + 3)) * 2 - 1) * 1.5, size)


@dataclass
class Texture:
    """A periodic texture: two independent fields of one spectrum, and how they become colour.

    Args:
        field: Real: place along the palette (tone); imaginary: variation of hue (accent); each of
            mean 0 and deviation 1. The first row and column are repeated, (S + 1, S + 1).
        warp_x: Displacement of the texture's flow in pixels, (S, S).
        warp_y: The same along y.
        heading: How far the texture is turned in the image, in radians.
        palette: RGB from shadow to light, (4, 3).
        tint: RGB added for one deviation of ``accent``, (3,).
    """

    field: np.ndarray
    warp_x: np.ndarray
    warp_y: np.ndarray
    heading: float
    palette: np.ndarray
    tint: np.ndarray

    def sample(
        self, index: np.ndarray, turn=0.0, zoom=1.0, shift=(0.0, 0.0)
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tone and accent of some pixels, read from elsewhere on the texture, turned and zoomed.

        Args:
            index: Flat indices of the pixels that are wanted, (n,).
            turn: Angle in radians, on top of the texture's heading.
            zoom: Above 1 makes the texture coarser.
            shift: Displacement (x, y) in pixels; the texture is periodic.

        Returns:
            ``(tone, accent)``, each (n,).
        """
        size = self.warp_x.shape[0]
        row, column = np.divmod(index, size)
        x, y = column + self.warp_x.ravel()[index], row + self.warp_y.ravel()[index]
        turn = turn + self.heading
        cos, sin = np.cos(turn) / zoom, np.sin(turn) / zoom
        u, v = cos * x - sin * y + shift[0], sin * x + cos * y + shift[1]
        u_floor, v_floor = np.floor(u), np.floor(v)
        fu, fv = u - u_floor, v - v_floor
        # `field` repeats its first row and column at the end: the neighbours need no modulus.
        corner = (v_floor.astype(np.int64) % size) * (size + 1) + u_floor.astype(np.int64) % size
        field = self.field.ravel()
        left = field[corner]
        upper = left + fu * (field[corner + 1] - left)
        corner += size + 1
        left = field[corner]
        lower = left + fu * (field[corner + 1] - left)
        found = upper + fv * (lower - upper)
        return found.real, found.imag

    def colour(self, tone: np.ndarray, accent: np.ndarray) -> np.ndarray:
        """RGB in [0, 255] as float, (h, w, 3)."""
        # An algebraic sigmoid instead of the normal distribution: equal use of the whole palette.
        place = 0.5 + 0.5 * tone / np.sqrt(1 + tone**2)
        stops = np.linspace(0, 1, len(self.palette))
        table = np.stack([np.interp(np.linspace(0, 1, 1024), stops, c) for c in self.palette.T], 1)
        rgb = table[(place * 1023).astype(np.int64)]
        return rgb + accent[..., None] * self.tint


def _noise(rng: np.random.Generator, size: int, stretch: float) -> tuple[np.ndarray, np.ndarray]:
    """Two fields of random phase with a band of preferred frequencies, longer along x."""
    # Equal steps of the logarithm: twice as coarse is as likely as twice as fine.
    peak = 6.5 * 2.6 ** uniform(rng, 0, 1)
    patches, steepness = uniform(rng, 0.3, 1.4), uniform(rng, 1.2, 1.6)
    u = np.fft.fftfreq(size, 1 / size)
    u, v = u[None, :], u[:, None]
    ratio = ((u * stretch) ** 2 + (v / stretch) ** 2) / peak**2
    amplitude = np.sqrt(ratio) / (1 + ratio) ** steepness
    # Two octaves below the band and without direction: patches of light and of shade.
    coarse = (u**2 + v**2) * (16 / peak**2)
    amplitude += patches * 3 * coarse / (1 + coarse) ** 2.5
    # Frequencies near Nyquist would be lost by interpolation wherever the texture is turned, and
    # that loss alone would give the object away.
    amplitude /= 1 + ((u**2 + v**2) / (0.28 * size) ** 2) ** 3
    spectrum = rng.random((size, size)) - 0.5 + 1j * (rng.random((size, size)) - 0.5)
    field = np.fft.ifft2(spectrum * amplitude)
    return _unit(field.real), _unit(field.imag)


def _unit(field: np.ndarray) -> np.ndarray:
    return (field - field.mean()) / field.std()


def _cells(rng: np.random.Generator, size: int) -> np.ndarray:
    """Scales or pebbles: light in their middles, dark in the gaps, each of its own grey."""
    across = randint(rng, 6, 10)
    along = randint(rng, 2 * across, 3 * across)
    x, y = np.meshgrid(
        (np.arange(size) + 0.5) * across / size, (np.arange(size) + 0.5) * along / size
    )
    column, row = x.astype(np.int64), y.astype(np.int64)
    jitter_x, jitter_y = 0.8 * rng.random((2, along, across)) + 0.1
    grey = rng.random((along, across))
    nearest, second = np.full((size, size), 9.0), np.full((size, size), 9.0)
    owner = np.zeros((size, size))
    for step_y in (-1, 0, 1):
        for step_x in (-1, 0, 1):
            # The modulus makes the field periodic.
            at = (row + step_y) % along, (column + step_x) % across
            distance = (column + step_x + jitter_x[at] - x) ** 2
            distance += (row + step_y + jitter_y[at] - y) ** 2
            closer = distance < nearest
            second = np.minimum(np.maximum(distance, nearest), second)
            nearest = np.where(closer, distance, nearest)
            owner = np.where(closer, grey[at], owner)
    gap = np.sqrt(second) - np.sqrt(nearest)
    return 1.4 * gap / (gap + 0.25) + 0.8 * owner


def make_texture(rng: np.random.Generator, size: int) -> Texture:
    """A texture of a random style of ``STYLES``, with a preferred direction and a flow."""
    style = STYLES[randint(rng, 0, len(STYLES) - 1)]
    # The direction is what a turned piece is told by: no style is without one.
    longest = 7.0 if style == "strands" else 3.4
    shortest = 4.0 if style == "strands" else 1.9
    tone, accent = _noise(rng, size, np.sqrt(uniform(rng, shortest, longest)))
    if style in ("ridged", "strands"):
        tone = _unit(np.sqrt(np.abs(tone) + 0.02))
    elif style == "stepped":
        step = np.floor(tone * 1.4)
        rest = np.clip((tone * 1.4 - step - 0.5) * 3 + 0.5, 0, 1)
        tone = _unit((step + rest * rest * (3 - 2 * rest)) / 1.4) + 0.25 * accent
    elif style == "spotted":
        spot = np.clip((tone - 0.6) * 2.5 + 0.5, 0, 1)
        tone = _unit(-2.5 * spot * spot * (3 - 2 * spot) + 0.4 * tone + 0.3 * accent)
    elif style == "cells":
        tone = _unit(_cells(rng, size) + 0.15 * tone)
    flow = uniform(rng, 0.01, 0.05) * size
    warp_x, warp_y = (flow * smooth_noise(rng, size, 4) for _ in range(2))
    names = list(PALETTES)
    first, second = (
        np.array(PALETTES[names[randint(rng, 0, len(names) - 1)]], np.float64) for _ in range(2)
    )
    palette = first + uniform(rng, 0, 0.5) * (second - first)
    palette = palette * uniform(rng, 0.85, 1.12) + (rng.random((1, 3)) - 0.5) * 10
    heading, tint = uniform(rng, 0, 2 * np.pi), (rng.random(3) - 0.5) * 14
    field = np.pad(tone + 1j * accent, (0, 1), mode="wrap")
    return Texture(field, warp_x, warp_y, heading, palette, tint)

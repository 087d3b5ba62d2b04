"""Textures and silhouettes of the synthetic camouflage images, in numpy alone.

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
}


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
    weights = (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )
    rows = sum(w[:, None] * grid[base + k - 1] for k, w in enumerate(weights))
    columns = np.ascontiguousarray(rows.T)
    return sum(w[:, None] * columns[base + k - 1] for k, w in enumerate(weights)).T


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise of about ``cells`` bumps along a side, roughly in [-1, 1], (size, size)."""
    return upsample((rng.random((cells + 3, cells + 3)) * 2 - 1) * 1.5, size)


@dataclass
class Texture:
    """A periodic texture: two independent fields of one spectrum, and how they become colour.

    Args:
        tone: Place along the palette, mean 0 and deviation 1, (S, S).
        accent: Variation of hue, mean 0 and deviation 1, (S, S).
        warp_x: Displacement of the texture's flow in pixels, (S, S).
        warp_y: The same along y.
        style: ``plain``, ``ridged`` (veins) or ``stepped`` (patches with crisp edges).
        palette: RGB from shadow to light, (4, 3).
        tint: RGB added for one deviation of ``accent``, (3,).
    """

    tone: np.ndarray
    accent: np.ndarray
    warp_x: np.ndarray
    warp_y: np.ndarray
    style: str
    palette: np.ndarray
    tint: np.ndarray

    def sample(self, rows: slice, cols: slice, turn=0.0, zoom=1.0, shift=(0.0, 0.0)):
        """Tone and accent of a window, read from elsewhere on the texture, turned and zoomed.

        Args:
            rows: Rows of the image that are wanted, of length h.
            cols: Columns of the image that are wanted, of length w.
            turn: Angle in radians.
            zoom: Above 1 makes the texture coarser.
            shift: Displacement (x, y) in pixels; the texture is periodic.

        Returns:
            ``(tone, accent)``, each (h, w).
        """
        size = self.tone.shape[0]
        y, x = np.mgrid[rows, cols].astype(np.float64)
        x += self.warp_x[rows, cols]
        y += self.warp_y[rows, cols]
        cos, sin = np.cos(turn) / zoom, np.sin(turn) / zoom
        u, v = cos * x - sin * y + shift[0], sin * x + cos * y + shift[1]
        u_floor, v_floor = np.floor(u), np.floor(v)
        fu, fv = u - u_floor, v - v_floor
        u0, v0 = u_floor.astype(np.int64) % size, v_floor.astype(np.int64) % size
        u1, v1 = (u0 + 1) % size, (v0 + 1) % size
        corners = (v0 * size + u0, v0 * size + u1, v1 * size + u0, v1 * size + u1)
        weights = ((1 - fv) * (1 - fu), (1 - fv) * fu, fv * (1 - fu), fv * fu)
        return tuple(
            sum(w * field.ravel()[c] for w, c in zip(weights, corners, strict=True))
            for field in (self.tone, self.accent)
        )

    def colour(self, tone: np.ndarray, accent: np.ndarray) -> np.ndarray:
        """RGB in [0, 255] as float, (h, w, 3)."""
        # An algebraic sigmoid instead of the normal distribution: equal use of the whole palette.
        place = 0.5 + 0.5 * tone / np.sqrt(1 + tone**2)
        stops = np.linspace(0, 1, len(self.palette))
        table = np.stack([np.interp(np.linspace(0, 1, 1024), stops, c) for c in self.palette.T], 1)
        rgb = table[(place * 1023).astype(np.int64)]
        return rgb + accent[..., None] * self.tint


def make_texture(rng: np.random.Generator, size: int) -> Texture:
    """Random-phase noise with a band of preferred frequencies, a preferred direction and a flow."""
    peak, patches = uniform(rng, 7, 15), uniform(rng, 0.4, 1.4)
    steepness = uniform(rng, 1.2, 1.6)
    stretch = np.sqrt(uniform(rng, 1.9, 3.4))
    angle = uniform(rng, 0, np.pi)
    style = ("plain", "ridged", "stepped")[randint(rng, 0, 2)]

    u = np.fft.fftfreq(size, 1 / size)
    u, v = u[None, :], u[:, None]
    along = (u * np.cos(angle) + v * np.sin(angle)) * stretch
    across = (v * np.cos(angle) - u * np.sin(angle)) / stretch
    ratio = (along**2 + across**2) / peak**2
    amplitude = np.sqrt(ratio) / (1 + ratio) ** steepness
    # Two octaves below the band and without direction: patches of light and of shade.
    coarse = (u**2 + v**2) * (16 / peak**2)
    amplitude += patches * 3 * coarse / (1 + coarse) ** 2.5
    # Frequencies near Nyquist would be lost by interpolation wherever the texture is turned, and
    # that loss alone would give the object away.
    amplitude /= 1 + ((u**2 + v**2) / (0.28 * size) ** 2) ** 3
    spectrum = rng.random((size, size)) - 0.5 + 1j * (rng.random((size, size)) - 0.5)
    field = np.fft.ifft2(spectrum * amplitude)
    tone, accent = (part / part.std() for part in (field.real, field.imag))
    if style == "ridged":
        tone = np.sqrt(np.abs(tone) + 0.02)
        tone = (tone - tone.mean()) / tone.std()
    elif style == "stepped":
        step = np.floor(tone * 1.4)
        rest = np.clip((tone * 1.4 - step - 0.5) * 3 + 0.5, 0, 1)
        tone = (step + rest * rest * (3 - 2 * rest)) / 1.4
        tone = (tone - tone.mean()) / tone.std() + 0.25 * accent
    flow = uniform(rng, 0.01, 0.05) * size
    warp_x, warp_y = (flow * smooth_noise(rng, size, 4) for _ in range(2))
    names = list(PALETTES)
    palette = np.array(PALETTES[names[randint(rng, 0, len(names) - 1)]], np.float64)
    palette = palette * uniform(rng, 0.85, 1.12) + (rng.random((1, 3)) - 0.5) * 10
    return Texture(tone, accent, warp_x, warp_y, style, palette, (rng.random(3) - 0.5) * 14)


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


def _inside(discs: np.ndarray, x: np.ndarray, y: np.ndarray, softness: float) -> np.ndarray:
    """Depth below the outline of the discs' smooth union; negative outside."""
    depth = None
    for cx, cy, radius in discs:
        one = radius - np.sqrt((x - cx) ** 2 + (y - cy) ** 2)
        if depth is None:
            depth = one
            continue
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
        shape: ``creature`` or ``blob``.

    Returns:
        Approximate depth below the outline in pixels, positive inside, (size, size).
    """
    discs = creature(rng) if shape == "creature" else blob(rng)
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
    n = min(size, 160) + 3
    axis = (np.arange(n) - 1) / (n - 3)
    depth = _inside(discs, axis[None], axis[:, None], 0.15 * scale) * size
    rim = smooth_noise(rng, size, 7) + 0.5 * smooth_noise(rng, size, 18)
    return upsample(depth, size) + rim * (0.05 * scale * size)

"""Camouflage images made on the fly: exact masks, no download, the same on every machine."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from mmengine.dataset import BaseDataset

from codmoe.registry import DATASETS, TRANSFORMS, suggest

from .synthetic_textures import (
    Texture,
    make_texture,
    randint,
    silhouette,
    smooth_noise,
    uniform,
)

KINDS = ("clutter", "figure", "multiscale", "ambiguous")
MIN_AREA, MAX_AREA = 0.01, 0.4


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kinds: {kind!r} is no kind of synthetic image; {suggest(kind, KINDS)}")


def _check_size(image_size: int) -> None:
    if image_size < 32:
        raise ValueError(f"image_size={image_size} is too small for textures; use 32 or more")


class _Scene:
    """An image in the making: the fields that become colour, and the light that falls on them."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size = rng, size
        self.texture: Texture = make_texture(rng, size)
        everything = slice(0, size)
        self.tone, self.accent = self.texture.sample(everything, everything)
        self.daylight = 1 + uniform(rng, 0.05, 0.16) * smooth_noise(rng, size, 3)
        self.light = self.daylight.copy()
        angle = uniform(rng, 0, 2 * np.pi)
        self.sun = np.cos(angle), np.sin(angle)
        self.mask = np.zeros((size, size), bool)

    def add(
        self,
        depth: np.ndarray,
        turn: float,
        zoom: float,
        rim: float,
        soft: float = 0.0,
        shade: float = 0.0,
        contrast: float = 1.0,
        is_object: bool = True,
    ) -> None:
        """Lay a piece of the scene's own texture over what lies under an outline.

        Args:
            depth: Depth below the outline in pixels, (size, size).
            turn: How far the texture is turned, in radians.
            zoom: How much coarser the texture is.
            rim: Strength of the contour's shading; the lit and the far side differ.
            soft: Half the width of the blended rim, as a share of the image's side.
            shade: Change of brightness inside.
            contrast: Contrast of the texture inside.
            is_object: Whether the piece belongs to the mask.
        """
        rng, size = self.rng, self.size
        shift = rng.random(2) * size
        width = max(soft * size, 0.5)
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
        patches = self.texture.sample(rows, cols, turn, zoom, shift)
        for field, patch in zip((self.tone, self.accent), patches, strict=True):
            under = field[window]
            # A piece from elsewhere is by chance lighter or greener than what it covers, the more
            # so the smaller it is; that would be a cue of colour, so most of it is taken back.
            mean = patch[inside].mean()
            patch = mean + contrast * (patch - mean) + 0.8 * (under[inside].mean() - mean)
            field[window] = under + alpha * (patch - under)
        # Shading falls off from the contour to both sides, lighter where the contour faces the sun.
        slope_y, slope_x = np.gradient(depth)
        facing = -(slope_x * self.sun[0] + slope_y * self.sun[1])
        reach = 0.016 * size + width
        near = 1 / (1 + (depth / reach) ** 2)
        # What lies on top hides the shading beneath it.
        light = self.light[window] + alpha * (self.daylight[window] - self.light[window])
        relief = rim * near * (0.7 * facing * alpha - 0.35 - 0.35 * alpha)
        self.light[window] = light * (1 + relief + shade * alpha)
        if is_object:
            self.mask[window] |= inside

    def render(self) -> np.ndarray:
        """The image, (size, size, 3) uint8 RGB."""
        size, rng = self.size, self.rng
        slope_y, slope_x = np.gradient(self.tone)
        relief = (slope_x * self.sun[0] + slope_y * self.sun[1]) * (size / 96) ** 0.5
        light = self.light * (1 - 0.10 * np.clip(relief, -2.5, 2.5))
        rgb = self.texture.colour(self.tone, self.accent) * light[..., None]
        rgb += ((rng.random((size, size)) + rng.random((size, size)) - 1) * 7)[..., None]
        return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def _signed(rng: np.random.Generator, low: float, high: float) -> float:
    return uniform(rng, low, high) * (1 if rng.random() < 0.5 else -1)


def _zoom(rng: np.random.Generator, low: float, high: float) -> float:
    factor = uniform(rng, low, high)
    return factor if rng.random() < 0.75 else 1 / factor


def _shape(rng: np.random.Generator) -> str:
    return "creature" if rng.random() < 0.65 else "blob"


def _outlines(rng: np.random.Generator, kind: str, size: int) -> list[np.ndarray]:
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
        depths = [silhouette(rng, size, a, _shape(rng)) for a in areas]
        covered = float((np.max(depths, axis=0) > 0).mean())
        if MIN_AREA <= covered <= MAX_AREA:
            return depths
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return [0.2 * size - np.sqrt(x**2 + y**2)]


def generate(
    seed: int | Sequence[int] | np.random.Generator, kind: str, image_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """One camouflage image and its exact mask.

    The object is a piece of the image's own texture, read from elsewhere, turned and zoomed: its
    spectrum and palette are those of its surroundings. What betrays it depends on the kind:

    * ``clutter``: turned texture; pieces of unturned texture with like rims lie all around.
    * ``figure``: one closed contour, with a slight change of direction and of shade.
    * ``multiscale``: turned texture, on one tiny, one huge or several objects of unlike sizes.
    * ``ambiguous``: turned texture that blends into the surroundings; no contour. The mask is
      where the object's share exceeds one half.

    Args:
        seed: A seed, or several to be mixed, or a generator (which is then advanced).
        kind: One of ``KINDS``.
        image_size: Side of the square image in pixels, at least 32.

    Returns:
        The image, (image_size, image_size, 3) uint8 RGB, and the mask, (image_size, image_size)
        uint8 in {0, 1}.

    Raises:
        ValueError: ``kind`` is unknown or ``image_size`` too small.
    """
    _check_kind(kind)
    _check_size(image_size)
    rng = seed
    if not isinstance(rng, np.random.Generator):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    scene = _Scene(rng, image_size)
    depths = _outlines(rng, kind, image_size)
    if kind == "clutter":
        for _ in range(randint(rng, 5, 9)):
            depth = silhouette(rng, image_size, uniform(rng, 0.02, 0.1), _shape(rng))
            scene.add(depth, _signed(rng, 0, 0.12), 1.0, rim=0.30, is_object=False)
        turn, zoom = _signed(rng, 1.0, 1.57), _zoom(rng, 1.3, 1.5)
        scene.add(depths[0], turn, zoom, rim=0.36, contrast=0.8)
    elif kind == "figure":
        turn, zoom, shade = _signed(rng, 0.4, 0.8), _zoom(rng, 1.05, 1.2), _signed(rng, 0.03, 0.07)
        scene.add(depths[0], turn, zoom, rim=0.55, shade=shade, contrast=0.9)
    elif kind == "multiscale":
        turn, zoom = _signed(rng, 1.0, 1.57), _zoom(rng, 1.2, 1.5)
        for depth in depths:
            scene.add(depth, turn, zoom, rim=0.42, contrast=0.8)
    else:
        soft = uniform(rng, 0.02, 0.045)
        turn, zoom = _signed(rng, 1.0, 1.57), _zoom(rng, 1.25, 1.5)
        scene.add(depths[0], turn, zoom, rim=0.0, soft=soft, contrast=0.85)
    return scene.render(), scene.mask.astype(np.uint8)


@DATASETS.register_module()
class SyntheticCamouflage(BaseDataset):
    """Camouflage images made from a seed; what the project runs on before any download.

    Item ``i`` depends on ``seed``, ``part``, ``kinds``, ``image_size`` and ``i`` alone: not on
    ``length``, on the order of access or on the number of workers. See :func:`generate`.

    Args:
        length: Number of images.
        image_size: Side of the square images in pixels, at least 32.
        seed: Seed of the whole data set, not negative.
        kinds: Kinds that take turns by index, so that every prefix is balanced; None means all of
            ``clutter``, ``figure``, ``multiscale`` and ``ambiguous``.
        part: Any name (``train``, ``router``, ``val``, ``test``); different names never share an
            image.
        name: Name of the data set in tables.
        cache: Keep every image made in memory: 0.63 MB each at 448 px, in every worker process.
        pipeline: Transforms, as configs or callables.
        test_mode: A pipeline that returns None is an error instead of a reason to draw again.
        **kwargs: Further arguments of :class:`mmengine.dataset.BaseDataset`.

    Raises:
        ValueError: ``length``, ``image_size``, ``seed`` or ``kinds`` is out of range.
    """

    def __init__(
        self,
        *,
        length: int = 1000,
        image_size: int = 448,
        seed: int = 0,
        kinds: Sequence[str] | None = None,
        part: str = "train",
        name: str = "Synthetic",
        cache: bool = True,
        pipeline: Sequence[dict | Callable] = (),
        test_mode: bool = False,
        **kwargs,
    ) -> None:
        if length < 1:
            raise ValueError(f"length={length} leaves no image; use 1 or more")
        _check_size(image_size)
        if seed < 0:
            raise ValueError(f"seed={seed} is negative; use 0 or more")
        kinds = (kinds,) if isinstance(kinds, str) else tuple(KINDS if kinds is None else kinds)
        if not kinds:
            raise ValueError(f"kinds is empty; choose from {', '.join(KINDS)}, or None for all")
        for kind in kinds:
            _check_kind(kind)
        self.length, self.image_size, self.seed = length, image_size, seed
        self.kinds, self.part, self.name = kinds, part, name
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] | None = {} if cache else None
        transforms = [TRANSFORMS.build(t) if isinstance(t, dict) else t for t in pipeline]
        super().__init__(pipeline=transforms, test_mode=test_mode, **kwargs)

    def load_data_list(self) -> list[dict]:
        """One light record an image; the pixels are made by :meth:`prepare_data`."""
        records = []
        for index in range(self.length):
            kind = self.kinds[index % len(self.kinds)]
            records.append(
                {
                    "index": index,
                    "stem": f"{kind}_{index:05d}",
                    "kind": kind,
                    "dataset": self.name,
                    "img_path": "",
                    "mask_path": "",
                }
            )
        return records

    def sample(self, index: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) and mask (H, W) of one record; the arrays are the caller's own."""
        if self._cache is not None and index in self._cache:
            image, bits = self._cache[index]
            mask = np.unpackbits(bits, count=self.image_size**2)
            return image.copy(), mask.reshape(self.image_size, self.image_size)
        words = (self.seed, zlib.crc32(self.part.encode()), index)
        image, mask = generate(words, kind, self.image_size)
        if self._cache is not None:
            self._cache[index] = image.copy(), np.packbits(mask)
        return image, mask

    def prepare_data(self, idx: int) -> dict | None:
        """The record of ``idx`` with its image and mask, after the pipeline."""
        info = self.get_data_info(idx)
        image, mask = self.sample(info["index"], info["kind"])
        info.update(img=image, gt_seg_map=mask, gt_mask=mask)
        info.update(ori_shape=mask.shape, img_shape=mask.shape)
        return self.pipeline(info)

"""Blends the objects of the synthetic data set into the user's own photographs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from codmoe.datasets.layouts import files_by_stem, resolve_root
from codmoe.datasets.reading import read_image
from codmoe.datasets.splits import split_indices
from codmoe.datasets.synthetic.camouflage import SyntheticCamouflage, generator
from codmoe.datasets.synthetic.scene import (
    Piece,
    cast_shadow,
    draw_distractors,
    draw_object,
    draw_shadow,
    outlines,
    rim_shading,
)
from codmoe.datasets.synthetic.textures import make_texture, uniform
from codmoe.messages import suggest
from codmoe.registry import DATASETS

FILLS = ("photo", "synthetic")
BLENDS = ("feather", "poisson")


def random_square(rng: np.random.Generator, photo: np.ndarray, size: int) -> np.ndarray:
    """A square of the photograph of at least half its shorter side, (size, size, 3) uint8."""
    height, width = photo.shape[:2]
    side = min(height, width)
    # Not enlarged, as far as the photograph allows: blur would tell it from the object.
    side = max(int(side * uniform(rng, 0.5, 1.0)), min(size, side))
    y, x = int(rng.random() * (height - side + 1)), int(rng.random() * (width - side + 1))
    square = photo[y : y + side, x : x + side]
    method = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return cv2.resize(square, (size, size), interpolation=method)


def matched(patch: np.ndarray, under: np.ndarray, inside: np.ndarray, share: float) -> np.ndarray:
    """The patch with mean and deviation of each channel as below it.

    Args:
        patch: Pixels of the object, (H, W, 3) float.
        under: Pixels that it will cover, (H, W, 3) float.
        inside: Where the object is, (H, W) bool.
        share: Contrast of the result, as a share of the contrast below it.
    """
    own, other = patch[inside], under[inside]
    scale = share * other.std(0) / np.maximum(own.std(0), 1.0)
    return (patch - own.mean(0)) * np.clip(scale, 0.25, 2.5) + other.mean(0)


def _fill(
    rng: np.random.Generator, square: np.ndarray, piece: Piece, fill: str, palette: np.ndarray
) -> np.ndarray:
    """The object's texture over the whole square, (size, size, 3) float."""
    size = len(square)
    if fill == "synthetic":
        texture = make_texture(rng, size)
        texture.palette = palette
        fields = texture.sample(np.arange(size * size), piece.turn, piece.zoom)
        return texture.colour(*(field.reshape(size, size) for field in fields))
    # The photograph itself, turned about a random point, mirrored beyond its border.
    centre = rng.random(2) * size
    cos, sin = np.cos(piece.turn) / piece.zoom, np.sin(piece.turn) / piece.zoom
    linear = np.array([[cos, -sin], [sin, cos]])
    matrix = np.column_stack([linear, centre - linear @ np.array([size, size]) / 2])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    turned = cv2.warpAffine(
        square, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101
    )
    return turned.astype(np.float64)


def _palette(square: np.ndarray) -> np.ndarray:
    """Four colours of the photograph from shadow to light, (4, 3)."""
    pixels = cv2.resize(square, (24, 24), interpolation=cv2.INTER_AREA).reshape(-1, 3)
    order = np.argsort(pixels.sum(1), kind="stable")
    return np.stack([pixels[part].mean(0) for part in np.array_split(order, 4)])


def poisson_blend(patch: np.ndarray, under: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The patch's gradients and, along the outline, the colours around it.

    Paper: Perez et al., "Poisson Image Editing", SIGGRAPH 2003.

    Args:
        patch: Pixels of the object, (H, W, 3) float.
        under: The image that it is laid on, (H, W, 3) float.
        inside: Where the object is, (H, W) bool.
    """
    # OpenCV refuses objects that touch the border, and takes the centre of their bounding box.
    pad = 2
    mask = np.pad(inside.astype(np.uint8) * 255, pad)
    sides = (pad, pad), (pad, pad), (0, 0)
    source, target = (
        np.pad(np.clip(np.rint(image), 0, 255).astype(np.uint8), sides, "reflect")
        for image in (patch, under)
    )
    x, y, width, height = cv2.boundingRect(mask)
    centre = (x + width // 2, y + height // 2)
    out = cv2.seamlessClone(source, target, mask, centre, cv2.NORMAL_CLONE)
    return out[pad:-pad, pad:-pad].astype(np.float64)


def compose(
    rng: np.random.Generator,
    kind: str,
    photo: np.ndarray,
    image_size: int,
    *,
    fill: str = "photo",
    blend: str = "feather",
) -> tuple[np.ndarray, np.ndarray]:
    """One photograph with an object of a kind blended into it, and the object's exact mask.

    Args:
        rng: Where the randomness comes from.
        kind: One of ``KINDS``; see :func:`generate`.
        photo: RGB, (H, W, 3) uint8.
        image_size: Side of the square image in pixels.
        fill: ``photo``: a turned piece of the photograph; ``synthetic``: a synthetic texture in the
            photograph's colours.
        blend: ``feather``: colours matched to what lies below, soft rim; ``poisson``: gradients of
            the object, colours of its border. The kind ``ambiguous`` is always feathered, as its
            mask is where the object's share exceeds one half.

    Returns:
        Image, (image_size, image_size, 3) uint8 RGB, and mask, (image_size, image_size) uint8 in
        {0, 1}.
    """
    square = random_square(rng, photo, image_size)
    image, palette = square.astype(np.float64), _palette(square)
    angle = uniform(rng, 0, 2 * np.pi)
    sun = np.cos(angle), np.sin(angle)
    length, strength = draw_shadow(rng, kind)
    things = [(*one, False) for one in draw_distractors(rng, kind, image_size)]
    depths, piece = outlines(rng, kind, image_size), draw_object(rng, kind)
    things += [(depth, piece, True) for depth in depths]
    mask = np.zeros((image_size, image_size), bool)
    for depth, piece, is_object in things:
        width = max(piece.soft * image_size, 0.5)
        alpha = np.clip(0.5 + 0.5 * depth / width, 0, 1)
        inside = alpha > 0.5
        if not inside.any():
            continue
        light = np.ones_like(depth)
        cast_shadow(light, depth, sun, length, strength)
        image *= (light + alpha * (1 - light))[..., None]
        patch = _fill(rng, square, piece, fill if is_object else "photo", palette)
        patch = matched(patch, image, inside, piece.contrast)
        if blend == "poisson" and piece.soft == 0:
            image = poisson_blend(patch, image, inside)
        else:
            image += alpha[..., None] * (patch - image)
        relief = rim_shading(depth, alpha, sun, 0.016 * image_size + width)
        image *= (1 + piece.rim * relief + piece.shade * alpha)[..., None]
        mask = mask | inside if is_object else mask & ~inside
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask.astype(np.uint8)


def _check(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"{name}={value!r}; {suggest(str(value), valid)}")


@DATASETS.register_module()
class CompositeCamouflage(SyntheticCamouflage):
    """Objects of the synthetic kinds in the user's photographs; see :func:`compose`.

    Item ``i`` follows from the seed, the part, the kinds, the size, ``i`` and the files' names and
    contents; unlike the synthetic images it may differ in single grey values between versions of
    OpenCV. Photographs should hold no such objects themselves: what lies in them counts as
    background.

    Args:
        photo_dir: Folder of photographs; found as :class:`CODDataset` does.
        fill: ``photo`` or ``synthetic``.
        blend: ``feather`` or ``poisson``.
        fractions: ``{part: share of the photographs}``. With it, ``part`` names one of them, and no
            two parts share a background; without it all parts use all photographs.
        name: Name of the data set in tables.
        **kwargs: Further arguments of :class:`SyntheticCamouflage`.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no image, or none is left for the part; or an argument is no choice.
    """

    def __init__(
        self,
        photo_dir: str | os.PathLike,
        *,
        fill: str = "photo",
        blend: str = "feather",
        fractions: Mapping[str, float] | None = None,
        name: str = "Composite",
        part: str = "train",
        **kwargs,
    ) -> None:
        _check("fill", fill, FILLS)
        _check("blend", blend, BLENDS)
        self.fill, self.blend = fill, blend
        folder = resolve_root(photo_dir)
        files = files_by_stem(folder, "photo_dir")
        if not files:
            raise ValueError(f"photo_dir: {folder} holds no photograph")
        stems = sorted(files)
        if fractions is not None:
            # One seed whatever the data set's: other images, and still the same photographs.
            chosen = split_indices(stems, fractions=fractions, seed=0, use=[part])
            if not chosen:
                raise ValueError(
                    f"part={part!r} is left without any of the {len(stems):,} photographs in "
                    f"{folder} under the fractions {dict(fractions)}"
                )
            stems = [stems[i] for i in chosen]
        self.photos: list[Path] = [files[stem] for stem in stems]
        if kwargs.get("visibility"):
            raise ValueError("visibility is of SyntheticCamouflage; composites take none")
        super().__init__(name=name, part=part, **kwargs)

    def make(self, index: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Image and mask, made anew."""
        rng = generator(*self.words(index))
        photo = read_image(str(self.photos[int(rng.random() * len(self.photos))]))
        return compose(rng, kind, photo, self.image_size, fill=self.fill, blend=self.blend)

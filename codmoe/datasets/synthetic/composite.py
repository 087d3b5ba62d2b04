"""Blends objects into the user's own photographs: synthetic ones, or ones cut out of others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from codmoe.datasets.layouts import files_by_stem, resolve_root
from codmoe.datasets.reading import read_image, read_mask, read_pair
from codmoe.datasets.splits import split_indices
from codmoe.datasets.synthetic.camouflage import SyntheticCamouflage, generator
from codmoe.datasets.synthetic.scene import (
    KINDS,
    MAX_AREA,
    MIN_AREA,
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
CUTOUTS = ("camouflaged", "salient", "whole")
"""Kinds that need photographs with masks; see :func:`paste`. ``whole`` is a photograph as it is."""
TRIES = 10


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
    """The patch (H, W, 3) float with mean and deviation of each channel as ``under`` it, likewise,
    where the object is (``inside``, (H, W) bool), and with this share of the contrast there.
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
    return _turned(rng, square, piece.turn, piece.zoom)


def _turned(rng: np.random.Generator, square: np.ndarray, turn: float, zoom: float) -> np.ndarray:
    """The photograph turned about a random point, mirrored beyond its border, float."""
    size = len(square)
    centre = rng.random(2) * size
    cos, sin = np.cos(turn) / zoom, np.sin(turn) / zoom
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
    own: np.ndarray | None = None,
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
        own: Mask of the object that the photograph holds itself, (H, W) in {0, 1}; what is seen of
            it is part of the truth.

    Returns:
        Image, (image_size, image_size, 3) uint8 RGB, and mask, (image_size, image_size) uint8 in
        {0, 1}.
    """
    planes = photo if own is None else np.dstack([photo, own.astype(np.uint8) * 255])
    square = random_square(rng, planes, image_size)
    mask = square[..., 3] > 127 if own is not None else np.zeros((image_size, image_size), bool)
    square = np.ascontiguousarray(square[..., :3])
    image, palette = square.astype(np.float64), _palette(square)
    angle = uniform(rng, 0, 2 * np.pi)
    sun = np.cos(angle), np.sin(angle)
    length, strength = draw_shadow(rng, kind)
    things = [(*one, False) for one in draw_distractors(rng, kind, image_size)]
    depths, piece = outlines(rng, kind, image_size), draw_object(rng, kind)
    things += [(depth, piece, True) for depth in depths]
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


def _window(
    rng: np.random.Generator, photo: np.ndarray, own: np.ndarray | None, size: int, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """The part of a photograph, of eight, that shows least of its own object, (size, size, 3)
    float, and where that object is in it, (size, size) bool. ``least``: smallest share of a side.
    """
    mask = np.zeros(photo.shape[:2], np.uint8) if own is None else own
    parts = []
    for _ in range(8):
        rows, cols = (_stretch(rng, side, least) for side in photo.shape[:2])
        parts.append((mask[rows, cols].mean(), rows, cols))
    _, rows, cols = min(parts, key=lambda part: part[0])  # the first drawn of equal ones
    method = cv2.INTER_AREA if min(photo.shape[:2]) > size else cv2.INTER_LINEAR
    square = cv2.resize(photo[rows, cols], (size, size), interpolation=method)
    there = cv2.resize(mask[rows, cols], (size, size), interpolation=cv2.INTER_NEAREST)
    return square.astype(np.float64), there > 0


def _stretch(rng: np.random.Generator, side: int, least: float) -> slice:
    length = max(int(side * uniform(rng, least, 1.0)), 1)
    start = int(rng.random() * (side - length + 1))
    return slice(start, start + length)


def _one_object(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """The mask of one of the large things in a mask, or, in half of the draws, of all."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    areas = stats[1:, cv2.CC_STAT_AREA]
    large = [i + 1 for i in range(count - 1) if areas[i] >= 0.3 * areas.max()]
    if len(large) < 2 or rng.random() < 0.5:
        return mask
    return (labels == large[int(rng.random() * len(large))]).astype(np.uint8)


def _laid_out(
    rng: np.random.Generator, photo: np.ndarray, mask: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """An object where it is to be pasted: its pixels, (size, size, 3) float, and its share of each
    pixel, (size, size) float in [0, 1].

    What its own photograph cuts off at a border lies at the same border again: else straight cuts
    would tell what was pasted.
    """
    height, width = mask.shape
    x, y, w, h = cv2.boundingRect(mask)
    cut = y <= 1, x <= 1, y + h >= height - 1, x + w >= width - 1  # top, left, bottom, right
    share = np.exp(uniform(rng, np.log(2 * MIN_AREA), np.log(MAX_AREA)))
    zoom = np.sqrt(share * size**2 / max(int(mask.sum()), 1))
    # Not enlarged much: blur would tell it from its surroundings.
    zoom = min(zoom, 1.6 * size / max(height, width), size / w, size / h)
    angle = 0.0 if any(cut) else np.radians(uniform(rng, -25, 25))
    mirror = -1 if rng.random() < 0.5 else 1
    if mirror < 0:
        cut = cut[0], cut[3], cut[2], cut[1]
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([mirror, 1])
    half = np.array([w, h]) * zoom / 2
    centre = half + rng.random(2) * np.maximum(size - 2 * half, 0)
    for axis, (low, high) in enumerate(((cut[1], cut[3]), (cut[0], cut[2]))):
        if low or high:
            centre[axis] = half[axis] - 1 if low else size - half[axis] + 1
    matrix = np.column_stack([linear, centre - linear @ (x + w / 2, y + h / 2)])
    if zoom < 0.6:  # the warp takes single pixels
        photo = cv2.GaussianBlur(photo, (0, 0), 0.4 / zoom)
    patch = cv2.warpAffine(photo, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
    alpha = cv2.warpAffine(mask * np.float32(1), matrix, (size, size))
    # From the outline inwards: outside it lies the other photograph's background.
    soft = cv2.GaussianBlur(alpha, (0, 0), uniform(rng, 0.6, 1.6) * size / 336)
    return patch.astype(np.float64), np.clip(2 * soft - 0.8, 0, 1)


def _hidden(rng: np.random.Generator, alpha: np.ndarray) -> np.ndarray:
    """The share of each pixel that is left where strands of the background cover the object."""
    size = len(alpha)
    grid = rng.random((3 + int(rng.random() * 6), 12 + int(rng.random() * 30)))
    noise = cv2.resize(grid if rng.random() < 0.7 else grid.T, (size, size), interpolation=2)
    limit = np.quantile(noise[alpha > 0.5], uniform(rng, 0.65, 0.95))
    return alpha * np.clip(0.5 + (limit - noise) * 12, 0, 1)


def _disguised(
    rng: np.random.Generator, patch: np.ndarray, image: np.ndarray, inside: np.ndarray
) -> np.ndarray:
    """An object with colours, and in part the fine texture, of what it is laid on."""
    size = len(image)
    as_below = matched(patch, image, inside, uniform(rng, 0.6, 1.1))
    patch = patch + uniform(rng, 0.5, 1.0) * (as_below - patch)
    sigma, share = uniform(rng, 0.008, 0.03) * size, uniform(rng, 0.0, 0.8)
    texture = _turned(rng, image, uniform(rng, -0.5, 0.5), uniform(rng, 0.8, 1.25))
    fine = [layer - cv2.GaussianBlur(layer, (0, 0), sigma) for layer in (patch, texture)]
    patch = patch + share * (fine[1] - fine[0])
    return poisson_blend(patch, image, inside) if rng.random() < 0.25 else patch


def paste(
    rng: np.random.Generator,
    kind: str,
    photo: np.ndarray,
    own: np.ndarray | None,
    donor: tuple[np.ndarray, np.ndarray],
    image_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """An object cut out of one photograph and laid into another.

    Where the other's own object is still to be seen, it is part of the truth.

    Args:
        rng: Where the randomness comes from.
        kind: ``camouflaged``: the object takes colours and fine texture of what it covers, and
            strands of it may lie before the object; ``salient``: it keeps its own.
        photo: The background, RGB, (H, W, 3) uint8.
        own: Mask of the object that it holds itself, (H, W) uint8 in {0, 1}; None for none.
        donor: Photograph and mask of the object.
        image_size: Side of the square image in pixels.

    Returns:
        Image, (image_size, image_size, 3) uint8 RGB, and mask, (image_size, image_size) uint8 in
        {0, 1}.
    """
    # Beside an object that stands out, nobody looks for one that hides.
    image, mask = _window(rng, photo, own, image_size, 0.4 if kind == "camouflaged" else 0.6)
    for _ in range(TRIES):
        patch, alpha = _laid_out(rng, donor[0], _one_object(rng, donor[1]), image_size)
        inside = alpha > 0.5
        if inside.mean() >= MIN_AREA / 2:
            break
    else:
        return image.astype(np.uint8), mask.astype(np.uint8)
    if kind == "camouflaged":
        patch = _disguised(rng, patch, image, inside)
        if rng.random() < 0.35:
            alpha = _hidden(rng, alpha)
    else:
        drawn = image[inside].mean(0) - patch[inside].mean(0)
        patch = patch + uniform(rng, 0.0, 0.4) * drawn
    image += alpha[..., None] * (patch - image)
    mask |= alpha > 0.5
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask.astype(np.uint8)


def _check(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"{name}={value!r}; {suggest(str(value), valid)}")


@DATASETS.register_module()
class CompositeCamouflage(SyntheticCamouflage):
    """Objects in the user's photographs: of the synthetic kinds (:func:`compose`), or with
    ``mask_dir`` real ones, cut out of one photograph and laid into another (:func:`paste`), beside
    the photographs themselves.

    Item ``i`` follows from the seed, the part, the kinds, the size, ``i`` and the files' names and
    contents; unlike the synthetic images it may differ in single grey values between versions of
    OpenCV. Without masks, photographs should hold no such objects themselves: what lies in them
    counts as background.

    Args:
        photo_dir: Folder of photographs; found as :class:`CODDataset` does.
        mask_dir: Folder of masks of equal stem: objects to cut out. ``kinds`` is then by default
            ``camouflaged``, ``salient`` and ``whole`` (a photograph with its own mask). In all
            kinds what is seen of a photograph's own object is object, too.
        data_root: Folder that both lie in; found as :class:`CODDataset` does.
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

    all_kinds = (*KINDS, *CUTOUTS)

    def __init__(
        self,
        photo_dir: str | os.PathLike,
        *,
        mask_dir: str | os.PathLike | None = None,
        data_root: str | os.PathLike = "",
        fill: str = "photo",
        blend: str = "feather",
        fractions: Mapping[str, float] | None = None,
        name: str = "Composite",
        part: str = "train",
        kinds: str | Sequence[str] | None = None,
        **kwargs,
    ) -> None:
        _check("fill", fill, FILLS)
        _check("blend", blend, BLENDS)
        self.fill, self.blend = fill, blend
        folder = resolve_root(Path(data_root) / photo_dir)
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
        masks: dict[str, Path] = {}
        if mask_dir is not None:
            masks = files_by_stem(resolve_root(Path(data_root) / mask_dir), "mask_dir")
        self.masks = {files[stem]: masks[stem] for stem in stems if stem in masks}
        self.donors = list(self.masks)
        kinds = (KINDS if mask_dir is None else CUTOUTS) if kinds is None else kinds
        super().__init__(name=name, part=part, kinds=kinds, **kwargs)
        cut = [kind for kind in self.kinds if kind in CUTOUTS]
        if cut and len(self.donors) < 2:
            raise ValueError(
                f"kinds: {cut[0]!r} needs objects of two photographs or more, and {folder} has "
                f"{len(self.donors)} with a mask of equal stem in mask_dir={mask_dir!r}"
            )

    def make(self, index: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Image and mask, made anew."""
        rng = generator(*self.words(index))
        if kind in CUTOUTS:
            return self._cut_out(rng, kind)
        path = self.photos[int(rng.random() * len(self.photos))]
        photo, own = read_image(str(path)), self._own(path)
        return compose(rng, kind, photo, self.image_size, fill=self.fill, blend=self.blend, own=own)

    def _own(self, photo: Path) -> np.ndarray | None:
        """Mask of a photograph's own object, where there is one."""
        return read_mask(str(self.masks[photo])).pixels if photo in self.masks else None

    def _cut_out(self, rng: np.random.Generator, kind: str) -> tuple[np.ndarray, np.ndarray]:
        donor = self.donors[int(rng.random() * len(self.donors))]
        image, mask = read_pair(str(donor), str(self.masks[donor]))
        if kind == "whole":
            size = (self.image_size, self.image_size)
            return cv2.resize(image, size), cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        others = [path for path in self.photos if path != donor]
        other = others[int(rng.random() * len(others))]
        photo, own = read_image(str(other)), self._own(other)
        return paste(rng, kind, photo, own, (image, mask), self.image_size)

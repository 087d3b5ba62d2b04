"""Makes camouflage images on the fly: exact masks, no download, the same on every machine."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from mmengine.dataset import BaseDataset

from codmoe.datasets.synthetic.scene import (
    KINDS,
    MIN_AREA,
    Scene,
    check_kind,
    draw_distractors,
    draw_object,
    draw_shadow,
    outlines,
    revealed,
)
from codmoe.registry import DATASETS, TRANSFORMS

OCCLUDED = 0.3  # share of the images in which blades may hide parts of the object


def _check_size(image_size: int) -> None:
    if image_size < 32:
        raise ValueError(f"image_size={image_size} is too small for textures; use 32 or more")


def generator(*words: int) -> np.random.Generator:
    """Generator that follows from several seeds together, on every platform alike."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def generate(
    seed: int | Sequence[int] | np.random.Generator,
    kind: str,
    image_size: int,
    visibility: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """One camouflage image and its exact mask.

    The object is a piece of the image's own texture, read from elsewhere, turned and zoomed: its
    spectrum and palette are those of its surroundings. What betrays it depends on the kind, and so
    does what a model must be able to do:

    * ``clutter``: turned texture; pieces of unturned texture with like rims lie all around. Asks
      for search: which of many outlined things is the object.
    * ``figure``: one closed contour, with a slight change of direction and of shade. Asks for
      contours: nothing inside the object gives it away.
    * ``multiscale``: turned texture, on one tiny, one huge or several objects of unlike sizes. Asks
      for zoom.
    * ``ambiguous``: turned texture that blends into the surroundings; no contour and no shadow.
      Asks for a sense of where the boundary is uncertain; the mask is where the object's share
      exceeds one half.

    Texture, palette, light, outline, sensor noise and, in three of ten images, blades that hide
    parts of the object vary alike in all kinds.

    Args:
        seed: A seed, or several to be mixed, or a generator (which is then advanced).
        kind: One of ``KINDS``.
        image_size: Side of the square image in pixels, at least 32.
        visibility: 0 to 1; above 0 the object is also lighter or darker than its surroundings, up
            to 40 %, for models and trainings too small for camouflage.

    Returns:
        The image, (image_size, image_size, 3) uint8 RGB, and the mask of the visible part of the
        object, (image_size, image_size) uint8 in {0, 1}.

    Raises:
        ValueError: ``kind`` is unknown or ``image_size`` too small.
    """
    check_kind(kind)
    _check_size(image_size)
    if isinstance(seed, np.random.Generator):
        rng = seed
    else:
        rng = generator(*([seed] if isinstance(seed, int) else seed))
    scene = Scene(rng, image_size)
    length, strength = draw_shadow(rng, kind)
    for depth, piece in draw_distractors(rng, kind, image_size):
        scene.cast_shadow(depth, length, strength)
        scene.add(depth, piece, is_object=False)
    depths = outlines(rng, kind, image_size)
    piece = revealed(draw_object(rng, kind), visibility)
    for depth in depths:
        scene.cast_shadow(depth, length, strength)
        scene.add(depth, piece)
    if rng.random() < OCCLUDED:
        scene.occlude(MIN_AREA)
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
        visibility: How much easier than camouflaged the objects are, 0 to 1; see :func:`generate`.
        name: Name of the data set in tables.
        cache: Keep every image made in memory: 0.63 MB each at 448 px, in every worker process.
        pipeline: Transforms, as configs or callables.
        test_mode: A pipeline that returns None is an error instead of a reason to draw again.
        **kwargs: Further arguments of :class:`mmengine.dataset.BaseDataset`.

    Raises:
        ValueError: ``length``, ``image_size``, ``seed`` or ``kinds`` is out of range.
    """

    all_kinds: tuple[str, ...] = KINDS

    def __init__(
        self,
        *,
        length: int = 1000,
        image_size: int = 448,
        seed: int = 0,
        kinds: Sequence[str] | None = None,
        part: str = "train",
        visibility: float = 0.0,
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
            check_kind(kind, self.all_kinds)
        if not 0 <= visibility <= 1:
            raise ValueError(f"visibility={visibility}; it must lie in [0, 1]")
        self.length, self.image_size, self.seed = length, image_size, seed
        self.visibility = visibility
        self.kinds, self.part, self.name = kinds, part, name
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] | None = {} if cache else None
        transforms = [TRANSFORMS.build(t) if isinstance(t, dict) else t for t in pipeline]
        super().__init__(pipeline=transforms, test_mode=test_mode, **kwargs)

    def load_data_list(self) -> list[dict]:
        """One light record an image; the pixels are made by :meth:`prepare_data`."""
        kinds = [self.kinds[index % len(self.kinds)] for index in range(self.length)]
        common = dict(dataset=self.name, img_path="", mask_path="")
        return [
            dict(common, index=index, stem=f"{kind}_{index:05d}", kind=kind)
            for index, kind in enumerate(kinds)
        ]

    def sample(self, index: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) and mask (H, W) of one record; the arrays are the caller's own."""
        if self._cache is not None and index in self._cache:
            image, bits = self._cache[index]
            mask = np.unpackbits(bits, count=self.image_size**2)
            return image.copy(), mask.reshape(self.image_size, self.image_size)
        image, mask = self.make(index, kind)
        if self._cache is not None:
            self._cache[index] = image.copy(), np.packbits(mask)
        return image, mask

    def read_sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and mask before the pipeline, for transforms that mix samples."""
        info = self.get_data_info(index)
        return self.sample(info["index"], info["kind"])

    def make(self, index: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Image and mask, made anew."""
        return generate(self.words(index), kind, self.image_size, self.visibility)

    def words(self, index: int) -> tuple[int, int, int]:
        """Seeds of one image; no two parts share any."""
        return self.seed, zlib.crc32(self.part.encode()), index

    def prepare_data(self, idx: int) -> dict | None:
        """The record of ``idx`` with its image and mask, after the pipeline."""
        info = self.get_data_info(idx)
        image, mask = self.sample(info["index"], info["kind"])
        info.update(img=image, gt_seg_map=mask, gt_mask=mask)
        info.update(ori_shape=mask.shape, img_shape=mask.shape, pool=self)
        return self.pipeline(info)

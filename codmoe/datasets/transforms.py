"""From files to network input.

The keys that transforms share: ``img`` (H, W, 3) uint8 RGB; ``gt_seg_map`` (H, W) uint8 in {0, 1},
transformed along with it; ``gt_mask`` (H0, W0), the truth at the original resolution, never
transformed; ``ori_shape`` and ``img_shape``. They are those of ``mmcv.transforms``, whose
``Resize`` and ``RandomFlip`` therefore work here as they are. Random numbers come from numpy's
global generator, which mmengine seeds in every worker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform

from codmoe.datasets.integrity import UnreadableFile, has_plausible_header, is_complete
from codmoe.registry import TRANSFORMS
from codmoe.structures import CODDataSample

META_KEYS = ("img_path", "mask_path", "stem", "dataset", "ori_shape", "img_shape", "kind")
LUMA = (0.299, 0.587, 0.114)


def _decode(path: str) -> np.ndarray:
    try:
        # Read by numpy: cv2.imread knows only ASCII paths on some systems.
        data = np.fromfile(path, np.uint8)
        # UNCHANGED ignores the EXIF orientation, as the masks do, and keeps 16 bits and alpha
        # apparent.
        readable = data.size and has_plausible_header(data.data)
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if readable else None
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read: {error.strerror or error}") from error
    except (cv2.error, MemoryError) as error:
        # Damaged headers promise impossible sizes.
        raise UnreadableFile(f"{path} is unreadable: OpenCV cannot decode it") from error
    if pixels is None or not is_complete(data.data):
        raise UnreadableFile(f"{path} is unreadable: empty, truncated or not an image")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UnreadableFile(f"{path} holds {pixels.dtype} values; expected 8 or 16 bits a channel")
    return pixels


def read_image(path: str) -> np.ndarray:
    """An image file as RGB, (H, W, 3) uint8.

    Grey becomes three equal channels, alpha is dropped, 16 bits are scaled to 8.

    Raises:
        UnreadableFile: The file is not a readable image; a ValueError, as all below.
    """
    pixels = _decode(path)
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=1 / 257)
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    alpha = pixels.shape[2] == 4
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB if alpha else cv2.COLOR_BGR2RGB)


def read_mask(path: str) -> np.ndarray:
    """A mask file as (H, W) uint8 in {0, 1}.

    A file whose largest value is 1 is taken as it is; any other is object where it is >= 128 in any
    channel (coloured palettes decode to three unequal ones).

    Raises:
        ValueError: The file is unreadable, or its values are neither {0, 1} nor up to 255.
    """
    pixels = _decode(path)
    if pixels.ndim == 3:
        pixels = pixels[..., :3].max(axis=2)
    top = int(pixels.max())
    if top > 255:
        pixels, top = cv2.convertScaleAbs(pixels, alpha=1 / 257), 255
    if top <= 1:
        return pixels.astype(np.uint8)
    if top < 128:
        # Thresholding would make an empty mask of it without a word; class indices look like this.
        raise UnreadableFile(f"{path} has values up to {top}; a mask is {{0, 1}} or {{0, 255}}")
    return (pixels >= 128).astype(np.uint8)


def read_pair(image_path: str, mask_path: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Image (H, W, 3) and mask (H, W), or None where there is no mask.

    Raises:
        ValueError: A file is unreadable, or the mask is not of the image's size.
    """
    image = read_image(image_path)
    if not mask_path:
        return image, None
    mask = read_mask(mask_path)
    if mask.shape != image.shape[:2]:
        (h, w), (mh, mw) = image.shape[:2], mask.shape
        raise UnreadableFile(
            f"{mask_path} is a mask of another size ({mw}x{mh}, its image is {w}x{h})"
        )
    return image, mask


def pair_results(image: np.ndarray, mask: np.ndarray | None) -> dict:
    """The keys that transforms work on; ``gt_seg_map`` is a copy: ``gt_mask`` must stay true."""
    results = {"img": image, "ori_shape": image.shape[:2], "img_shape": image.shape[:2]}
    if mask is not None:
        results.update(gt_mask=mask, gt_seg_map=mask.copy())
    return results


@TRANSFORMS.register_module()
class LoadCODPair(BaseTransform):
    """Load ``img_path`` and any ``mask_path``; a sample that has ``img`` passes through."""

    def transform(self, results: dict) -> dict:
        """Add ``img``, ``gt_seg_map``, ``gt_mask``, ``ori_shape`` and ``img_shape``."""
        if results.get("img") is None:
            results.update(pair_results(*read_pair(results["img_path"], results.get("mask_path"))))
        return results


@TRANSFORMS.register_module()
class RandomWarp(BaseTransform):
    """Resize, scale, rotate and shift in one affine warp, so that pixels are interpolated once.

    With ``scale=(1, 1), rotate=0, aspect=0, translate=0`` it is a plain resize. What lies outside
    the image is filled by reflection, in image and mask alike: a mirrored object is an object.

    Args:
        size: Output (width, height) in pixels, the order of ``mmcv.transforms.Resize``.
        scale: Range of the zoom, drawn log-uniformly; above 1 enlarges.
        rotate: Largest rotation to either side, in degrees.
        aspect: Largest change of width over height, as a fraction: 0.2 is 1/1.2 to 1.2.
        translate: Largest shift to any side, as a fraction of the output size.
        prob: Share of the samples warped; the others are only resized.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        size: Sequence[int] = (448, 448),
        scale: Sequence[float] = (0.75, 1.25),
        rotate: float = 15.0,
        aspect: float = 0.0,
        translate: float = 0.1,
        prob: float = 1.0,
    ) -> None:
        if isinstance(size, int) or len(size) != 2 or min(size) < 1:
            raise ValueError(f"RandomWarp: size={size!r}; it must be (width, height) in pixels")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ValueError(
                f"RandomWarp: scale={scale!r}; it must be (low, high), 0 < low <= high"
            )
        for name, value in (("rotate", rotate), ("aspect", aspect), ("translate", translate)):
            if value < 0:
                raise ValueError(f"RandomWarp: {name}={value}; it must not be negative")
        if not 0 <= prob <= 1:
            raise ValueError(f"RandomWarp: prob={prob}; it must lie in [0, 1]")
        self.size = (int(size[0]), int(size[1]))
        self.scale, self.rotate, self.aspect = tuple(scale), rotate, aspect
        self.translate, self.prob = translate, prob

    def matrix(self, height: int, width: int) -> np.ndarray:
        """Draw an affine map from input to output pixel indices, (2, 3)."""
        out_w, out_h = self.size
        linear, shift = np.eye(2), np.zeros(2)
        if np.random.rand() < self.prob:
            zoom = math.exp(np.random.uniform(*np.log(self.scale)))
            stretch = math.exp(np.random.uniform(-1, 1) * math.log1p(self.aspect) / 2)
            angle = math.radians(np.random.uniform(-1, 1) * self.rotate)
            cos, sin = math.cos(angle), math.sin(angle)
            linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([stretch, 1 / stretch]) * zoom
            shift = np.random.uniform(-1, 1, 2) * self.translate * self.size
        centre = np.array([out_w, out_h]) / 2
        squash = np.diag([out_w / width, out_h / height])
        # In continuous coordinates, where pixel i covers [i, i + 1), about the output's centre ...
        whole = linear @ squash
        offset = centre - linear @ centre + shift
        # ... and then in indices of pixel centres, i + 0.5, which is what cv2.resize goes by.
        offset = whole @ np.array([0.5, 0.5]) + offset - 0.5
        return np.column_stack([whole, offset])

    def transform(self, results: dict) -> dict:
        """Warp ``img`` (bilinear) and ``gt_seg_map`` (nearest)."""
        matrix = self.matrix(*results["img"].shape[:2])
        for key, method in (("img", cv2.INTER_LINEAR), ("gt_seg_map", cv2.INTER_NEAREST)):
            if results.get(key) is not None:
                source = np.ascontiguousarray(results[key])
                results[key] = cv2.warpAffine(
                    source, matrix, self.size, flags=method, borderMode=cv2.BORDER_REFLECT
                )
        results["img_shape"] = results["img"].shape[:2]
        return results


@TRANSFORMS.register_module()
class RandomColour(BaseTransform):
    """Jitter brightness, contrast, saturation and hue.

    All four are affine in RGB (hue turns about the grey axis), so that one pass over the pixels
    does them and a grey image stays grey.

    Args:
        brightness: Largest relative change of all values; 0.2 is a factor of 0.8 to 1.2.
        contrast: The same for the distance from the image's mean grey.
        saturation: The same for the distance from grey.
        hue: Largest turn to either side, as a fraction of the colour circle, at most 0.5.
        prob: Share of the samples jittered.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.02,
        prob: float = 1.0,
    ) -> None:
        limits = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5, "prob": 1.0}
        given = {
            "brightness": brightness,
            "contrast": contrast,
            "saturation": saturation,
            "hue": hue,
            "prob": prob,
        }
        for name, value in given.items():
            if not 0 <= value <= limits[name]:
                raise ValueError(
                    f"RandomColour: {name}={value}; it must lie in [0, {limits[name]:g}]"
                )
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation
        self.hue, self.prob = hue, prob

    def transform(self, results: dict) -> dict:
        """Jitter ``img``; its mask is not touched."""
        if np.random.rand() >= self.prob:
            return results
        draw = np.random.uniform(-1, 1, 4)
        bright, contrast, saturation = 1 + draw[:3] * (
            self.brightness,
            self.contrast,
            self.saturation,
        )
        angle = draw[3] * self.hue * 2 * math.pi
        grey_of = np.tile(LUMA, (3, 1))
        axis = np.full((3, 3), 1 / 3)
        cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
        turn = axis + math.cos(angle) * (np.eye(3) - axis) + math.sin(angle) * cross
        colour = (saturation * np.eye(3) + (1 - saturation) * grey_of) @ turn
        image = np.ascontiguousarray(results["img"])
        mean = float(np.dot(LUMA, cv2.mean(image)[:3]))
        matrix = np.column_stack(
            [bright * contrast * colour, np.full(3, bright * (1 - contrast) * mean)]
        )
        results["img"] = cv2.transform(image, matrix)
        return results


@TRANSFORMS.register_module()
class PackCODInputs(BaseTransform):
    """Turn a sample into ``dict(inputs=(3, H, W) uint8, data_samples=CODDataSample)``.

    Args:
        keep_original: Also pack ``gt_mask``, (H0, W0), which metrics are computed against.
    """

    def __init__(self, keep_original: bool = False) -> None:
        self.keep_original = keep_original

    def transform(self, results: dict) -> dict:
        """Pack copies, so that a cached or flipped (negatively strided) array does no harm."""
        image = results["img"]
        sample = CODDataSample(
            metainfo={key: results[key] for key in META_KEYS if results.get(key) is not None}
        )
        if results.get("gt_seg_map") is not None:
            sample.target = _tensor(results["gt_seg_map"][None])
        if self.keep_original and results.get("gt_mask") is not None:
            sample.gt_mask = _tensor(results["gt_mask"])
        return {"inputs": _tensor(image.transpose(2, 0, 1)), "data_samples": sample}


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.uint8, order="C", copy=True))

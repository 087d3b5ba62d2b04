"""Reads images as RGB and masks as {0, 1}, whatever they are stored as."""

from __future__ import annotations

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from codmoe.datasets.integrity import UnreadableFile, has_plausible_header, is_complete
from codmoe.registry import TRANSFORMS


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

    A file whose largest value is 1 is taken as it is. Any other grey one is object above 128, as
    PySODMetrics takes it; a coloured one where a channel is 128 or more (palettes of indices
    decode to colours, the first object of DAVIS' to a red of 128).

    Raises:
        UnreadableFile: The file is unreadable, or its values are neither {0, 1} nor up to 255.
    """
    pixels = _decode(path)
    least = 129
    if pixels.ndim == 3:
        colours = pixels[..., :3]
        least = 128 if (colours != colours[..., :1]).any() else least
        pixels = colours.max(axis=2)
    top = int(pixels.max())
    if top > 255:
        pixels, top = cv2.convertScaleAbs(pixels, alpha=1 / 257), 255
    if top <= 1:
        return pixels.astype(np.uint8)
    if top < least:
        # Thresholding would make an empty mask of it without a word; class indices look like this.
        raise UnreadableFile(f"{path} has values up to {top}; a mask is {{0, 1}} or {{0, 255}}")
    return (pixels >= least).astype(np.uint8)


def read_pair(image_path: str, mask_path: str) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and mask (H, W).

    Raises:
        UnreadableFile: A file is unreadable, or the mask is not of the image's size.
    """
    image, mask = read_image(image_path), read_mask(mask_path)
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
    """Loads ``img_path`` and any ``mask_path``; a sample that has ``img`` passes through."""

    def transform(self, results: dict) -> dict:
        """Adds ``img``, ``gt_seg_map``, ``gt_mask``, ``ori_shape`` and ``img_shape``."""
        if results.get("img") is None:
            image, mask = results["img_path"], results.get("mask_path")
            pair = read_pair(image, mask) if mask else (read_image(image), None)
            results.update(pair_results(*pair))
        return results

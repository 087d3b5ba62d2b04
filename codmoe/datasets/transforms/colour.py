"""Changes of light and pixels between object and file: colour, blur, JPEG."""

from __future__ import annotations

import math

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from codmoe.datasets.transforms.ranges import check_pair, check_range
from codmoe.registry import TRANSFORMS

LUMA = (0.299, 0.587, 0.114)


def contiguous(image: np.ndarray) -> np.ndarray:
    """The image in C order; a mirrored view, as mmcv's flip leaves it, is undone by OpenCV.

    numpy copies such a view pixel by pixel, which takes ten times as long as all colour jitter.
    """
    if image.flags.c_contiguous:
        return image
    turned = [step < 0 for step in image.strides[:2]]
    if image.ndim == 3 and any(turned):
        upright = image[:: -1 if turned[0] else 1, :: -1 if turned[1] else 1]
        if upright.flags.c_contiguous:
            return cv2.flip(upright, -1 if all(turned) else int(turned[1]))
    return np.ascontiguousarray(image)


@TRANSFORMS.register_module()
class RandomColour(BaseTransform):
    """Jitters brightness, contrast, saturation and hue.

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
        check_range("RandomColour", 0, 0.5, hue=hue)
        shares = dict(brightness=brightness, contrast=contrast, saturation=saturation, prob=prob)
        check_range("RandomColour", **shares)
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation
        self.hue, self.prob = hue, prob

    def transform(self, results: dict) -> dict:
        """Jitters ``img``; its mask is not touched."""
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
        image = contiguous(results["img"])
        mean = float(np.dot(LUMA, cv2.mean(image)[:3]))
        matrix = np.column_stack(
            [bright * contrast * colour, np.full(3, bright * (1 - contrast) * mean)]
        )
        results["img"] = cv2.transform(image, matrix)
        return results


@TRANSFORMS.register_module()
class RandomBlur(BaseTransform):
    """Blurs as a lens out of focus does, or along a line as a moving camera does, each in half.

    Args:
        sigma: Range of the blur's standard deviation in pixels.
        prob: Share of the samples blurred.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(self, sigma: tuple[float, float] = (0.3, 1.5), prob: float = 0.2) -> None:
        self.sigma = check_pair("RandomBlur", "sigma", sigma, 0.1, 20)
        check_range("RandomBlur", prob=prob)
        self.prob = prob

    def transform(self, results: dict) -> dict:
        """Blurs ``img``; its mask is not touched."""
        if np.random.rand() >= self.prob:
            return results
        sigma, image = np.random.uniform(*self.sigma), contiguous(results["img"])
        if np.random.rand() < 0.5:
            results["img"] = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
            return results
        # A line of n pixels has a standard deviation of n / sqrt(12).
        half, angle = sigma * math.sqrt(3), np.random.uniform(0, math.pi)
        reach = math.ceil(half)
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        along = np.abs(x * math.cos(angle) + y * math.sin(angle))
        across = np.abs(y * math.cos(angle) - x * math.sin(angle))
        kernel = np.clip(half + 0.5 - along, 0, 1) * np.clip(1 - across, 0, 1)
        kernel = kernel / kernel.sum()
        results["img"] = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT)
        return results


@TRANSFORMS.register_module()
class RandomJPEG(BaseTransform):
    """Compresses and decompresses: blocks and ringing hide fine texture, as in files from the web.

    Args:
        quality: Range of the JPEG quality, 1 to 100.
        prob: Share of the samples compressed.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(self, quality: tuple[int, int] = (40, 95), prob: float = 0.2) -> None:
        self.quality = check_pair("RandomJPEG", "quality", quality, 1, 100)
        check_range("RandomJPEG", prob=prob)
        self.prob = prob

    def transform(self, results: dict) -> dict:
        """Compresses ``img``; its mask is not touched."""
        if np.random.rand() >= self.prob:
            return results
        quality = round(np.random.uniform(*self.quality))
        # OpenCV takes channels for BGR; RGB would have its chroma computed from the wrong ones.
        bgr = cv2.cvtColor(contiguous(results["img"]), cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
        results["img"] = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
        return results

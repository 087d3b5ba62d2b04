"""Does all geometry in one warp: size, zoom, crop, rotation, shift and flips."""

from __future__ import annotations

import math

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from codmoe.datasets.transforms.colour import contiguous
from codmoe.datasets.transforms.ranges import check_pair, check_range
from codmoe.registry import TRANSFORMS

TRIES = 10
POINTS = 10_000


@TRANSFORMS.register_module()
class RandomWarp(BaseTransform):
    """Resizes, zooms, crops, rotates, shifts and flips in one warp: pixels are interpolated once.

    With ``scale=(1, 1), rotate=0, aspect=0, translate=0`` it is a plain resize; with
    ``scale=(1, 2.5), crop=True, keep_object=0.7`` a random resized crop that keeps the object. What
    lies outside the image is filled by reflection, in image and mask alike: a mirrored object is an
    object.

    Args:
        size: Output (width, height) in pixels, the order of ``mmcv.transforms.Resize``.
        scale: Range of the zoom, drawn log-uniformly; above 1 enlarges.
        rotate: Largest rotation to either side, in degrees.
        aspect: Largest change of width over height, as a fraction: 0.2 is 1/1.2 to 1.2.
        translate: Largest shift to any side, as a fraction of the output size.
        prob: Share of the samples warped; the others are only resized and flipped.
        flip: Share of the samples mirrored left to right.
        flip_vertical: Share of the samples mirrored top to bottom.
        crop: Where the zoom enlarges, the output shows any part of the image instead of its middle.
        keep_object: Smallest share of the object's pixels that stay in the output, in [0, 1]. A
            warp that keeps less is drawn again, up to ten times; then the sample is only resized,
            which keeps all. Of objects above 10,000 pixels every n-th pixel is looked at.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        size: tuple[int, int] = (448, 448),
        scale: tuple[float, float] = (0.75, 1.25),
        rotate: float = 15.0,
        aspect: float = 0.0,
        translate: float = 0.1,
        prob: float = 1.0,
        flip: float = 0.0,
        flip_vertical: float = 0.0,
        crop: bool = False,
        keep_object: float = 0.0,
    ) -> None:
        if isinstance(size, int) or len(size) != 2 or min(size) < 1:
            raise ValueError(f"RandomWarp: size={size!r}; it must be (width, height) in pixels")
        self.scale = check_pair("RandomWarp", "scale", scale)
        check_range("RandomWarp", 0, math.inf, rotate=rotate, aspect=aspect, translate=translate)
        shares = dict(prob=prob, flip=flip, flip_vertical=flip_vertical, keep_object=keep_object)
        check_range("RandomWarp", **shares)
        self.size = (int(size[0]), int(size[1]))
        self.rotate, self.aspect = rotate, aspect
        self.translate, self.prob, self.crop = translate, prob, crop
        self.flips, self.keep_object = (flip, flip_vertical), keep_object

    def matrix(self, height: int, width: int, mask: np.ndarray | None = None) -> np.ndarray:
        """Draws an affine map from input to output pixel indices.

        Args:
            height: Of the input.
            width: Of the input.
            mask: Where the object is, (height, width), if ``keep_object`` is to be minded.

        Returns:
            The map, (2, 3).
        """
        out_w, out_h = self.size
        matrix = self._warp(height, width) if np.random.rand() < self.prob else None
        points = self._object(mask) if self.keep_object and matrix is not None else None
        tries = 1
        while matrix is not None and points is not None:
            if self._share(points, matrix) >= self.keep_object:
                break
            matrix = self._warp(height, width) if tries < TRIES else None
            tries += 1
        if matrix is None:
            matrix = self._resize(np.eye(2), np.zeros(2), height, width)
        for axis, (chance, side) in enumerate(zip(self.flips, (out_w, out_h), strict=True)):
            if chance and np.random.rand() < chance:
                matrix[axis] *= -1
                matrix[axis, 2] += side - 1
        return matrix

    def _warp(self, height: int, width: int) -> np.ndarray:
        zoom = math.exp(np.random.uniform(*np.log(self.scale)))
        stretch = math.exp(np.random.uniform(-1, 1) * math.log1p(self.aspect) / 2)
        angle = math.radians(np.random.uniform(-1, 1) * self.rotate)
        cos, sin = math.cos(angle), math.sin(angle)
        linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([stretch, 1 / stretch]) * zoom
        shift = np.random.uniform(-1, 1, 2) * self.translate * self.size
        if self.crop and zoom > 1:
            shift += np.random.uniform(-0.5, 0.5, 2) * (zoom - 1) * self.size
        return self._resize(linear, shift, height, width)

    def _resize(self, linear: np.ndarray, shift: np.ndarray, height: int, width: int) -> np.ndarray:
        """Map of a resize to the output's size, then ``linear`` about its centre and ``shift``."""
        centre = np.array(self.size) / 2
        squash = np.diag([self.size[0] / width, self.size[1] / height])
        # In continuous coordinates, where pixel i covers [i, i + 1), about the output's centre ...
        whole = linear @ squash
        offset = centre - linear @ centre + shift
        # ... and then in indices of pixel centres, i + 0.5, which is what cv2.resize goes by.
        offset = whole @ np.array([0.5, 0.5]) + offset - 0.5
        return np.column_stack([whole, offset])

    @staticmethod
    def _object(mask: np.ndarray | None) -> np.ndarray | None:
        """Pixels (x, y) of the object, (n, 2) float32, or None if there are none."""
        points = None if mask is None else cv2.findNonZero(np.ascontiguousarray(mask))
        if points is None:
            return None
        # Of OpenCV 4 (n, 1, 2), of OpenCV 5 (n, 2).
        points = points.reshape(-1, 2)
        return points[:: max(len(points) // POINTS, 1)].astype(np.float32)

    def _share(self, points: np.ndarray, matrix: np.ndarray) -> float:
        x, y = matrix[:, :2] @ points.T + matrix[:, 2:]
        inside = (x >= -0.5) & (y >= -0.5) & (x < self.size[0] - 0.5) & (y < self.size[1] - 0.5)
        return float(inside.mean())

    def transform(self, results: dict) -> dict:
        """Warps ``img`` (bilinear) and ``gt_seg_map`` (nearest)."""
        height, width = results["img"].shape[:2]
        matrix = self.matrix(height, width, results.get("gt_seg_map"))
        margins, shifted = self._margins(matrix, height, width)
        for key, method in (("img", cv2.INTER_LINEAR), ("gt_seg_map", cv2.INTER_NEAREST)):
            if results.get(key) is not None:
                source = contiguous(results[key])
                if any(margins):
                    source = cv2.copyMakeBorder(source, *margins, cv2.BORDER_REFLECT)
                results[key] = cv2.warpAffine(
                    source, shifted, self.size, flags=method, borderMode=cv2.BORDER_REFLECT
                )
        results["img_shape"] = results["img"].shape[:2]
        return results

    def _margins(
        self, matrix: np.ndarray, height: int, width: int
    ) -> tuple[tuple[int, int, int, int], np.ndarray]:
        """Top, bottom, left and right margins that the output shows, and the map from there.

        OpenCV's warp takes twice as long where it has to mirror coordinates itself.
        """
        out_w, out_h = self.size
        corners = np.array([[[x, y]] for x in (0, out_w - 1) for y in (0, out_h - 1)], np.float64)
        seen = cv2.transform(corners, cv2.invertAffineTransform(matrix))[:, 0]
        (x, y), (x_end, y_end) = np.floor(seen.min(0)), np.ceil(seen.max(0))
        sides = -y + 2, y_end - height + 3, -x + 2, x_end - width + 3
        top, bottom, left, right = (int(max(side, 0)) for side in sides)
        # A tiny zoom would need a margin many times the image.
        if (height + top + bottom) * (width + left + right) > 4 * height * width:
            return (0, 0, 0, 0), matrix
        shifted = matrix.copy()
        shifted[:, 2] -= matrix[:, :2] @ (left, top)
        return (top, bottom, left, right), shifted

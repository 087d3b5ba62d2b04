"""Finds copies of images among tens of thousands: re-encoded, mirrored, cropped, recoloured."""

from __future__ import annotations

import cv2
import numpy as np

SKETCH = 64
"""Side of a sketch: where an image has edges, and how strong."""
_SIDE, _STRIPS = 16, 4
# Of 977,000 pairs of photographs one scored above .68, and it was a copy (docs/data.md). Black bars
# alone make two of one set alike up to .87.
COPY, ALIKE = 0.70, 0.88
# Shares cut off at top, bottom, left and right.
_CROPS: list[tuple[float, ...]] = [(0, 0, 0, 0), (0.025,) * 4, (0.05,) * 4]
_CROPS += [tuple(0.05 if side == other else 0 for other in range(4)) for side in range(4)]
# A caption of an eighth of the height, below or above.
_CAPTIONS: list[tuple[float, ...]] = [(0, 0, 0, 0), (0, 0.107, 0, 0), (0.107, 0, 0, 0)]
# An image this even has nothing to compare but its noise; the least of those was .46.
EVEN = 0.25
_BLOCK = 2048


def sketch(image: np.ndarray) -> np.ndarray:
    """Edges of an image (H, W, 3) uint8, (64, 64) uint8; colours, light and compression hardly
    change them.
    """
    small = cv2.resize(image, (SKETCH, SKETCH), interpolation=cv2.INTER_AREA).astype(np.float32)
    edges = cv2.magnitude(*(cv2.Sobel(small, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1))))
    return np.minimum(3 * np.sqrt(edges.sum(axis=2)), 255).astype(np.uint8)


def copies(images: np.ndarray, others: np.ndarray, *, altered: bool) -> np.ndarray:
    """Pairs of sketches that show the same picture.

    Args:
        images: (N, 64, 64) uint8.
        others: (M, 64, 64) uint8; the same array finds what is alike within it.
        altered: Find ``images`` that are mirrored, cropped or captioned copies of ``others``, too.

    Returns:
        (P, 2) indices into ``images`` and ``others``, sorted; within one array each pair once.
    """
    ours = [_vectors(images, box) for box in (_CAPTIONS if altered else _CAPTIONS[:1])]
    theirs = [_vectors(others, box) for box in (_CROPS if altered else _CROPS[:1])]
    if altered:
        theirs += [_vectors(others[:, :, ::-1], box) for box in _CROPS]
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(images), _BLOCK):
        best = np.full((len(images[start : start + _BLOCK]), len(others)), -1, np.float32)
        for one in ours:
            for other in theirs:
                np.maximum(best, one[start : start + _BLOCK] @ other.T, out=best)
        pairs = np.argwhere(best >= (COPY if altered else ALIKE)) + np.array([start, 0])
        found.append(pairs if images is not others else pairs[pairs[:, 0] < pairs[:, 1]])
    return np.concatenate(found)


def _vectors(sketches: np.ndarray, box: tuple[float, ...]) -> np.ndarray:
    """Unit vectors whose product is the mean correlation of four strips; zero of an even image."""
    top, bottom, left, right = (round(share * SKETCH) for share in box)
    vectors = np.zeros((len(sketches), _SIDE * _SIDE), np.float32)
    for vector, whole in zip(vectors, sketches, strict=True):
        part = whole[top : SKETCH - bottom, left : SKETCH - right].astype(np.float32) / 3
        part = cv2.resize(part, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
        part -= cv2.GaussianBlur(part, (0, 0), _SIDE / 4)
        part /= np.sqrt(cv2.GaussianBlur(part**2, (0, 0), _SIDE / 4) + 9)
        if part.std() < EVEN:
            continue
        strips = part.reshape(_STRIPS, -1)
        strips = strips - strips.mean(axis=1, keepdims=True)
        norms = np.linalg.norm(strips, axis=1, keepdims=True)
        vector[:] = (strips / np.maximum(norms, 1e-6)).ravel() / np.sqrt(_STRIPS)
    return vectors


def groups(pairs: np.ndarray) -> list[list[int]]:
    """Indices that are connected by pairs, as sorted groups of two and more."""
    parent: dict[int, int] = {}

    def root(index: int) -> int:
        while parent.setdefault(index, index) != index:
            parent[index] = index = parent[parent[index]]
        return index

    for first, second in pairs.tolist():
        parent[root(second)] = root(first)
    together: dict[int, list[int]] = {}
    for index in sorted(parent):
        together.setdefault(root(index), []).append(index)
    return sorted(together.values())

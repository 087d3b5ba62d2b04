"""Facts of a ground truth that the measures need, computed once and kept for every later map.

An epoch of validation, each of four experts, their mixture and every method compared are measured
against the same masks. Distances, nearest object pixels, centroid and boundary band depend on the
mask only, so they are found once and kept by the content of the mask.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np

REACH = 3
"""Pixels to either side that the 7 × 7 Gaussian of the weighted F-measure sees."""
BOUNDARY_RATIO = 0.02
"""Width of the boundary band over the image's diagonal (Cheng et al., CVPR 2021)."""
FAR = 128
MAX_SQUARED = FAR**2
"""Squared distances are capped here: at 128 px the weight 2 - 0.5^(d/5) is 2 to 2e-8."""
OBJECT, BOUNDARY = 1, 2
"""Bits of ``GroundTruth.codes``."""


class Nearness(NamedTuple):
    """Directions from the background to the object.

    Args:
        band: Flat indices of the background pixels within ``REACH`` of the object, (B,) int64.
        nearest: Flat index of the object pixel nearest to each of them, (B,) int64.
    """

    band: np.ndarray
    nearest: np.ndarray


@dataclass(frozen=True)
class GroundTruth:
    """One mask and what follows from it.

    Args:
        codes: Bit 0 object, bit 1 boundary band of the object, (H, W) uint8.
        area: Number of object pixels.
        split: Row and column at which the S-measure cuts the image in four: the rounded centroid
            of the object plus one (the image's centre if there is none).
        box: Rows and columns of the object, ``(top, bottom, left, right)``, ends exclusive.
        boundary_width: Width of the boundary band in pixels.
    """

    codes: np.ndarray
    area: int
    split: tuple[int, int]
    box: tuple[int, int, int, int]
    boundary_width: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.codes.shape

    @property
    def mask(self) -> np.ndarray:
        """The mask itself, (H, W) bool."""
        return (self.codes & OBJECT).astype(bool)

    # Found when first asked for: only the weighted F-measure does, and they cost most.
    @cached_property
    def nearness(self) -> Nearness:
        """Background pixels near the object."""
        if not self.area:
            return Nearness(np.zeros(0, np.int64), np.zeros(0, np.int64))
        return Nearness(*_nearest(self.codes & OBJECT, self.box))

    @cached_property
    def squared_distance(self) -> np.ndarray:
        """Squared distance to the nearest object pixel, capped at ``MAX_SQUARED``, 0 on the object
        and where there is none, (H, W) uint16."""
        return np.minimum(self._squared(), MAX_SQUARED).astype(np.uint16)

    @cached_property
    def weight(self) -> np.ndarray:
        """Weight of a background pixel's error, 2 - 0.5^(distance / 5), 0 on the object and where
        there is none, (H, W) float32."""
        weight = self._squared()
        for start in range(0, len(weight), 64):  # what fits a core's cache at a time
            rows = weight[start : start + 64]
            object_ = rows == 0
            np.sqrt(rows, out=rows)
            np.multiply(rows, np.float32(math.log(0.5) / 5), out=rows)
            np.subtract(2, np.exp(rows, out=rows), out=rows)
            rows[object_] = 0
        return weight

    def _squared(self) -> np.ndarray:
        """Squared distances, right up to ``MAX_SQUARED``, (H, W) float32."""
        if not self.area:
            return np.zeros(self.shape, np.float32)
        squared = np.full(self.shape, MAX_SQUARED, np.float32)
        top, bottom, left, right = self.box
        window = np.s_[max(0, top - FAR) : bottom + FAR, max(0, left - FAR) : right + FAR]
        outside = np.bitwise_and(self.codes[window], OBJECT) ^ 1
        distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        # OpenCV errs by 3e-5 px; squares below the cap are integers again when rounded.
        np.rint(np.multiply(distance, distance, out=distance), out=squared[window])
        return squared

    @property
    def nbytes(self) -> int:
        """Memory of the arrays there are, in bytes."""
        found = self.__dict__
        arrays = [found[key] for key in ("squared_distance", "weight") if key in found]
        return self.codes.nbytes + sum(a.nbytes for a in (*arrays, *found.get("nearness", ())))


def ground_truth(mask: np.ndarray) -> GroundTruth:
    """The facts of one mask, (H, W) bool or uint8 in {0, 1}."""
    mask = np.ascontiguousarray(mask).astype(np.uint8)
    height, width = mask.shape
    columns, rows = (
        cv2.reduce(mask, axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel().astype(np.int64)
        for axis in (0, 1)
    )
    area = int(rows.sum())
    split, box = (height // 2 + 1, width // 2 + 1), (0, 0, 0, 0)
    if area:
        split = _centre(rows, area) + 1, _centre(columns, area) + 1
        box = *_ends(rows), *_ends(columns)
    boundary_width = max(1, round(BOUNDARY_RATIO * math.hypot(height, width)))
    codes = mask * np.uint8(OBJECT) + boundary_band(mask, boundary_width) * np.uint8(BOUNDARY)
    return GroundTruth(codes, area, split, box, boundary_width)


def _centre(sums: np.ndarray, area: int) -> int:
    # Rounded half to even, as numpy does in PySODMetrics.
    return round(float(sums @ np.arange(len(sums)) / area))


def _ends(sums: np.ndarray) -> tuple[int, int]:
    there = np.flatnonzero(sums)
    return int(there[0]), int(there[-1]) + 1


def boundary_band(mask: np.ndarray, width: int) -> np.ndarray:
    """Object pixels within ``width`` pixels of the background or the image's border, (H, W) uint8.

    As in the released code of Cheng et al., "Boundary IoU", CVPR 2021: the mask less its erosion by
    ``width`` steps of a 3 × 3 square, the outside of the image counting as background.
    """
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    eroded = cv2.erode(mask, square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask - eroded


def _offsets() -> np.ndarray:
    """Steps from a pixel to its possible nearest object pixels, the nearest first, (K, 2).

    Among equally near ones scipy, and so PySODMetrics, takes the leftmost and of those the topmost.
    That was found by trial and is tested; it matters, for the weighted F-measure copies the error
    found there.
    """
    reach = range(-REACH - 1, REACH + 2)
    steps = [(dy, dx) for dy in reach for dx in reach if 0 < dy * dy + dx * dx <= 2 * REACH**2]
    return np.array(sorted(steps, key=lambda s: (s[0] ** 2 + s[1] ** 2, s[1], s[0])))


_OFFSETS = _offsets()
_GROUPS = ((0, 4), (4, 12), (12, 28), (28, len(_OFFSETS)))
"""Most pixels have their nearest among the first steps."""


def _nearest(mask: np.ndarray, box: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Background pixels in reach of the object, and the object pixel nearest to each, as indices.

    Others never enter the weighted F-measure: it smooths errors at object pixels only.

    Args:
        mask: (H, W) uint8.
        box: Of the object; nothing beyond its reach is looked at.
    """
    (top, bottom, left, right), (height, width) = box, mask.shape
    top, left = max(0, top - REACH), max(0, left - REACH)
    inside = mask[top : min(height, bottom + REACH), left : min(width, right + REACH)]
    square = np.ones((2 * REACH + 1, 2 * REACH + 1), np.uint8)
    near = cv2.dilate(inside, square, borderType=cv2.BORDER_CONSTANT, borderValue=0) - inside
    found = cv2.findNonZero(near)
    if found is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    x, y = found.reshape(-1, 2).T.astype(np.int64)
    # A margin of zeros, so that no step leads out of the array.
    margin = REACH + 1
    padded = np.pad(inside, margin)
    steps = _OFFSETS[:, 0] * padded.shape[1] + _OFFSETS[:, 1]
    start = (y + margin) * padded.shape[1] + x + margin
    first = np.zeros(len(start), np.int64)
    left_over = np.arange(len(start))
    for begin, end in _GROUPS:
        hit = padded.ravel()[start[None, left_over] + steps[begin:end, None]]
        first[left_over] = begin + hit.argmax(0)
        left_over = left_over[~hit.any(0)]
    band = (y + top) * width + x + left
    return band, band + _OFFSETS[first, 0] * width + _OFFSETS[first, 1]


class GroundTruthCache:
    """The facts of masks, found again by content; threads may share it.

    A data set is seen in the same order again and again. Were the mask not used for longest dropped
    for each new one, a set larger than the memory would never find one kept; so what is kept stays
    until it has not been asked for in ``PATIENCE`` times as many look-ups as there are masks kept,
    and a part of such a set is found at least.

    Args:
        max_bytes: Memory to keep, where a mask takes 1 byte a pixel, and once its weighted
            F-measure was asked for 5 on the CPU, 3 for a GPU.
    """

    PATIENCE = 8

    def __init__(self, max_bytes: int = 2 << 30):
        self.max_bytes = max_bytes
        self.hits = self.misses = self.nbytes = 0
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def __call__(self, mask: np.ndarray) -> GroundTruth:
        """The facts of ``mask``, (H, W) in {0, 1}: kept ones if this content was seen before."""
        mask = np.ascontiguousarray(mask, dtype=bool)
        # Of the bits, an eighth of the bytes: the digest is what a kept mask costs.
        bits = np.packbits(mask)
        key = hashlib.blake2b(bits.data, digest_size=16, key=repr(mask.shape).encode()).digest()
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self.hits += 1
                self._kept.move_to_end(key)
                kept.used = self.hits + self.misses
                # It may have grown since: its nearness is found later.
                self.nbytes += kept.truth.nbytes - kept.nbytes
                kept.nbytes = kept.truth.nbytes
                self._shrink()
                return kept.truth
            self.misses += 1
        truth = ground_truth(mask)
        with self._lock:
            self._admit(key, truth)
        return truth

    def _admit(self, key: bytes, truth: GroundTruth) -> None:
        now = self.hits + self.misses
        size = truth.nbytes
        while self._kept and self.nbytes + size > self.max_bytes:
            oldest = next(iter(self._kept.values()))
            if now - oldest.used <= self.PATIENCE * len(self._kept):
                return
            self._drop()
        if key not in self._kept:
            self._kept[key] = _Kept(truth, size, now)
            self.nbytes += size

    def _shrink(self) -> None:
        # From the newest end: those are the ones a scan comes back to last.
        while self.nbytes > self.max_bytes and len(self._kept) > 1:
            self._drop(newest=True)

    def _drop(self, newest: bool = False) -> None:
        _, dropped = self._kept.popitem(last=newest)
        self.nbytes -= dropped.nbytes


@dataclass
class _Kept:
    truth: GroundTruth
    nbytes: int
    used: int


TRUTHS = GroundTruthCache()
"""The cache that all metrics of a process share; ``CODMetric(cache_gb=)`` sets its size."""

"""Finds images that look alike among tens of thousands, without comparing all pairs."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

THUMBNAIL = 32
# The hash is cut into six bands of 10 or 11 bits: of two hashes that differ in at most five bits at
# least one band is equal, so that only images of one band's value need be compared.
BANDS = ((0, 11), (11, 22), (22, 33), (33, 44), (44, 54), (54, 64))
MAX_BITS = 5
MIN_CORRELATION = 0.98
# An image this even has no look to compare: its hash is noise.
MIN_CONTRAST = 4.0
_BLOCK = 2048


def perceptual_hash(thumbnail: np.ndarray) -> int:
    """Hash of 64 bits: one for each low frequency of the cosine transform above their median.

    Args:
        thumbnail: Grey, (32, 32) uint8.
    """
    low = cv2.dct(thumbnail.astype(np.float32))[:8, :8].ravel()
    bits = low > np.median(low[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def look_alikes(codes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """Pairs of images that look the same but for size, compression and slight change.

    Their hashes differ in at most 5 bits, and their thumbnails correlate.

    Args:
        codes: Hashes, (N,) uint64.
        thumbnails: (N, 32, 32) uint8.

    Returns:
        (P, 2) ascending indices, each pair once, sorted.
    """
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    deviation = np.sqrt((flat**2).mean(axis=1))
    vivid = deviation >= MIN_CONTRAST
    flat /= np.maximum(deviation, 1e-6)[:, None] * np.sqrt(flat.shape[1])
    found = [np.empty((0, 2), np.int64)]
    for first, second in _candidates(codes, np.flatnonzero(vivid)):
        close = bit_count(codes[first] ^ codes[second]) <= MAX_BITS
        first, second = first[close], second[close]
        alike = np.einsum("ij,ij->i", flat[first], flat[second]) >= MIN_CORRELATION
        found.append(np.stack([first[alike], second[alike]], axis=1))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _candidates(codes: np.ndarray, among: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index pairs of which one band is equal, band by band and in blocks."""
    for start, stop in BANDS:
        band = (codes[among] >> np.uint64(start)) & np.uint64((1 << (stop - start)) - 1)
        order = np.argsort(band, kind="stable")
        members, values = among[order], band[order]
        cuts = np.flatnonzero(np.diff(values)) + 1
        for bucket in np.split(members, cuts):
            for i in range(0, len(bucket), _BLOCK):
                for j in range(i, len(bucket), _BLOCK):
                    a, b = bucket[i : i + _BLOCK], bucket[j : j + _BLOCK]
                    if i == j:
                        left, right = np.triu_indices(len(a), 1)
                    else:
                        left, right = (g.ravel() for g in np.indices((len(a), len(b))))
                    if len(left):
                        yield a[left], b[right]


def bit_count(values: np.ndarray) -> np.ndarray:
    """Number of set bits of each 64-bit value; numpy has it since 2.0 alone."""
    as_bytes = np.ascontiguousarray(values).view(np.uint8).reshape(*values.shape, 8)
    return np.unpackbits(as_bytes, axis=-1).sum(axis=-1)


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

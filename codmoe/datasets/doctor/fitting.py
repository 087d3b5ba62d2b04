"""Tells whether a mask's outline lies on edges of its image, or might be of another image."""

from __future__ import annotations

import cv2
import numpy as np

_SIDE = 128
_AROUND = np.minimum(np.arange(_SIDE), _SIDE - np.arange(_SIDE))
_SHIFT = np.maximum(_AROUND[:, None], _AROUND[None])
# A mask may be drawn a pixel off; what is nearer than six is no other place.
_HERE, _ELSEWHERE = _SHIFT <= 1, _SHIFT > 6
UNFIT, TOO_MANY = 1.25, 0.25
"""A mask whose fit is below the one is named, and a set with that share of them is an error: of
masks of other images .57 to .70 are, of right ones 0 to .02 (docs/data.md)."""


def fit(image: np.ndarray, mask: np.ndarray) -> float:
    """How much better a mask's outline follows the image's edges here than shifted elsewhere.

    Args:
        image: RGB, (H, W, 3) uint8.
        mask: {0, 1}, (H, W) uint8, of any size.

    Returns:
        Standard deviations above the mean over all other places; NaN where there is no outline.
    """
    lab = cv2.cvtColor(
        cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2LAB
    )
    edges = _tensor(lab.astype(np.float32))
    strength = edges[0] + edges[2]
    # Relative to their surroundings, so that a loud background does not drown a quiet outline.
    edges /= cv2.GaussianBlur(strength, (0, 0), _SIDE / 16) + 100
    edges /= np.sqrt(edges[0] + edges[2] + 0.05)
    small = cv2.resize(mask.astype(np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    outline = _tensor(cv2.GaussianBlur(small, (0, 0), 1)[..., None])
    outline /= np.sqrt(outline[0] + outline[2]) + 1e-9
    outline[1] *= 2
    for tensor in (edges, outline):  # an object cut by the image's border has no edge there
        for border in (np.s_[:, :2], np.s_[:, -2:], np.s_[..., :2], np.s_[..., -2:]):
            tensor[border] = 0
    if not outline.any() or strength.max() < 100:  # a mask or an image of one colour
        return np.nan
    # Of an edge's direction d and an outline's n: (d·n)², summed along the outline, at all shifts.
    spectrum = (np.fft.rfft2(edges) * np.conj(np.fft.rfft2(outline))).sum(axis=0)
    agreement = np.fft.irfft2(spectrum, (_SIDE, _SIDE))
    others = agreement[_ELSEWHERE]
    return float((agreement[_HERE].max() - others.mean()) / (others.std() + 1e-9))


def _tensor(values: np.ndarray) -> np.ndarray:
    """xx, xy and yy of the gradients' products, summed over channels, (3, H, W)."""
    x, y = (cv2.Sobel(values, cv2.CV_32F, *axis).reshape(values.shape) for axis in ((1, 0), (0, 1)))
    return np.stack([(a * b).sum(axis=2) for a, b in ((x, x), (x, y), (y, y))])

"""The prediction of one image: map, mask, figures, pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from codmoe.datasets.reading import read_image
from codmoe.visualization import overlays


@dataclass
class Prediction:
    """What the model says about one image.

    Args:
        probability: Foreground probability at the original resolution, (H0, W0) float32.
        weights: ``{name: weight}`` of the experts chosen for this image, the heaviest first.
        path: The file of the image or video; None for an array or a camera.
        threshold: What ``mask`` is cut at.
        frame: Number of a video's frame, from 0.
        expert_maps: ``{name: (H0, W0)}`` of every expert, chosen or not, if asked for.
        image: The picture, RGB (H0, W0, 3) uint8; None where it can be read from ``path``.
    """

    probability: np.ndarray
    weights: dict[str, float] = field(default_factory=dict)
    path: Path | None = None
    threshold: float = 0.5
    frame: int | None = None
    expert_maps: dict[str, np.ndarray] = field(default_factory=dict)
    image: np.ndarray | None = field(default=None, repr=False)

    @property
    def mask(self) -> np.ndarray:
        """1 where the probability is above the threshold, (H0, W0) uint8."""
        return (self.probability > self.threshold).astype(np.uint8)

    @property
    def share(self) -> float:
        """Share of the image that the mask covers."""
        return float(np.count_nonzero(self.probability > self.threshold) / self.probability.size)

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom of the mask in pixels, right and bottom exclusive; None if it
        is empty.
        """
        left, top, width, height = cv2.boundingRect(self.mask)
        return (left, top, left + width, top + height) if width else None

    @property
    def confidence(self) -> float | None:
        """Mean probability in the mask; None if it is empty."""
        inside = self.probability[self.probability > self.threshold]
        return float(inside.mean(dtype=np.float64)) if inside.size else None

    def overlay(self, alpha: float = 0.45) -> np.ndarray:
        """The image with the object tinted and outlined, RGB (H0, W0, 3) uint8."""
        return overlays.overlay(self.picture(), self.mask, alpha)

    def outline(self) -> np.ndarray:
        """The image with a line around the object, RGB (H0, W0, 3) uint8."""
        return overlays.outline(self.picture(), self.mask)

    def cutout(self) -> np.ndarray:
        """The object on nothing, RGBA (H0, W0, 4) uint8; see :func:`overlays.cutout`."""
        return overlays.cutout(self.picture(), self.probability, self.threshold)

    def side_by_side(self) -> np.ndarray:
        """Image, map, overlay, each expert's map and the router's weights, RGB uint8.

        Raises:
            ValueError: The experts' maps were not asked for.
        """
        if not self.expert_maps:
            raise ValueError("side by side needs the experts' maps: predict with experts=True")
        maps = (self.probability, self.expert_maps, self.weights)
        return overlays.side_by_side(self.picture(), self.mask, *maps)

    def row(self) -> dict[str, Any]:
        """What a table says of it."""
        box, confidence = self.box, self.confidence
        return dict(
            frame=self.frame,
            object_share=round(self.share, 6),
            box=box and list(box),
            confidence=confidence and round(confidence, 4),
            weights={name: round(weight, 4) for name, weight in self.weights.items()},
        )

    def picture(self) -> np.ndarray:
        """The image as it is stored, RGB (H0, W0, 3) uint8."""
        if self.image is None and self.path is None:
            raise ValueError("this prediction has neither path nor image to draw on")
        return read_image(str(self.path)) if self.image is None else self.image

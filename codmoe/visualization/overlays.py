"""Pictures of one prediction: overlay, outline, cut-out, and beside the experts' maps."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from codmoe.messages import printable

TINT = (150, 40, 255)
"""Violet: no plant, sand or fur has it, and who sees no red or no green sees a strong blue."""
PANEL = 360
"""Longer side in pixels of the image in :func:`side_by_side`."""
_BAR, _IDLE = (43, 108, 163), (96, 106, 117)


def overlay(image: np.ndarray, mask: np.ndarray, alpha: float = 0.45) -> np.ndarray:
    """The image with the object tinted and outlined.

    Args:
        image: RGB, (H, W, 3) uint8.
        mask: Not 0 where the object is, (H, W).
        alpha: Share of the tint, 0 to 1.
    """
    inside = mask.astype(bool)
    tinted = image.copy()
    blend = image[inside] * (1 - alpha) + np.asarray(TINT, np.float32) * alpha
    tinted[inside] = blend.round().astype(np.uint8)
    return outline(tinted, mask)


def outline(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with a line around the object, white in black, which shows on any ground.

    Arguments as of :func:`overlay`.
    """
    drawn = np.ascontiguousarray(image).copy()
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(max(image.shape[:2]) / 400))
    cv2.drawContours(drawn, found, -1, (0, 0, 0), 3 * width, cv2.LINE_AA)
    cv2.drawContours(drawn, found, -1, (255, 255, 255), width, cv2.LINE_AA)
    return drawn


def cutout(image: np.ndarray, probability: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """The object on nothing, RGBA (H, W, 4) uint8.

    The alpha goes from 0 to 255 around the threshold, over as wide a range of probabilities as lies
    between it and the nearer of 0 and 1, so that edges are soft where the model is not sure.

    Args:
        image: RGB, (H, W, 3) uint8.
        probability: (H, W), 0 to 1.
        threshold: What the mask is cut at; there the alpha is one half.
    """
    reach = max(min(threshold, 1 - threshold) / 2, 1e-6)
    alpha = np.clip((probability - threshold) / (2 * reach) + 0.5, 0, 1)
    return np.dstack([image, (alpha * 255).round().astype(np.uint8)])


def side_by_side(
    image: np.ndarray,
    mask: np.ndarray,
    probability: np.ndarray,
    expert_maps: Mapping[str, np.ndarray],
    weights: Mapping[str, float],
) -> np.ndarray:
    """Image, map, overlay, and smaller each expert's map with its weight as a bar above.

    Args:
        image: RGB, (H, W, 3) uint8.
        mask: (H, W).
        probability: The mixture's, (H, W), 0 to 1.
        expert_maps: ``{name: (h, w)}``, drawn from 0 (black) to 1 (white), not stretched.
        weights: ``{name: weight}`` of the chosen experts; an absent one has weight 0.

    Returns:
        RGB, uint8, of the same size for every image of one size.
    """
    gap, head = 8, 36
    height, width = image.shape[:2]
    scale = PANEL / max(height, width)
    size = (max(round(width * scale), 80), max(round(height * scale), 120))
    # Two rows of experts are as high as the image.
    low = (size[1] - head - gap) // 2
    small = (round(size[0] * low / size[1]), low)
    font = ImageFont.load_default(15)
    idle = {name: f"{printable(name)}  not chosen" for name in expert_maps}
    cell = max([small[0], *(int(font.getlength(text)) + 1 for text in idle.values())])
    columns = (len(expert_maps) + 1) // 2
    full = gap + 3 * (size[0] + gap)
    sheet = (head + size[1] + gap, full + columns * (cell + gap), 3)
    canvas = Image.fromarray(np.full(sheet, 255, np.uint8))
    draw = ImageDraw.Draw(canvas)
    photo = _fitted(image, size)
    pictures = {
        "image": photo,
        "mixture": _grey(probability, size),
        "prediction": overlay(
            photo, cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        ),
    }
    for column, (name, picture) in enumerate(pictures.items()):
        x = gap + column * (size[0] + gap)
        canvas.paste(Image.fromarray(picture), (x, head))
        draw.text((x, 5), name, fill=(0, 0, 0), font=font)
    for place, (name, values) in enumerate(expert_maps.items()):
        x = full + place % columns * (cell + gap)
        y = place // columns * (head + low + gap)
        weight = float(weights.get(name, 0.0))
        text = f"{printable(name)}  {weight:.2f}" if weight else idle[name]
        draw.text((x, y + 5), text, fill=(0, 0, 0) if weight else _IDLE, font=font)
        draw.rectangle((x, y + head - 10, x + small[0] - 1, y + head - 4), fill=(229, 233, 237))
        if weight:
            right = x + (small[0] - 1) * weight
            draw.rectangle((x, y + head - 10, right, y + head - 4), fill=_BAR)
        canvas.paste(Image.fromarray(_grey(values, small)), (x, y + head))
    return np.asarray(canvas)


def _grey(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    grey = np.clip(_fitted(values.astype(np.float32), size) * 255, 0, 255).astype(np.uint8)
    return np.dstack([grey] * 3)


def _fitted(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    smaller = picture.shape[1] > size[0]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)

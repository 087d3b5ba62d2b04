"""Reads one file as training does, and its header, into a record of what the doctor looks at."""

from __future__ import annotations

import hashlib
import math
import os
import re
import sys
import tempfile
import warnings
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image

from codmoe.datasets.doctor.fitting import fit
from codmoe.datasets.doctor.similarity import sketch
from codmoe.datasets.reading import peculiarities, read_image, read_mask

ORIENTATION = 0x0112
# What decoders print about data they could not decode and made up. An odd colour profile, of which
# they print too, does no harm.
DAMAGE = re.compile(
    r"(premature end|bad Huffman|CRC error|incorrect data check|Not enough data|invalid distance"
    r"|bad adaptive filter|Unsupported marker|found marker|extraneous bytes)"
)
_printed = None


@dataclass
class Record:
    """One file.

    Args:
        path: The file.
        error: Why it cannot be read, or None; all else is then unset.
        size: Width and height in pixels, as stored.
        traits: Of ``exif``, ``alpha``, ``alpha_used``, ``palette``, ``cmyk``, ``16bit``, ``grey``,
            ``two values``;
            of a mask also those of :class:`Mask` and :data:`PECULIAR`.
        damage: Complaints of the decoder.
    """

    path: str
    error: str | None = None
    size: tuple[int, int] = (0, 0)
    traits: tuple[str, ...] = ()
    damage: str = ""


@dataclass
class ImageRecord(Record):
    """One image file.

    Args:
        orientation: EXIF orientation, 1 to 8.
        digest: Equal for equal pixels.
        sketch: By which copies are found; see :func:`sketch`.
    """

    orientation: int = 1
    digest: bytes = b""
    sketch: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))


@dataclass
class MaskRecord(Record):
    """One mask file.

    Args:
        digest: Equal for equal masks, unset for empty and full ones.
        fit: See :func:`codmoe.datasets.doctor.fitting.fit`; NaN without an image of its size.
    """

    digest: bytes = b""
    fit: float = math.nan


def start_worker() -> None:
    """Catches what the decoders' C code prints; one thread, as every core has its own process."""
    global _printed
    cv2.setNumThreads(0)
    warnings.simplefilter("ignore")
    _printed = tempfile.TemporaryFile()  # noqa: SIM115
    sys.stderr.flush()
    os.dup2(_printed.fileno(), 2)


def _damage() -> str:
    """Complaints of damage that decoders printed since the last call, one line."""
    if _printed is None:
        return ""
    _printed.seek(0)
    text = _printed.read().decode(errors="replace")
    _printed.seek(0)
    _printed.truncate()
    lines = [line.strip() for line in text.splitlines() if DAMAGE.search(line)]
    return "; ".join(dict.fromkeys(lines))[:200]


def inspect(job: tuple[str | None, str | None]) -> tuple[ImageRecord | None, MaskRecord | None]:
    """Looks at an image and its mask, either of which may be missing."""
    image, pixels = _inspect_image(job[0]) if job[0] else (None, None)
    return image, _inspect_mask(job[1], pixels) if job[1] else None


def _inspect_image(path: str) -> tuple[ImageRecord, np.ndarray | None]:
    """Decodes and measures one image."""
    _damage()
    try:
        pixels = read_image(path)
    except ValueError as error:
        return ImageRecord(path, error=_without_path(error, path)), None
    record = ImageRecord(path, size=(pixels.shape[1], pixels.shape[0]), damage=_damage())
    record.orientation, record.traits = _header(path)
    if pixels.min() < pixels.max() and not ((pixels > 0) & (pixels < 255)).any():
        record.traits += ("two values",)
    record.sketch = sketch(pixels)
    record.digest = _digest(pixels)
    return record, pixels


def _inspect_mask(path: str, image: np.ndarray | None) -> MaskRecord:
    """Decodes and measures one mask."""
    _damage()
    try:
        mask = read_mask(path)
    except ValueError as error:
        return MaskRecord(path, error=_without_path(error, path))
    height, width = mask.pixels.shape
    record = MaskRecord(path, size=(width, height), damage=_damage())
    peculiar = peculiarities(mask)
    exif = [trait for trait in _header(path)[1] if trait == "exif"]
    record.traits = (*mask.traits, *peculiar, *exif)
    if not {"empty", "whole"} & set(peculiar):
        record.digest = _digest(mask.pixels)
    if image is not None and image.shape[:2] == mask.pixels.shape:
        record.fit = fit(image, mask.pixels)
    return record


def _digest(pixels: np.ndarray) -> bytes:
    shape = np.array(pixels.shape, np.int64).tobytes()
    return hashlib.blake2b(pixels.data, digest_size=16, key=shape).digest()


def _header(path: str) -> tuple[int, tuple[str, ...]]:
    """EXIF orientation, and traits of how the pixels are stored."""
    traits = []
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(ORIENTATION, 1)
            mode, sixteen = image.mode, _is_16bit(image, path)
            transparent = mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
            if transparent:
                alpha = np.asarray(image.convert("RGBA"))[..., 3]
                traits += ["alpha", "alpha_used"] if alpha.min() < 255 else ["alpha"]
    except Exception:  # Pillow reads the pixels' metadata more strictly than OpenCV the pixels
        return 1, ()
    orientation = orientation if orientation in range(1, 9) else 1
    traits += ["exif"] * (orientation != 1) + ["16bit"] * sixteen
    traits += {"P": ["palette"], "CMYK": ["cmyk"], "L": ["grey"], "1": ["grey"]}.get(mode, [])
    return orientation, tuple(traits)


def _is_16bit(image: Image.Image, path: str) -> bool:
    if image.mode.startswith("I"):
        return True
    # Pillow opens 16-bit colour PNG as RGB; the depth stands in its first chunk.
    if image.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24:] == b"\x10"
    return False


def _without_path(error: Exception, path: str) -> str:
    return str(error).removeprefix(path).strip()

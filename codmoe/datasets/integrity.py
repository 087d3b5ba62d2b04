"""Checks that image files are whole, without decoding those that end as they should."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from codmoe.datasets.layouts import Pair
from codmoe.messages import listed


class UnreadableFile(ValueError):
    """An image or mask file that cannot be used; the message starts with its path.

    Apart from other ``ValueError``, because in training it may be replaced by another sample (see
    :class:`TolerantDataset`), which a mistake in a config must not be.
    """

    def __init__(self, message: str) -> None:
        # torch raises what a loader's worker raised anew, with a traceback as its message, of which
        # the last line is the sentence meant.
        super().__init__(message.rsplit("UnreadableFile: ", 1)[-1].strip())


def is_complete(data: bytes | memoryview) -> bool:
    """Whether an encoded image ends as its format says; older OpenCV half-decodes others.

    Args:
        data: The file's bytes; its first 8 and last 8 are enough for JPEG and PNG.
    """
    start, end = bytes(data[:8]), bytes(data[-8:])
    if start.startswith(b"\xff\xd8") and end.endswith(b"\xff\xd9"):
        return True
    if start.startswith(b"\x89PNG") and end == b"IEND\xaeB`\x82":
        return True
    # Another format, or bytes behind the end, which is harmless: only decoding tells.
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Exception:
        # Of damaged files Pillow's plugins raise what they stumble over: OSError and SyntaxError,
        # but struct.error, IndexError or DecompressionBombError too.
        return False
    return True


def has_plausible_header(data: bytes | memoryview) -> bool:
    """Whether the sizes that an encoded image claims can be true, told without decoding.

    OpenCV allocates what a damaged file asks for, 4 GB were seen, before it finds the damage.
    """
    if bytes(data[:4]) == b"\x89PNG":
        return _has_whole_chunks(data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            # Pixels that a byte can stand for. Measured on even areas: JPEG 85, TIFF 16,000
            # (group 4), WebP 24,000 (lossless).
            most = 1000 if image.format in ("JPEG", "MPO", "BMP") else 40_000
            return image.width * image.height <= most * len(data)
    except Image.DecompressionBombError:  # more than twice this many pixels
        return 1000 * len(data) >= 2 * (Image.MAX_IMAGE_PIXELS or 0)
    except Exception:
        return True  # not for Pillow to tell; decoding will


def _has_whole_chunks(data: bytes | memoryview) -> bool:
    """Whether a PNG's chunks follow one another up to its end, the first of them undamaged."""
    if zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        return False
    start = 8
    while start + 12 <= len(data):
        if bytes(data[start + 4 : start + 8]) == b"IEND":
            return True
        start += 12 + int.from_bytes(data[start : start + 4], "big")
    return False


def _size(path: Path) -> tuple[int, int]:
    """Width and height by the file's header; ValueError with a short reason if it has none."""
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            size = image.size
            file.seek(0)
            start = file.read(8)
            file.seek(-min(8, os.path.getsize(path)), os.SEEK_END)
            # Cheap for the usual formats; the whole file is read only where its end looks wrong.
            if not is_complete(start + file.read(8)):
                file.seek(0)
                if not is_complete(file.read()):
                    raise ValueError("truncated")
    except ValueError:
        raise
    except Exception as error:
        empty = path.exists() and path.stat().st_size == 0
        raise ValueError("empty file" if empty else type(error).__name__) from error
    return size


def _fault(pair: Pair) -> str | None:
    sizes = []
    for path in (pair.image, pair.mask):
        try:
            sizes.append(_size(path))
        except ValueError as error:
            return f"{path} is unreadable ({error})"
    if sizes[0] == sizes[1]:
        return None
    (w, h), (mw, mh) = sizes
    return f"{pair.mask} is a mask of another size ({mw}x{mh}, its image is {w}x{h})"


def check_pairs(pairs: Iterable[Pair], workers: int = 8) -> None:
    """Opens the header of every file, so that bad data is known before the first step.

    Raises:
        ValueError: Files are unreadable or truncated, or masks are not of their image's size; all
            are counted, the first five named.
    """
    pairs = list(pairs)
    Image.init()  # loads PIL's plugins, which is not safe in several threads at once
    with ThreadPoolExecutor(workers) as pool:
        faults = [fault for fault in pool.map(_fault, pairs) if fault]
    if faults:
        raise ValueError(
            f"{len(faults):,} of {len(pairs):,} image/mask pairs cannot be used: "
            + listed(faults, separator="; ")
            + "; mend, replace or remove them (python tools/data/doctor.py ROOT says what is wrong)"
        )

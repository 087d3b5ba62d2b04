"""Checks a data set's files before the first step: images that are whole, masks that are masks."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from codmoe.datasets.layouts import Pair, say_once
from codmoe.datasets.reading import (
    PECULIAR,
    TOO_MANY,
    UnreadableFile,
    fits,
    is_complete,
    peculiarities,
    read_image,
    read_mask,
    too_large,
)
from codmoe.messages import listed

SIZE = "a few pixels larger or smaller than the image; maps are brought to the mask's size"


def _size(path: Path) -> tuple[int, int]:
    """Height and width by the file's header; ValueError with a short reason if it has none."""
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            size = image.height, image.width
            if isinstance(image, TiffImageFile):  # whose size is that of the picture turned
                size = image.tag_v2[257], image.tag_v2[256]
            file.seek(0)
            start = file.read(8)
            file.seek(-min(8, os.path.getsize(path)), os.SEEK_END)
            # Cheap for the usual formats; the whole file is read only where its end looks wrong.
            if not is_complete(start + file.read(8)):
                file.seek(0)
                if not is_complete(file.read()):
                    raise UnreadableFile(f"{path} is unreadable (truncated)")
    except UnreadableFile:
        raise
    except Image.DecompressionBombError:
        raise too_large(path) from None
    except UnidentifiedImageError:
        return read_image(str(path)).shape[:2]  # OpenCV knows forms of TIFF that Pillow does not
    except Exception as error:
        empty = path.exists() and path.stat().st_size == 0
        reason = "empty file" if empty else type(error).__name__
        raise UnreadableFile(f"{path} is unreadable ({reason})") from error
    return size


def _look(pair: Pair, any_size: bool) -> tuple[str, list[str]]:
    """The fault of a pair, or "", and what is peculiar about its mask."""
    try:
        size, mask = _size(pair.image), read_mask(str(pair.mask))
    except ValueError as error:
        return str(error), []
    found = peculiarities(mask)
    if size != mask.pixels.shape:
        (h, w), (mh, mw) = size, mask.pixels.shape
        if not any_size or not fits(size, mask.pixels.shape):
            return f"{pair.mask} is a mask of another size ({mw}x{mh}, its image is {w}x{h})", []
        found.append("size")
    return "", found


def check_pairs(
    pairs: Iterable[Pair], workers: int = 8, *, name: str = "data", any_size: bool = False
) -> None:
    """Opens every image's header and reads every mask, so that bad data is known at once.

    What may be meant, such as masks without an object, is logged, with its files.

    Args:
        pairs: Images and masks.
        workers: Threads.
        name: Name of the data set, for messages.
        any_size: Take masks a few pixels larger or smaller than their image, as in evaluation.

    Raises:
        ValueError: Files are unreadable or truncated, masks are no masks or of another size (all
            are counted, the first five named); no mask has an object, or most are inverted.
    """
    pairs = list(pairs)
    if not pairs:
        return
    Image.init()  # loads PIL's plugins, which is not safe in several threads at once
    with ThreadPoolExecutor(workers) as pool:
        looked = list(pool.map(lambda pair: _look(pair, any_size), pairs))
    if faults := [fault for fault, _ in looked if fault]:
        raise ValueError(
            f"{len(faults):,} of {len(pairs):,} image/mask pairs cannot be used: "
            + listed(faults, separator="; ")
            + f"; mend, replace or remove them{_advice(pairs)}"
        )
    masks, found = [pair.mask for pair in pairs], [kinds for _, kinds in looked]
    say = partial(say_once, place=masks[0].parent, level=logging.WARNING)
    name_peculiar(name, masks, found, say, _advice(pairs))


def _advice(pairs: Sequence[Pair]) -> str:
    """What shows all that is wrong with these files."""
    words = ["--images", str(pairs[0].image.parent), "--masks", str(pairs[0].mask.parent)]
    return f" (codmoe doctor {shlex.join(words)} says what is wrong)"


def name_peculiar(
    name: str,
    masks: Sequence[Path],
    found: Sequence[Sequence[str]],
    say: Callable[[str], None],
    advice: str = "",
) -> None:
    """Says what is odd about a data set's masks, kind by kind, with their files.

    ``found`` is what of :data:`PECULIAR` is true of each, or ``"size"``; ``advice`` is put behind
    an error.

    Raises:
        ValueError: No mask has an object, or most are inverted.
    """
    for key, what in {**PECULIAR, "size": SIZE}.items():
        files = [mask.name for mask, kinds in zip(masks, found, strict=True) if key in kinds]
        if not files:
            continue
        text = f"{name}: {len(files):,} of {len(masks):,} masks: {what} ({listed(files)})"
        if len(masks) > 1 and len(files) >= TOO_MANY.get(key, 2) * len(masks):
            raise ValueError(f"{text}; mend the masks{advice}")
        say(text)

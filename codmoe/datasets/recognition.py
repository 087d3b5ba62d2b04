"""Recognises images that weights were trained on, wherever their folder lies today."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

LENGTH = 6
"""Bytes that are kept of an image: of a million images no two are taken for each other."""
_PIECE = 4096


def marks(paths: Iterable[str | os.PathLike]) -> list[bytes | None]:
    """A mark of each file, of its length and of its first, middle and last 4 KB; None of one that
    cannot be read. A renamed or moved copy has the same, a picture that was stored anew another.
    """
    with ThreadPoolExecutor(16) as pool:  # a disk on the network answers late, and many at once
        return list(pool.map(_mark, paths))


def _mark(path: str | os.PathLike) -> bytes | None:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = hashlib.sha1(str(size).encode())
            for start in (0, size // 2, max(size - _PIECE, 0)):
                file.seek(start)
                found.update(file.read(_PIECE))
    except OSError:
        return None
    return found.digest()[:LENGTH]


def marks_of(dataset: Any) -> list[tuple[str, bytes | None]]:
    """Name of its data set and mark of each image that a data set reads from a file."""
    if not hasattr(dataset, "get_data_info"):
        return []
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    kept = [info for info in infos if info.get("img_path")]
    names = [str(info.get("dataset") or "data") for info in kept]
    return list(zip(names, marks(info["img_path"] for info in kept), strict=True))


def written(found: Iterable[bytes]) -> str:
    """Marks as a text, for the ``meta`` of weights."""
    return base64.b64encode(b"".join(sorted(found))).decode()


def read(text: Any) -> set[bytes]:
    """The marks of :func:`written`; none of anything else."""
    try:
        held = base64.b64decode(text or "", validate=True)
    except (TypeError, ValueError):
        return set()
    return {held[i : i + LENGTH] for i in range(0, len(held), LENGTH)}

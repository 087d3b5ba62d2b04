"""What the inferencer may be given, looked at before the first is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from codmoe.datasets.integrity import is_complete
from codmoe.datasets.layouts import IMAGE_EXTENSIONS

Picture = str | Path | np.ndarray | Image.Image


def collect(inputs: Picture | Sequence[Picture]) -> list[Path | np.ndarray]:
    """Files and RGB arrays of anything that :class:`Inferencer` takes, all looked at.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A file is unreadable, a folder empty, or an array no image.
    """
    if isinstance(inputs, (str, Path)) and Path(inputs).expanduser().is_dir():
        folder = Path(inputs).expanduser()
        found = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGE_EXTENSIONS]
        inputs = [path for path in found if not path.name.startswith(".")]
        if not inputs:
            raise ValueError(f"{folder} holds no images ({', '.join(IMAGE_EXTENSIONS)})")
    elif isinstance(inputs, (str, Path, np.ndarray, Image.Image)):
        inputs = [inputs]
    pictures = [_picture(item) for item in inputs]
    if not pictures:
        raise ValueError("inputs is empty; give a file, a folder, or a list of files or arrays")
    Image.init()  # loads PIL's plugins, which is not safe in several threads at once
    with ThreadPoolExecutor(4) as pool:
        files = [picture for picture in pictures if isinstance(picture, Path)]
        faulty = [
            path for path, good in zip(files, pool.map(_readable, files), strict=True) if not good
        ]
    if faulty:
        more = f" and {len(faulty) - 5:,} more" if len(faulty) > 5 else ""
        names = ", ".join(map(str, faulty[:5]))
        raise ValueError(
            f"unreadable (empty, truncated or not an image): {names}{more}; save them again, or "
            "take them out of what is given"
        )
    return pictures


def _picture(item: Any) -> Path | np.ndarray:
    if isinstance(item, (str, Path)):
        path = Path(item).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{path} is no file or folder; give one that is there")
        return path
    if isinstance(item, Image.Image):
        return np.asarray(item.convert("RGB"))
    if not isinstance(item, np.ndarray):
        raise ValueError(f"inputs holds a {type(item).__name__}; give paths, arrays or PIL images")
    if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3 or not item.size:
        raise ValueError(f"an array {item.shape} of {item.dtype} is not (H, W, 3) uint8 RGB")
    return np.ascontiguousarray(item)


def _readable(path: Path) -> bool:
    """By header and end; the whole file is read only where its end looks wrong."""
    try:
        with Image.open(path) as image:
            image.size  # noqa: B018
        with path.open("rb") as file:
            start = file.read(8)
            file.seek(-8, 2)
            return is_complete(start + file.read(8)) or is_complete(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False

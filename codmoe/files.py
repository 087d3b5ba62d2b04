"""Writing result files: complete or not at all, and never over what somebody already has."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any


def keep_old(path: str | os.PathLike) -> Path | None:
    """Renames an existing file to ``<stem>.<YYYYmmdd-HHMMSS><suffix>`` in its folder.

    Returns:
        The new path of the old file, or None if there was nothing to keep.

    Raises:
        ValueError: ``path`` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the path of a file in it.")
    if not os.path.lexists(path):
        return None
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    kept = path.with_name(f"{path.stem}.{stamp}{path.suffix}")
    count = 1
    # Two writes within one second would otherwise take the same name, and rename replaces silently.
    while os.path.lexists(kept):
        count += 1
        kept = path.with_name(f"{path.stem}.{stamp}-{count}{path.suffix}")
    path.rename(kept)
    return kept


@contextmanager
def replacing(path: str | os.PathLike, *, keep: bool = True) -> Iterator[Path]:
    """A temporary path that becomes ``path`` when the block ends well.

    The temporary file lies in the same folder, because ``os.replace`` is atomic only within one
    file system, and has the same suffix, because writers read the format from it. A file already at
    ``path`` is kept under a dated name (see :func:`keep_old`) unless ``keep`` is off, which is for
    files that the run itself wrote. If the block raises, nothing changes.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the path of a file in it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        if keep:
            keep_old(path)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_text(path: str | os.PathLike, text: str) -> Path:
    """Writes a text file in UTF-8; a file that is already there is kept, see :func:`keep_old`.

    Returns:
        ``path``.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def save_json(path: str | os.PathLike, payload: Any) -> Path:
    """Writes ``payload`` as JSON; a file that is already there is kept, see :func:`keep_old`.

    Arrays and tensors become lists, paths strings, and NaN and infinities null, which JSON has no
    number for.

    Returns:
        ``path``.
    """
    text = json.dumps(_plain(payload), indent=2, ensure_ascii=False, allow_nan=False)
    return save_text(path, text + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # of numpy or torch
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, os.PathLike) else value

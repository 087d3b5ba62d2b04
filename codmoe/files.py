"""Writing result files: complete or not at all, and never over what somebody already has."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path


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
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path that becomes ``path`` when the block ends well.

    The temporary file lies in the same folder, because ``os.replace`` is atomic only within one
    file system, and has the same suffix, because writers read the format from it. A file already at
    ``path`` is kept under a dated name (see :func:`keep_old`). If the block raises, nothing
    changes.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the path of a file in it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        keep_old(path)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

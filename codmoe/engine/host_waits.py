"""Where the host waits for the device in a training step."""

from __future__ import annotations

import os
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def noting_waits(counts: Counter[str]) -> Iterator[None]:
    """Counts torch's warnings of a host that waits for the device, by the line that made it."""

    def note(message, category, filename, lineno, file=None, line=None) -> None:
        if "synchronizing CUDA operation" not in str(message):
            return earlier(message, category, filename, lineno, file, line)
        frames = [
            f for f in traceback.extract_stack()[:-1] if not f.filename.endswith("warnings.py")
        ]
        outer = [f for f in frames if f"{os.sep}torch{os.sep}" not in f.filename] or frames
        where = f"{_short(outer[-1].filename)}:{outer[-1].lineno}"
        counts[where] += 1
        return None

    earlier = warnings.showwarning
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=".*synchronizing CUDA operation")
        warnings.showwarning = note
        yield


def _short(filename: str) -> str:
    return "/".join(Path(filename).parts[-3:])

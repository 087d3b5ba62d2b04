"""Builds the sentences that answer bad input, and says them, or less, as the user wants it."""

from __future__ import annotations

import difflib
import dis
import logging
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

SHOWN = 5
"""Items of a list that a message shows before it counts the rest."""
QUIET = "CODMOE_QUIET"
"""Environment variable that ``--quiet`` sets, also for child processes."""


def is_quiet() -> bool:
    """Whether ``--quiet`` was given: no progress bars and notes then."""
    return bool(os.environ.get(QUIET))


def speaks() -> bool:
    """Whether this process is the one of several that speaks; before their group stands, the
    environment knows which.
    """
    return (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0") == "0"


def note(text: str) -> None:
    """Says what is worth knowing, and no error, on standard error; one process of several does."""
    if speaks() and not is_quiet():
        print(text, file=sys.stderr)


def warn(text: str) -> None:
    """Says on standard error what may make a result another than it seems, with ``--quiet`` too."""
    if speaks():
        print(f"warning: {text}", file=sys.stderr)


@contextmanager
def quietly() -> Iterator[None]:
    """What ``--quiet`` means: standard output goes nowhere, that of child processes included."""
    before = os.environ.get(QUIET)
    os.environ[QUIET] = "1"
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), muted(1):
            yield
    finally:
        os.environ.pop(QUIET)
        if before is not None:
            os.environ[QUIET] = before


@contextmanager
def muted(stream: int) -> Iterator[None]:
    """Drops what is written to standard output (1) or error (2), by libraries below Python too."""
    for written in filter(None, (sys.__stdout__, sys.__stderr__)):
        written.flush()
    kept = os.dup(stream)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream)
        yield
    finally:
        os.dup2(kept, stream)
        os.close(kept)


@contextmanager
def hushed(logger: logging.Logger) -> Iterator[None]:
    """A logger tells of nothing but errors while the block runs."""
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def command_line() -> list[str]:
    """What started this process, as a user types it again."""
    program, *words = sys.argv
    path = Path(program)
    if path.stem == "codmoe":
        return ["codmoe", *words]
    if path.name == "__main__.py":
        return ["python", "-m", path.parent.name, *words]
    return ["python", *sys.argv]


def nearest(name: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """Valid names that look like ``name``, the most alike first; upper and lower case are equal."""
    by_lower = {choice.lower(): choice for choice in valid}
    return [by_lower[m] for m in difflib.get_close_matches(name.lower(), by_lower, count, 0.6)]


def beside(path: Path, ending: str = "") -> list[str]:
    """The path in the folder of one that is not there whose name is the most like its own and has
    this ending; empty if none is.
    """
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    close = nearest(path.name, (name for name in names if name.endswith(ending)), 1)
    return [str(path.parent / name) for name in close]


def did_you_mean(names: Iterable[str]) -> str:
    """``"did you mean 'a' or 'b'?"``."""
    return "did you mean " + " or ".join(map(repr, names)) + "?"


def suggest(name: str, valid: Iterable[str]) -> str:
    """``"did you mean 'a' or 'b'?"``, or the list of all valid names when none is near."""
    valid = list(valid)
    close = nearest(name, valid)
    if close:
        return did_you_mean(close)
    return "valid names: " + ", ".join(sorted(valid))


def listed(
    items: Sequence[Any],
    *,
    shown: int = SHOWN,
    separator: str = ", ",
    show: Callable[[Any], str] = str,
) -> str:
    """The first ``shown`` items, each as ``show`` writes it (``repr`` quotes names), and how many
    more there are; ``"nothing"`` for none.
    """
    if not items:
        return "nothing"
    text = separator.join(map(show, items[:shown]))
    if len(items) <= shown:
        return text
    pause = "" if separator == ", " else separator.rstrip()
    return f"{text}{pause} and {len(items) - shown:,} more"


def short(value: Any) -> str:
    """A value for a message, cut after 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def on_purpose(error: BaseException) -> bool:
    """Whether a ``raise`` of this project or of the user's own code made the error.

    Its message is for the user then; that of a library, or of Python itself, seldom helps. An error
    of a type of this project's may have been raised anew by torch, for a loader's worker.
    """
    if type(error).__module__.startswith("codmoe."):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    if code.co_code[trace.tb_lasti] != dis.opmap["RAISE_VARARGS"]:
        return False
    if str(trace.tb_frame.f_globals.get("__name__")).startswith("codmoe."):
        return True
    libraries = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))
    return not code.co_filename.startswith(libraries)


def printable(text: str, keep: str = "") -> str:
    """A text in which line breaks, control characters and what is no text are written out.

    Names of files come from strangers: a line break ends a table's row, an escape sequence colours
    the terminal, and bytes that are not UTF-8 (lone surrogates in Python) cannot be written at all.

    Args:
        text: Such as a file's name.
        keep: Characters that stay, such as line breaks of a longer message.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )

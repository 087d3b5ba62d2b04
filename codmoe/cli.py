"""Parses the tools' command lines, and ends each of them, whatever fails, with one sentence."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from codmoe.interruption import interruption
from codmoe.messages import on_purpose, printable

DEBUG = "CODMOE_DEBUG"
"""Environment variable that does what ``--debug`` does, also in child processes."""
Option = tuple[tuple[str, ...], dict[str, Any]]


def option(*names: str, **settings: Any) -> Option:
    """Arguments of ``ArgumentParser.add_argument``, kept for :func:`main`."""
    return names, settings


def whole(least: int = 1, most: int = 2**31 - 1) -> Callable[[str], int]:
    """The ``type`` of a number option within bounds."""

    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            bounds = f"{least} to {most:,}" if most < 2**31 - 1 else f"{least} up"
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {bounds}")
        return int(text)

    return number


CONFIG = option("config", help="config file, or name of a shipped one (ensemble/stage3)")
CFG_OPTIONS = option(
    "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="override the config"
)
COMPILE = option(
    "--compile", nargs="*", metavar="KEY=VALUE", help="faster: CUDA graphs; e.g. dtype=fp16"
)
DATA = (
    option("--data-root", help="folder of the data set, the config's or your own"),
    option("--images", help="with --masks: folder of your own images, instead of the config's"),
    option("--masks", help="folder of their masks, of equal names"),
)
LAUNCHER = (
    option("--launcher", choices=("none", "pytorch", "slurm"), default="none"),
    option("--local-rank", "--local_rank", type=int, default=0, help="set by torchrun"),
)
TRUST_CODE = option(
    "--trust-code", action="store_true", help="import what the checkpoint's config asks for"
)
WORK_DIR = option(
    "--work-dir", help="logs and training checkpoints; work_dirs/NAME of the config by default"
)


def main(run: Callable[[argparse.Namespace], Any], *options: Option, description: str) -> None:
    """Parses the command line, calls ``run`` and ends the process as :func:`one_sentence` says.

    Args:
        run: Does the work; what it returns is the exit code, None for 0. It imports what it needs
            itself, so that a misspelt option is answered at once. A ``work_dir`` that it settles
            goes into its argument, for the log of an unexpected error.
        options: Of :func:`option`; ``--debug`` is added.
        description: Text of ``--help``.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for names, settings in options:
        several = names[0].startswith("-") and settings.get("nargs") in ("+", "*")
        if several and not settings.get("default"):  # a default would be extended too
            settings = {"action": "extend", **settings}  # given twice, both count
        parser.add_argument(*names, **settings)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        # A file's name need not be text in the terminal's encoding.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if args.debug:
        os.environ[DEBUG] = "1"
    with interruption.handled(), one_sentence(args):
        sys.exit(run(args))


@contextmanager
def one_sentence(args: argparse.Namespace | None = None) -> Iterator[None]:
    """Ends the process with one sentence on standard error and exit code 1 on any error.

    An error that this project (or a module of the user's) raised on purpose is shown as it is. Of
    anything else the traceback goes into a file below ``args.work_dir``, which the sentence names.
    ``--debug`` or :data:`DEBUG` in the environment leaves all errors as they are.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of a pipe, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if interruption.signum:  # another process of the run has left, or a worker was ended
            interruption.leave()
        if os.environ.get(DEBUG):
            raise
        sys.exit(printable(f"error: {_said(error) or _unexpected(error, args)}", keep="\n"))


def _said(error: Exception) -> str | None:
    """What to tell the user; None for an error that nobody raised on purpose."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's
        return (
            f"the GPU is out of memory ({str(error).partition('. ')[0]}); take a smaller batch "
            "(train_dataloader.batch_size=, --batch-size) or smaller images"
        )
    if isinstance(error, MemoryError):
        return "out of memory; take fewer workers, smaller images or a smaller batch"
    remote = _of_other_process(error)
    if remote:
        return _last_sentence(remote) if re.search(r"\n\s+raise .*\n(?!\s+File)", remote) else None
    if isinstance(error, OSError) and error.strerror:
        places = [os.fsdecode(p) for p in (error.filename, error.filename2) if p is not None]
        return f"{' and '.join(map(repr, places)) or 'the system'}: {error.strerror}"
    return str(error) if on_purpose(error) else None


def _of_other_process(error: Exception) -> str | None:
    """The traceback, as text, of an error that came from a worker process."""
    if "\nOriginal Traceback (most recent call last)" in str(error):
        return str(error)
    cause = error.__cause__
    return str(cause) if type(cause).__name__ == "_RemoteTraceback" else None


def _last_sentence(text: str) -> str:
    """The message at the end of a traceback's text."""
    end = re.split(r"\n(?=[\w.]+(?:Error|Exception|File|Interrupt): )", text.strip().strip('"'))[-1]
    return end.partition(": ")[2].strip() or end


def _unexpected(error: Exception, args: argparse.Namespace | None) -> str:
    """The sentence for a fault of ours; the traceback goes into a file."""
    frames = traceback.extract_tb(error.__traceback__)
    name = f"error-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
    text = f"{' '.join(sys.argv)}\n{''.join(traceback.format_exception(error))}"
    log = None
    for folder in (getattr(args, "work_dir", None) or "work_dirs", tempfile.gettempdir()):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            log = Path(folder) / name
            log.write_text(text, encoding="utf-8", errors="backslashreplace")
            break
        except OSError:
            log = None
    first = (str(error).splitlines() or [""])[0]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown place"
    return (
        f"unexpected {type(error).__name__} ({first}) at {where}; please report it with "
        + (f"{log}, which holds the traceback" if log else "its traceback")
        + "; --debug shows it here"
    )

"""The command ``codmoe``: parses command lines, and ends each, whatever fails, with one sentence.

On argparse, for no wrapper of it takes ``--cfg-options a=1 b=2`` (several words after one option).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from codmoe import __doc__ as about
from codmoe import __version__
from codmoe.commands import COMMANDS
from codmoe.commands.options import Option
from codmoe.interruption import interruption
from codmoe.messages import nearest, on_purpose, printable, suggest

DEBUG = "CODMOE_DEBUG"
"""Environment variable that does what ``--debug`` does, also in child processes."""


class Parser(argparse.ArgumentParser):
    """A parser that answers wrong usage with one sentence, and a misspelt option with the right."""

    def parse_known_args(self, args=None, namespace=None):
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        known = self._option_string_actions
        given = [word.partition("=")[0] for word in self._words if word.startswith("--")]
        for word in given:
            close = [] if any(k.startswith(word) for k in known) else nearest(word, known)
            if close:
                message += f"; {word} is no option, did you mean {' or '.join(close)}?"
                break
        self.exit(2, printable(f"error: {message} ({self.prog} --help shows what it takes)") + "\n")


def main(
    run: Callable[[argparse.Namespace], Any],
    *options: Option,
    description: str | None,
    prog: str | None = None,
    words: Sequence[str] | None = None,
) -> None:
    """Parses the command line, calls ``run`` and ends the process as :func:`one_sentence` says.

    Args:
        run: Does the work; what it returns is the exit code, None for 0. It imports what it needs
            itself, so that a misspelt option is answered at once. A ``work_dir`` that it settles
            goes into its argument, for the log of an unexpected error.
        options: Of :func:`codmoe.commands.options.option`; ``--debug`` is added.
        description: Text of ``--help``.
        prog: What the user typed before the options; the script's name by default.
        words: What to parse; what follows the script's name by default.
    """
    parser = Parser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for names, settings in options:
        several = names[0].startswith("-") and settings.get("nargs") in ("+", "*")
        if several and not settings.get("default"):  # a default would be extended too
            settings = {"action": "extend", **settings}  # given twice, both count
        parser.add_argument(*names, **settings)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(words)
    for stream in (sys.stdout, sys.stderr):
        # A file's name need not be text in the terminal's encoding.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if args.debug:
        os.environ[DEBUG] = "1"
    with interruption.handled(), one_sentence(args):
        sys.exit(run(args))


def tool(name: str) -> None:
    """Runs a command in the place of the script ``tools/<name>.py``."""
    _run(name, f"python {sys.argv[0]}", sys.argv[1:])


def _run(name: str, prog: str, words: Sequence[str]) -> None:
    found = import_module(f"codmoe.commands.{name}")
    main(found.run, *found.OPTIONS, description=found.__doc__, prog=prog, words=words)


def command() -> None:
    """The command ``codmoe``."""
    names = [name for group in COMMANDS.values() for name in group]
    name, *words = sys.argv[1:] or ["--help"]
    if name in names:
        return _run(name, f"codmoe {name}", words)
    lines = [
        f"\n{title}:\n" + "\n".join(f"  {name:10}  {line}" for name, line in group.items())
        for title, group in COMMANDS.items()
    ]
    parser = Parser(
        prog="codmoe",
        usage="codmoe COMMAND ...",
        description="\n".join([about or "", *lines]),
        epilog="codmoe COMMAND --help shows what a command takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"codmoe {__version__}")
    if not name.startswith("-"):
        parser.parse_known_args([])
        parser.error(f"no command {name!r}; {suggest(name, names)}")
    parser.parse_args([name, *words])


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

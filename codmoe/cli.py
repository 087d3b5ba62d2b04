"""The command ``codmoe``: parses command lines, and ends each, whatever fails, with one sentence.

On argparse, for no wrapper of it takes ``--cfg-options a=1 b=2`` (several words after one option).
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import argcomplete
from rich_argparse import RawDescriptionRichHelpFormatter

from codmoe import __version__
from codmoe.commands import COMMANDS
from codmoe.commands.options import Option, config, model, option
from codmoe.interruption import interruption
from codmoe.messages import nearest, on_purpose, printable, quietly, suggest
from codmoe.shipped import list_configs

DEBUG = "CODMOE_DEBUG"
"""Environment variable that does what ``--debug`` does, also in child processes."""


class _Help(RawDescriptionRichHelpFormatter):
    """Help with colours, where the terminal has some and NO_COLOR is not set."""

    text_markup = help_markup = False
    highlights: ClassVar = [
        *RawDescriptionRichHelpFormatter.highlights,
        r"^  (?P<args>[a-z]+)  +\S",
    ]


class Parser(argparse.ArgumentParser):
    """A parser that answers wrong usage with one sentence, and a misspelt option with the right."""

    def __init__(self, prog: str | None = None, **settings: Any) -> None:
        super().__init__(prog=prog, formatter_class=_Help, **settings)

    def take(self, options: Iterable[Option]) -> None:
        """Adds a command's options, and ``--debug``."""
        debug = option("--debug", action="store_true", help="show the traceback of an error")
        for names, settings in (*options, debug):
            several = names[0].startswith("-") and settings.get("nargs") in ("+", "*")
            if several and not settings.get("default"):  # a default would be extended too
                settings = {"action": "extend", **settings}  # given twice, both count
            kind = settings.get("type")
            if kind and "_ARGCOMPLETE" in os.environ:
                settings = {**settings, "type": None}  # an unfinished line may name files to come
            action = self.add_argument(*names, **settings)
            if kind in (config, model):
                action.completer = _configs  # type: ignore[attr-defined]

    def parse_known_args(self, args=None, namespace=None):
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        known = self._option_string_actions
        given = [word.partition("=")[0] for word in self._words if word.startswith("--")]
        for word in given:
            long = [name.lstrip("-") for name in known]
            close = [f"--{name}" for name in nearest(word[2:], long)]
            if close and not any(name.startswith(word) for name in known):
                wrong = "" if word in message else f"{word} is no option, "
                message += f"; {wrong}did you mean {' or '.join(close)}?"
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
    parser = Parser(prog=prog, description=description)
    parser.take(options)
    with one_sentence():  # of a file that is not there
        args = parser.parse_args(words)
    args.words = sys.argv[1:] if words is None else list(words)
    for stream in (sys.stdout, sys.stderr):
        # A file's name need not be text in the terminal's encoding.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if args.debug:
        os.environ[DEBUG] = "1"
    quiet = quietly() if getattr(args, "quiet", False) else nullcontext()
    with interruption.handled(), one_sentence(args), quiet:
        sys.exit(run(args))


def tool(name: str) -> None:
    """Runs a command in the place of the script ``tools/<name>.py``."""
    _run(name, f"python {sys.argv[0]}", sys.argv[1:])


def _run(name: str, prog: str, words: Sequence[str]) -> None:
    found = import_module(f"codmoe.commands.{name}_command")
    main(found.run, *found.OPTIONS, description=found.__doc__, prog=prog, words=words)


def command() -> None:
    """The command ``codmoe``."""
    names = {name: line for group in COMMANDS.values() for name, line in group.items()}
    if "_ARGCOMPLETE" in os.environ:
        _complete(names)
    name, *words = sys.argv[1:] or ["--help"]
    if name in names:
        return _run(name, f"codmoe {name}", words)
    parser = _parser()
    if not name.startswith("-"):
        parser.parse_known_args([])
        parser.error(f"no command {name!r}; {suggest(name, names)}")
    parser.parse_args([name, *words])
    parser.error(f"{shlex.join([name, *words])}: no command is given")


def _parser() -> Parser:
    """What comes before a command, and the list of all."""
    lines = [
        f"\n{title}:\n" + "\n".join(f"  {name:10}  {line}" for name, line in group.items())
        for title, group in COMMANDS.items()
    ]
    parser = Parser("codmoe", usage="codmoe COMMAND ...", description="\n".join([ABOUT, *lines]))
    parser.epilog = MANNERS
    parser.add_argument("--version", action="version", version=f"codmoe {__version__}")
    parser.add_argument(
        "--completion",
        action=_Completion,
        choices=("bash", "zsh", "fish"),
        help="print what completes commands, options and names of configs in a shell; bash: "
        'eval "$(codmoe --completion bash)"; fish: codmoe --completion fish | source',
    )
    return parser


ABOUT = "Camouflaged object detection with a mixture of complete expert decoders."
MANNERS = """codmoe COMMAND --help shows what a command takes.

Exit codes: 0 done; 1 an error, said in one sentence (doctor: also for faults in the data);
2 wrong usage; 128 + N ended by signal N. --quiet prints errors and warnings alone, NO_COLOR=1 in
the environment no colours, --debug the traceback of an error."""


class _Completion(argparse.Action):
    """Prints what a shell runs to complete command lines."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        print(argcomplete.shellcode(["codmoe"], shell=str(values)))
        parser.exit()


def _complete(names: Mapping[str, str]) -> None:
    """Answers the shell, which asks what could come next, and ends the process."""
    parser = _parser()
    commands = parser.add_subparsers()
    for name, line in names.items():
        below = commands.add_parser(name, help=line)
        if name in os.environ.get("COMP_LINE", "").split():
            below.take(import_module(f"codmoe.commands.{name}_command").OPTIONS)
    argcomplete.autocomplete(parser)


def _configs(prefix: str, **_: Any) -> list[str]:
    """Names of shipped configs and files, for the shell."""
    files = argcomplete.FilesCompleter(("py",))(prefix)
    return [name for name in (*list_configs(), *files) if name.startswith(prefix)]


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
        said = _said(error)
        # Another process of the run has left, or a worker was ended.
        if interruption.signum or (not said and interruption.was_asked()):
            interruption.leave()
        if os.environ.get(DEBUG):
            raise
        text = printable(f"error: {said or _unexpected(error, args)}", keep="\n")
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            sys.exit(text)
        # Beside other processes: Python writes the end of the line apart, and lines would mix.
        sys.stderr.flush()
        os.write(2, f"{text}\n".encode(errors="replace"))
        sys.exit(1)


def _said(error: Exception) -> str | None:
    """What to tell the user; None for an error that nobody raised on purpose."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's
        return (
            f"the GPU is out of memory ({str(error).partition('. ')[0]}); take a smaller batch "
            "(train_dataloader.batch_size=, --auto-batch, --batch-size) or smaller images"
        )
    if isinstance(error, MemoryError):
        return "out of memory; take fewer workers, smaller images or a smaller batch"
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):
        return f"{error}: a link that leads back to itself; give another path"  # of pathlib
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


def _of_the_user(frames: Iterable[traceback.FrameSummary]) -> traceback.FrameSummary | None:
    """Where a module of the user's went wrong: the last frame but those of installed packages, if
    it is not ours. Before ours lies what started the command.
    """
    package, entered, found = Path(__file__).parent, False, None
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    for frame in frames:
        file = Path(frame.filename)
        if package in file.parents:
            entered, found = True, None
            continue
        library = not {"site-packages", "dist-packages"}.isdisjoint(file.parts)
        library |= file.suffix != ".py" or any(one in file.parents for one in installed)
        if entered and not library:
            found = frame
    return found


def _unexpected(error: Exception, args: argparse.Namespace | None) -> str:
    """The sentence for a fault of ours, or of a module of the user's; the traceback goes into a
    file.
    """
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
    fault = f"unexpected {type(error).__name__} ({first})"
    if own := _of_the_user(frames):
        fault += f" in {own.filename}:{own.lineno}, which is not codmoe's"
        traced = f"the traceback is in {log}" if log else "its traceback was not kept"
    else:
        fault += f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}"
        traced = "please report it with "
        traced += f"{log}, which holds the traceback" if log else "its traceback"
    return f"{fault}; {traced}; --debug shows it here"

"""Options that commands share, and how a command declares its own."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codmoe.interruption import COMMAND
from codmoe.messages import beside, command_line, did_you_mean
from codmoe.shipped import config_root, find_config, is_shipped, shipped_weights

Option = tuple[tuple[str, ...], dict[str, Any]]


def option(*names: str, **settings: Any) -> Option:
    """Arguments of ``ArgumentParser.add_argument``, kept until a parser is made."""
    return names, settings


def whole(least: int = 1, most: int = 2**31 - 1) -> Callable[[str], int]:
    """The ``type`` of a number option within bounds."""

    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            bounds = f"{least} to {most:,}" if most < 2**31 - 1 else f"{least} up"
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {bounds}")
        return int(text)

    return number


def on_gpus(script: str, args: argparse.Namespace) -> None:
    """Has ``--gpus`` processes of ``tools/<script>.py`` take the place of this one, by torchrun.

    Does nothing for one process, and in each of those.
    """
    if args.gpus == 1 or args.launcher != "none":
        return
    tools = config_root().parent / "tools"
    command = ["bash", str(tools / "dist_run.sh"), str(tools / f"{script}.py"), str(args.gpus)]
    again = {COMMAND: shlex.join(command_line()), **os.environ}  # what goes on when interrupted
    sys.stdout.flush()
    os.execvpe("bash", [*command, *args.words], dict(again, PYTHON=sys.executable))


def config(text: str) -> str:
    """The ``type`` of a config's path or name: one that is there."""
    find_config(text)
    return text


def model(text: str) -> str:
    """As :func:`config`, or the name of a model that ships trained."""
    return text if is_shipped(text) else config(text)


def there(sentence: str) -> Callable[[str], str]:
    """The ``type`` of a path that has to be there: torch takes seconds before it could say so.

    Args:
        sentence: What is said otherwise, with ``{}`` for the path.
    """

    def path(text: str) -> str:
        asked = Path(text).expanduser()
        if not asked.exists():
            close = beside(asked)
            hint = f"; {did_you_mean(close)}" if close else ""
            raise FileNotFoundError(sentence.format(asked) + hint)
        return text

    return path


checkpoint = there("checkpoint {} does not exist")


def weights(text: str) -> str:
    """As :func:`checkpoint`, or the name of a model that ships trained."""
    shipped = is_shipped(text) and not Path(text).exists()
    return str(shipped_weights(text)) if shipped else checkpoint(text)


images = there("{} is no file or folder; give one that is there")


def inferencer(args: argparse.Namespace, **settings: Any) -> Any:
    """The :class:`Inferencer` that :data:`MODEL` and :data:`TRUST_CODE` ask for, and :data:`TILE`
    and :data:`VIEWS` where a command has them; ``settings`` are further arguments.
    """
    from codmoe.inference.inferencer import Inferencer

    if "tile" in args:
        settings.update(tile=args.tile, flip=args.flip, scales=args.scales or (1.0,))
    settings.update(image_size=args.size, device=args.device, trust_code=args.trust_code)
    return Inferencer(args.config, args.checkpoint, **settings)


def pair(text: str) -> str:
    """The ``type`` of ``KEY=VALUE``."""
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
    return text


def share(text: str) -> float:
    """The ``type`` of an option that takes a number between 0 and 1."""
    try:
        if 0 < float(text) < 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no number between 0 and 1")


CONFIG = option(
    "config", type=config, help="config file, or name of a shipped one (ensemble/stage3)"
)
CFG_OPTIONS = option(
    "--cfg-options",
    nargs="+",
    type=pair,
    default=[],
    metavar="KEY=VALUE",
    help="override the config",
)
COMPILE = option(
    "--compile",
    nargs="*",
    type=pair,
    metavar="KEY=VALUE",
    help="faster: CUDA graphs; e.g. dtype=fp16",
)
DATA = (
    option("--data-root", help="folder of the data set, the config's or your own"),
    option("--images", help="with --masks: folder of your own images, instead of the config's"),
    option("--masks", help="folder of their masks, of equal names"),
)
LAUNCHER = (
    option("--gpus", type=whole(most=1024), default=1, help="processes, one a GPU"),
    option("--launcher", choices=("none", "pytorch", "slurm"), default="none"),
    option("--local-rank", "--local_rank", type=int, default=0, help="set by torchrun"),
)
MODEL = (
    option("--config", type=model, help="config file or name; by default the checkpoint's own"),
    option(
        "--size",
        type=whole(most=16_384),
        help="side of the network's input; by default the config's",
    ),
    option("--device", help="by default the first GPU if there is one"),
)
QUIET = option("--quiet", action="store_true", help="print errors and warnings alone")
TILE = option(
    "--tile", type=whole(64), metavar="N", help="larger images also in squares of N pixels"
)
TRAINING = (
    option(
        "--log",
        action="append",
        default=[],
        choices=("tensorboard", "wandb", "mlflow"),
        help="curves there, too; may be given several times",
    ),
    option(
        "--early-stop",
        type=whole(),
        metavar="N",
        help="end after N validations without a better one",
    ),
    option(
        "--accumulate", type=whole(), metavar="N", help="the mean gradient of N batches is a step"
    ),
    option(
        "--ema",
        nargs="?",
        const=0.002,
        type=share,
        metavar="MOMENTUM",
        help="validate and keep averaged weights; 0.002",
    ),
    option("--auto-batch", action="store_true", help="as large a batch as the GPU takes"),
)
TRUST_CODE = option(
    "--trust-code", action="store_true", help="import what the checkpoint's config asks for"
)
VIEWS = (
    option("--flip", action="store_true", help="mean of the image and its mirror image"),
    option("--scales", nargs="+", type=float, metavar="S", help="mean of sizes, e.g. 0.75 1 1.25"),
)
WEIGHTS = option(
    "--checkpoint",
    type=weights,
    help="weights, e.g. ensemble_best.pth; by default those that ship",
)
WORK_DIR = option(
    "--work-dir", help="logs and training checkpoints; work_dirs/NAME of the config by default"
)

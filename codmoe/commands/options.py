"""Options that commands share, and how a command declares its own."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

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

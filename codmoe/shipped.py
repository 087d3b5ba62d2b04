"""Finds the configs and trained weights that ship with the package, without importing torch."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any, TypeGuard

from codmoe.messages import beside, did_you_mean, nearest, suggest

SHIPPED = dict(small="small/finetune")
"""Name of each model that ships trained, and a config with the same model."""
ABOUT = dict(
    small="four experts on a ViT-S, for a first look: trained on openly licensed photographs "
    "and synthetic camouflage, mean IoU .49 on CAMO's photographs"
)
"""What each of them is and is good for, in one line."""
DEFAULT = "small"
FOLDER = Path(__file__).resolve().parent / "weights"
"""Holds ``<name>_ensemble.safetensors`` and ``MODEL_CARD.md``."""


def config_root() -> Path:
    """The folder ``configs``: of the checkout, or as it was installed with the wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "configs"
    return checkout if checkout.is_dir() else package / "configs"


def list_configs() -> list[str]:
    """Names of the shipped configs, e.g. ``"ensemble/stage3"``."""
    root = config_root()
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    return sorted(str(path.with_suffix("")) for path in paths if "_base_" not in path.parts)


def find_config(name: str | Path) -> Path:
    """A config by path, or by the name of a shipped one.

    Raises:
        FileNotFoundError: There is none; the message names the nearest, of the same folder first.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    stem = str(name).removeprefix("configs/").removesuffix(".py")
    shipped = config_root() / f"{stem}.py"
    if shipped.is_file() and "_base_" not in Path(stem).parts:
        return shipped
    if is_shipped(stem):
        raise FileNotFoundError(f"{stem!r} names weights; their config is {SHIPPED[stem]!r}")
    configs = list_configs()
    own = beside(path, ".py")
    hint = did_you_mean([*own, *nearest(stem, configs)]) if own else suggest(stem, configs)
    raise FileNotFoundError(f"config {str(name)!r} does not exist; {hint}")


def is_shipped(name: Any) -> TypeGuard[str]:
    """Whether this is the name of a model that ships trained."""
    return isinstance(name, str) and name in SHIPPED


def shipped_names(pattern: str = "*") -> list[str]:
    """Names of the models that ship trained and match a shell pattern."""
    return fnmatch.filter(sorted(SHIPPED), pattern)


def shipped_weights(name: str = DEFAULT) -> Path:
    """Weights file of a model that ships trained.

    Raises:
        ValueError: There is no such model.
        FileNotFoundError: This installation lacks the file.
    """
    if not is_shipped(name):
        raise ValueError(f"no model {name!r} ships trained; {suggest(str(name), SHIPPED)}")
    path = FOLDER / f"{name}_ensemble.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"the trained weights {name!r} are not in this installation ({path} does not exist); "
            "install a package that has them, or give checkpoint='FILE'"
        )
    return path

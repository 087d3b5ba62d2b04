"""The trained weights that ship with the package: what they are called and where they lie."""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path
from typing import Any

from codmoe.registry import suggest

READY = dict(small="small/stage3")
"""Name of each ready model, and the config that trained it."""
DEFAULT = "small"
FOLDER = Path(__file__).resolve().parents[1] / "weights"
"""Holds ``<name>_ensemble.safetensors`` and ``MODEL_CARD.md``."""


def is_ready(name: Any) -> bool:
    """Whether this is the name of a model that ships trained."""
    return isinstance(name, str) and name in READY


def ready_names(pattern: str = "*") -> list[str]:
    """Names of the ready models that match a shell pattern."""
    return fnmatch.filter(sorted(READY), pattern)


def ready_weights(name: str = DEFAULT) -> Path:
    """Weights file of a ready model.

    Raises:
        ValueError: There is no such model.
        FileNotFoundError: This installation lacks the file.
    """
    if not is_ready(name):
        raise ValueError(f"{name!r} is no ready model; {suggest(str(name), READY)}")
    path = FOLDER / f"{name}_ensemble.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"the trained weights {name!r} are not in this installation ({path} does not exist); "
            "install a package that has them, or give checkpoint='FILE'"
        )
    return path


def weights_to_use(model: Any, checkpoint: Any) -> tuple[Any, Any]:
    """What ``create_model`` takes, of an :class:`Inferencer`'s ``model`` and ``checkpoint``.

    Without a checkpoint these are the ready weights, and one line on standard error says so.

    Raises:
        ValueError: A model is named that has no weights.
        FileNotFoundError: This installation lacks the weights.
    """
    if checkpoint is not None:
        return model, checkpoint
    if model is not None and not is_ready(model):
        raise ValueError(
            f"Inferencer needs checkpoint='FILE.pth' for {str(model)!r} (or a model that has its "
            f"weights already, or one that ships trained: {', '.join(READY)})"
        )
    name = model or DEFAULT
    path = ready_weights(name)
    print(
        f"using the trained weights {name!r} that ship with codmoe; what they can do and where "
        f"they fail: {FOLDER / 'MODEL_CARD.md'}",
        file=sys.stderr,
    )
    return None, path

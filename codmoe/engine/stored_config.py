"""The config that a weights file carries, read as plain values and never run."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from codmoe.engine.checkpoints import SAFE, read_meta


def stored_config(checkpoint: str | Path) -> Config | None:
    """The config that made a weights file, or None if the file does not hold it.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The config is more than plain values.
    """
    meta = meta_of(checkpoint)
    text = meta.get("config") or meta.get("cfg")
    if not isinstance(text, str):
        return None
    _require_plain(text, checkpoint)
    return Config.fromstring(text, ".py")


def meta_of(checkpoint: str | Path) -> dict[str, Any]:
    """``meta`` of a weights file or of an mmengine training checkpoint; empty if it has none.

    Raises:
        FileNotFoundError: No such file.
    """
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    meta = read_meta(path)
    if meta or path.suffix == SAFE:
        return meta
    # mmengine's training checkpoints hold objects of its own; load_parts reads them so, too.
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=False).get("meta") or {})
    except Exception:
        return {}


_PLAIN = (
    ast.Module,
    ast.Assign,
    ast.Name,
    ast.expr_context,
    ast.Constant,
    ast.Dict,
    ast.List,
    ast.Tuple,
    ast.Set,
    ast.keyword,
    ast.UnaryOp,
    ast.unaryop,
)


def _require_plain(text: str, path: str | Path) -> None:
    """Refuses a config text that would do more than assign values: mmengine executes it."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except SyntaxError as error:
        raise ValueError(f"checkpoint {path}: its config is no Python: {error}") from error
    for node in nodes:
        is_dict = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dict"
        is_base = isinstance(node, ast.Name) and node.id == "_base_"
        if is_base or not (is_dict or isinstance(node, _PLAIN)):
            raise ValueError(
                f"checkpoint {path}: line {getattr(node, 'lineno', '?')} of its config is more "
                "than a plain value and is not run; give the config by name="
            )

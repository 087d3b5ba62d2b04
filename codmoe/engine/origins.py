"""Tells which file, or which option, each value of a config comes from."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from codmoe.engine.config import OWN_KEYS, RUNNER_KEYS, load_config
from codmoe.messages import nearest, suggest
from codmoe.shipped import config_root

OPTION = "--cfg-options"
Tree = dict[str, Any]
"""As the config is nested, with lists of dicts as dicts of "0", "1", …; leaves are origins."""


@dataclass(frozen=True)
class Setting:
    """One value of a resolved config.

    Args:
        key: With dots, as ``--cfg-options`` takes it.
        value: No dict and no list of dicts, unless it is empty.
        origin: The file that gave the value, in the words of :func:`shown`, or ``--cfg-options``.
    """

    key: str
    value: Any
    origin: str


def resolve(
    name: str | Path, options: Mapping[str, Any] | None = None, keys: Sequence[str] = ()
) -> tuple[Config, list[Setting]]:
    """A config as :func:`load_config` reads it, and where its values come from.

    Args:
        name: Path, or name of a shipped config.
        options: Dotted keys and values that override it.
        keys: Only what is below one of these keys.

    Raises:
        FileNotFoundError: No such config.
        ValueError: The config has faults, or nothing is below one of ``keys``.
    """
    with _traced() as tree:
        cfg = load_config(name, options)
    file = shown(cfg.pop("config_file"))
    for key in [key for key in cfg if key not in (*RUNNER_KEYS, *OWN_KEYS)]:
        cfg.pop(key)  # a variable, which has been used up
    every, known = [], set()
    for path, value in leaves(cfg.to_dict(), ()) if cfg else ():
        every.append(Setting(dotted(path), value, _origin(tree, path) or file))
        known |= {dotted(path[:end]) for end in range(1, len(path) + 1)}
    for key in keys:
        if key not in known:
            hint = suggest(key, nearest(key, known) or list(cfg))
            raise ValueError(f"the config has no key {key!r}; {hint}")
    chosen = [s for s in every if not keys or any(_below(s.key, key) for key in keys)]
    return cfg, chosen


def shown(path: str) -> str:
    """A file as people name it: below ``configs``, or below the current folder."""
    for root, prefix in ((config_root().resolve(), "configs"), (Path.cwd(), ".")):
        if Path(path).resolve().is_relative_to(root):
            return str(Path(prefix) / Path(path).resolve().relative_to(root))
    return path


def _below(key: str, asked: str) -> bool:
    return f"{key}.".startswith(f"{asked}.")


def dotted(path: tuple) -> str:
    """The keys of :func:`leaves` as ``--cfg-options`` takes them."""
    return ".".join(repr(key) if "." in key else key for key in path)


def leaves(node: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """The values of a config and the keys that lead to them; in a list of dicts, the numbers."""
    if not _branches(node):
        yield path, node
        return
    for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
        yield from leaves(value, (*path, str(key)))


def _branches(node: Any) -> bool:
    """Whether there are keys below: of a dict, or of the dicts in a list."""
    if isinstance(node, (list, tuple)):
        return any(isinstance(item, Mapping) for item in node)
    return isinstance(node, Mapping) and bool(node)


def _origin(tree: Any, path: tuple) -> str | None:
    for key in path:
        if isinstance(tree, dict):
            tree = tree.get(key)
    return tree if isinstance(tree, str) else None


@contextmanager
def _traced() -> Iterator[Tree]:
    """Follows how mmengine merges a config out of its files and options while the block runs.

    mmengine reads the bases of a file before it merges the file into them, and keeps no record.
    """
    whole: Tree = {}
    waiting: list[tuple[int, Tree]] = []  # files that were read, and how deep they lie
    merge = Config._merge_a_into_b

    def noting(a, b, *rest, **more):
        caller = sys._getframe(1)
        if caller.f_code.co_name == "_file2dict":
            depth = _depth(caller)
            base: Tree = {}
            while waiting and waiting[-1][0] == depth + 1:
                base = {**waiting.pop()[1], **base}
            file = shown(caller.f_locals["filename"])
            waiting.append((depth, _merged(a, base, file)))
        elif caller.f_code.co_name == "merge_from_dict":
            read = waiting.pop()[1] if waiting else {}
            whole.update(_merged(a, read, OPTION))
        return merge(a, b, *rest, **more)

    Config._merge_a_into_b = staticmethod(noting)
    try:
        yield whole
    finally:
        Config._merge_a_into_b = staticmethod(merge)


def _depth(frame: Any) -> int:
    depth = 0
    while frame is not None:
        depth += frame.f_code.co_name == "_file2dict"
        frame = frame.f_back
    return depth


def _merged(changes: Mapping[str, Any], base: Tree, origin: str) -> Tree:
    """As mmengine merges values, with their origins."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, dict) and not value.get("_delete_"):
            result[key] = _merged(value, old, origin)
        else:
            result[key] = _tree(value, origin)
    return result


def _tree(value: Any, origin: str) -> Any:
    if not _branches(value):
        return origin
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {str(key): _tree(item, origin) for key, item in items if key != "_delete_"}

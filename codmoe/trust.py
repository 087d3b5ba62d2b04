"""Reads files that may come from strangers: none of them can run code.

Every weights file, training checkpoint, stored config and ``config.json`` passes through here.
Values are literals, types are parts of this project, pickles hold tensors and what mmengine writes
beside them. ``docs/security.md`` says what is trusted and what is not.
"""

from __future__ import annotations

import ast
import os
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from codmoe.messages import listed, suggest

LONGEST = 2_000_000
"""Characters of a config text beyond which it is refused unread."""


REFUSED = ("_scope_", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
"""Keys of a received config that would lead mmengine or timm to other packages and files."""


def read_literals(text: str, source: str) -> dict[str, Any]:
    """The assignments of a Python text whose values are literals; nothing is executed.

    ``name = value`` with numbers, strings, None, booleans, lists, tuples, sets, dicts and
    ``dict(key=value)``, as mmengine writes configs. ``{{...}}`` in a string stays as it is.

    Args:
        text: The text.
        source: Where it is from, for errors.

    Raises:
        ValueError: The text is no Python, is too long, or does more than assign literals.
    """
    if len(text) > LONGEST:
        raise ValueError(f"{source}: a config of {len(text):,} characters is not read")
    try:
        statements = ast.parse(text).body
        values: dict[str, Any] = {}
        for statement in statements:
            name = _target(statement)
            if name is None:
                raise _NotLiteral(statement)
            values[name] = _literal(statement.value)  # type: ignore[attr-defined]
    except _NotLiteral as error:
        raise ValueError(
            f"{source}: line {getattr(error.node, 'lineno', '?')} of the config is more than a "
            "literal value and is not run; if you trust its owner, give the config by name or path"
        ) from None
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError) as error:
        raise ValueError(f"{source}: the config is no plain Python text: {error}") from None
    return values


class _NotLiteral(Exception):
    def __init__(self, node: ast.AST):
        super().__init__()
        self.node = node


def _target(statement: ast.stmt) -> str | None:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        # `_base_` would make mmengine read further files.
        if isinstance(target, ast.Name) and target.id != "_base_":
            return target.id
    return None


def _literal(node: ast.AST) -> Any:
    if isinstance(node, ast.Call):
        plain = isinstance(node.func, ast.Name) and node.func.id == "dict"
        # mmengine writes dict({...}) where a key is no name.
        braced = not node.args or (len(node.args) == 1 and isinstance(node.args[0], ast.Dict))
        if not plain or not braced or any(word.arg is None for word in node.keywords):
            raise _NotLiteral(node)
        values = _literal(node.args[0]) if node.args else {}
        return {**values, **{word.arg: _literal(word.value) for word in node.keywords}}
    if isinstance(node, ast.Dict):
        if any(key is None for key in node.keys):
            raise _NotLiteral(node)
        keys = [_literal(key) for key in node.keys if key is not None]
        return dict(zip(keys, map(_literal, node.values), strict=True))
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        kind = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
        return kind(map(_literal, node.elts))
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise _NotLiteral(node) from None


def check_received(
    config: Any, registered: Mapping[str, Any], source: str, *, key: str = "model"
) -> None:
    """Checks that a received config builds parts of this project and reads no other file.

    mmengine's registries import any dotted ``type`` and follow ``_scope_`` into other packages;
    timm loads what its own arguments name.

    Args:
        config: Plain values.
        registered: Types that are allowed, by name.
        source: Where the config is from, for errors.
        key: Where in it ``config`` stands, for errors.

    Raises:
        ValueError: A ``type`` is not registered by name, or a key of :data:`REFUSED` is given.
    """
    for path, kind in _types(config, key):
        if path.rpartition(".")[2] in REFUSED:
            raise ValueError(
                f"{source}: {path}={kind!r} would read from outside this project and is refused"
            )
        if not isinstance(kind, str) or kind not in registered:
            hint = suggest(kind, registered) if isinstance(kind, str) else "types are names"
            raise ValueError(
                f"{source}: {path}={kind!r} is no part of this project and is not looked up; "
                "import the module that registers it first, or allow the file's own custom_imports "
                f"with trust_code=True (--trust-code) if you trust its owner; {hint}"
            )


def _types(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name == "type" or name in REFUSED:
                yield f"{path}.{name}", value
            yield from _types(value, f"{path}.{name}")
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from _types(value, f"{path}[{i}]")


def import_custom(
    config: Mapping[str, Any],
    source: str,
    *,
    trust_code: bool = False,
    beside: str | Path = ".",
) -> None:
    """Imports what a config lists in ``custom_imports``, if that is allowed.

    Modules that are imported already are passed over: they run no code. Others are also looked for
    in the current folder, which the command ``codmoe`` has not on its path.

    Args:
        config: The config, plain values.
        source: Where it is from, for errors.
        trust_code: Whether the caller trusts the owner of the file.
        beside: A further folder to look in, the last.

    Raises:
        ValueError: Modules would be imported, and ``trust_code`` is not set; or they are not found,
            or fail.
    """
    custom = config.get("custom_imports") or {}
    wanted = (custom.get("imports") or ()) if isinstance(custom, Mapping) else custom
    keys = set(custom) if isinstance(custom, Mapping) else set()
    if not isinstance(wanted, (str, list, tuple)) or keys - {"imports", "allow_failed_imports"}:
        raise ValueError(
            f"{source}: custom_imports={custom!r} is no list of module names, nor "
            "dict(imports=[...])"
        )
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    new = [name for name in names if not isinstance(name, str) or name not in sys.modules]
    if not new:
        return
    if not trust_code:
        raise ValueError(
            f"{source} asks to import {listed(new, show=repr)}, which runs code; give "
            "trust_code=True (--trust-code) if you trust its owner, or import it yourself first"
        )
    places = [os.getcwd(), os.path.abspath(beside)]
    sys.path += [place for place in dict.fromkeys(places) if place not in sys.path]
    for name in new:
        try:
            import_module(str(name))
        except Exception as error:
            if isinstance(error, ImportError) and keys and custom.get("allow_failed_imports"):
                warnings.warn(f"{name} failed to import and is ignored", stacklevel=2)
                continue
            told = f"{source}: custom_imports {name!r}: {_importing_fault(str(name), error)}"
            raise ValueError(told) from error


def _importing_fault(name: str, error: Exception) -> str:
    """Why a module cannot be imported, and in which line of a file."""
    if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
        return (
            f"{error}; it is looked for where Python's packages are, in PYTHONPATH, in the current "
            "folder and beside the config"
        )
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = (last.filename, last.lineno)
    if isinstance(error, SyntaxError):
        place = (error.filename or "", error.lineno)
        error = SyntaxError(error.msg)
    return f"{place[0]}:{place[1]}: {type(error).__name__}: {error}".partition("\n")[0]


def read_pickle(path: str | Path) -> Any:
    """What a ``.pth`` file holds, on the CPU; only tensors, plain values and training histories.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is damaged, or holds objects whose reading could run code.
    """
    import torch

    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        with torch.serialization.safe_globals(_allowed()), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on the protocol of a pickle
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = _object_in(str(error))
        if reason is None:
            raise ValueError(
                f"checkpoint {path} cannot be read: it is damaged, or no file of torch.save; "
                "save it anew, or fetch it again"
            ) from None
        raise ValueError(
            f"checkpoint {path} holds more than weights ({reason}); reading it could run code, so "
            "it is refused. If you trust its owner, keep its weights alone: python -c "
            "\"import torch; s = torch.load('IN.pth', 'cpu', weights_only=False); "
            "torch.save(s.get('state_dict', s), 'OUT.pth')\""
        ) from None
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"checkpoint {path} cannot be read: {first}") from error


SCALE = "::scale"
"""End of the key of the scales, (rows,), of weights that a file holds as 8-bit numbers."""


def read_safetensors(path: str | Path, source: str = "") -> dict[str, Any]:
    """Tensors of a ``.safetensors`` file; those of 8 bits with a scale for each row are turned back
    into floating-point numbers here and nowhere else.

    Args:
        path: The file.
        source: What errors call it; its path by default.

    Raises:
        ValueError: The file cannot be read, or a scale does not fit its weights.
    """
    from safetensors.torch import load_file

    source = source or str(path)
    try:
        state = load_file(path)
    except Exception as error:
        raise ValueError(f"{source} cannot be read: {error}") from None
    for key in [key for key in state if key.endswith(SCALE)]:
        scale, name = state.pop(key), key.removesuffix(SCALE)
        value = state.get(name)
        if value is None or str(value.dtype) != "torch.int8" or scale.shape != value.shape[:1]:
            raise ValueError(
                f"{source}: {key} belongs to no weights of 8 bits with as many rows; make the file "
                "anew with codmoe pack"
            )
        rows = scale.float().reshape(-1, *[1] * (value.ndim - 1))
        state[name] = value.float() * rows
    return state


def not_finite(state: Mapping[str, Any]) -> list[str]:
    """Names of the floating-point tensors that hold NaN or infinity; one wait for the device."""
    import torch

    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    floats = {key: value for key, value in tensors.items() if value.is_floating_point()}
    if not floats:
        return []
    # Of one byte an element there is no isfinite.
    whole = [(v.float() if v.element_size() < 2 else v).isfinite().all() for v in floats.values()]
    flags = torch.stack([flag.to(whole[0].device) for flag in whole]).tolist()
    return [key for key, fine in zip(floats, flags, strict=True) if not fine]


def require_weights(
    state: Mapping[str, Any], source: str, like: Mapping[str, Any] | None = None
) -> None:
    """Refuses weights with which a model would predict nothing, or something else.

    Args:
        state: Tensors by name.
        source: Where they are from, for errors.
        like: The model's own; None leaves their types unchecked.

    Raises:
        ValueError: A tensor holds NaN or infinity, or whole numbers where the model has
            floating-point ones (or the other way round).
    """
    broken = not_finite(state)
    if broken:
        raise ValueError(
            f"{source}: {len(broken)} of {len(state)} tensors hold NaN or infinity "
            f"({listed(broken, shown=3)}); its training had diverged, so take an earlier checkpoint"
        )
    other = [
        f"{key} is {state[key].dtype}, {value.dtype} in the model"
        for key, value in (like or {}).items()
        if key in state and state[key].is_floating_point() != value.is_floating_point()
    ]
    if other:
        raise ValueError(
            f"{source}: {len(other)} tensors are of another type than the model's ({other[0]}); "
            "give the weights as floating-point numbers, as they were before they were quantised"
        )


def _object_in(text: str) -> str | None:
    """The object at which torch stopped, out of its explanation; None for a damaged file."""
    for line in text.splitlines():
        if any(word in line for word in ("GLOBAL", "class", "function", _NOT_ALLOWED)):
            line = (
                line.strip().removeprefix("WeightsUnpickler error: ").removeprefix("Unsupported ")
            )
            return line.partition(" was not an allowed")[0].rstrip(".")
    return None


_NOT_ALLOWED = "is not allowed"


def _allowed() -> list[Callable | tuple[Callable, str]]:
    """Types in mmengine's training checkpoints: scalar histories, and the numpy values in them."""
    import numpy as np
    from mmengine.logging import HistoryBuffer

    core = import_module(f"numpy.{'_core' if hasattr(np, '_core') else 'core'}.multiarray")
    dtypes = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdg"}
    allowed: list[Callable | tuple[Callable, str]] = [HistoryBuffer, *dtypes]
    allowed.append((_dtype, "numpy.dtype"))
    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):  # numpy 2 and 1
        allowed += [(core.scalar, f"{module}.scalar"), (_numbers, f"{module}._reconstruct")]
    # A history pickles its methods by getattr: only those, and nothing else through that door.
    return [*allowed, (np.ndarray, "numpy.ndarray"), (_statistic, "builtins.getattr")]


def _dtype(code: str, align: bool = False, copy: bool = False) -> Any:
    """numpy's type of plain numbers itself, never the copy that is asked for: a pickle may set the
    flags of a copy, such that its numbers are taken for pointers.
    """
    import numpy as np

    kind = np.dtype(code)
    if kind.kind not in "biuf" or not kind.isbuiltin:
        raise pickle.UnpicklingError(f"numpy.dtype {code!r} {_NOT_ALLOWED}")
    return kind


def _numbers(kind: type, shape: tuple, code: bytes) -> Any:
    """numpy's ``_reconstruct``, of plain arrays alone."""
    import numpy as np

    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"an array of {kind!r} {_NOT_ALLOWED}")
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _statistic(owner: Any, name: str) -> Any:
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise pickle.UnpicklingError(f"attribute {name!r} of {owner!r} {_NOT_ALLOWED}")
    return getattr(owner, name)

"""Checkpoints: written whole or not at all, and refused with a reason."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend, register_backend
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from codmoe.files import keep_old, replacing
from codmoe.messages import listed, speaks
from codmoe.registry import MODELS
from codmoe.trust import (
    SCALE,
    check_received,
    import_custom,
    read_literals,
    read_pickle,
    read_safetensors,
    require_weights,
)

SAFE = ".safetensors"
TRAINED_ON = "trained_on"
"""Key of ``meta`` for the marks of all images that weights, and those they began with, saw."""


@register_backend("atomic", prefixes=None)
class AtomicBackend(LocalBackend):
    """mmengine's local files, but a file appears only once it is complete."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a temporary file beside ``filepath`` and rename it."""
        with replacing(filepath, keep=False) as temporary:
            temporary.write_bytes(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        """Likewise for text."""
        self.put(obj.encode(encoding), filepath)


def newest_checkpoint(work_dir: Path, folder: Path | None = None) -> Path:
    """The training checkpoint from which a run goes on: the one that ``last_checkpoint`` names, or
    else the newest that is whole, with a warning.

    The folder may be a copy: of the path in ``last_checkpoint`` the file's name counts.

    Args:
        work_dir: Folder of ``last_checkpoint``.
        folder: Folder of the checkpoints, if another.

    Raises:
        FileNotFoundError: There is none.
        ValueError: None is whole.
    """
    last, folder, faults = work_dir / "last_checkpoint", folder or work_dir, []
    named = last.read_text(errors="replace").strip() if last.is_file() else ""
    wanted = folder / Path(named).name
    found: list[tuple[int, Path]] = []
    for path in [wanted, *(p for p in sorted(folder.glob("*_*.pth")) if p != wanted)]:
        try:
            if path == folder:
                raise ValueError(f"{last} is empty or missing")
            step = _step_of(path)
        except (ValueError, OSError) as error:
            faults.append(str(error))
            continue
        if path == wanted:
            return path
        found.append((step, path))
    if found:
        newest = max(found)[1]
        if speaks():
            logging.getLogger("codmoe").warning(f"going on from {newest}: {faults[0]}")
        return newest
    if len(faults) > 1:
        raise ValueError(
            f"no checkpoint in {folder} is whole ({listed(faults[1:], shown=1)}); leave --resume "
            "out to start: these are kept under another name"
        )
    raise FileNotFoundError(
        f"{folder} holds no training checkpoint, so there is nothing to resume; leave --resume out "
        "to start, or give the --work-dir of the run that was interrupted"
    )


def _step_of(path: Path) -> int:
    """Steps that a training checkpoint has behind it.

    Raises:
        FileNotFoundError, ValueError: The file is not there, cut off, or no training checkpoint.
    """
    content = read_pickle(path)
    if not isinstance(content, Mapping) or not {"state_dict", "optimizer", "meta"} <= set(content):
        raise ValueError(f"checkpoint {path} is not of a training")
    return int(content["meta"]["iter"])


def save_weights(path: Path, model: nn.Module, meta: Mapping[str, Any], run_id: str) -> Path | None:
    """Write ``{"state_dict", "meta"}``, loadable with ``weights_only=True``.

    A file of another run than ``run_id`` is kept under a dated name; one of this run is replaced.
    ``meta`` holds plain values only.

    Returns:
        Where an earlier run's file was kept, or None.
    """
    kept = None
    if path.exists() and read_meta(path).get("run_id") != run_id:
        kept = keep_old(path)
    state = {
        # Whatever the memory format of this run, files are laid out alike.
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in model.state_dict().items()
    }
    content = io.BytesIO()  # torch's own writer says of a full disk that it met a wrong position
    torch.save(dict(state_dict=state, meta=dict(meta, run_id=run_id)), content)
    with replacing(path, keep=False) as temporary:
        temporary.write_bytes(content.getbuffer())
    return kept


def packed(
    state: Mapping[str, Tensor], meta: Mapping[str, Any], *, eight_bit: bool = False
) -> bytes:
    """Weights as the content of a safetensors file in half precision; not safetensors' save_file(),
    which leaves a file unreadable for everybody but its owner.

    Tensors that half precision would turn into infinity stay in float32. Reading them back into a
    model restores float32, rounded to what was written.

    Args:
        state: State dict.
        meta: Values that JSON can hold; :func:`read_meta` gives them back.
        eight_bit: Write matrices and kernels as 8-bit numbers, with a scale in half precision for
            each row (output channel).
    """
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if eight_bit and _has_rows(value):
            tensors[key], tensors[f"{key}{SCALE}"] = _rounded(value.float().cpu())
        else:
            half = value.half() if value.is_floating_point() else value
            tensors[key] = (half if half.isfinite().all() else value.float()).cpu().contiguous()
    return save(tensors, metadata=dict(format="pt", meta=json.dumps(dict(meta))))


def _has_rows(value: Tensor) -> bool:
    """Whether 8 bits and a scale for each row take about half the bytes of half precision."""
    if not value.is_floating_point() or value.ndim < 2 or value.shape[0] < 8:
        return False
    return value.numel() >= 16 * value.shape[0] and bool(value.half().isfinite().all())


def _rounded(value: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127 of the shape of ``value``, and the scale of each row."""
    rows = value.flatten(1)
    # Of the scale as it will be read, lest its own rounding shift every weight.
    scale = (rows.abs().amax(1) / 127).half()
    scale[scale == 0] = 1.0
    whole = (rows / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return whole.reshape(value.shape).contiguous(), scale


def store_threshold(path: str | Path, threshold: float) -> None:
    """Writes a threshold into a weights file, of which nothing else changes.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is a training checkpoint, or has no ``meta``.
    """
    path = Path(path).expanduser()
    if path.suffix == SAFE:
        given = dict(format="pt", meta=json.dumps(dict(read_meta(path), threshold=threshold)))
        with safe_open(path, "pt") as file:  # as stored, weights of 8 bits too
            keys = file.keys()
            content = save({key: file.get_tensor(key) for key in keys}, metadata=given)
    else:
        held, file = read_pickle(path), io.BytesIO()
        if not isinstance(held, Mapping) or set(held) != {"state_dict", "meta"}:
            raise ValueError(f"{path} is no weights file of a stage; give its *_best.pth")
        torch.save(dict(held, meta=dict(held["meta"], threshold=threshold)), file)
        content = file.getvalue()
    with replacing(path, keep=False) as temporary:
        temporary.write_bytes(content)


def read_meta(path: str | Path) -> dict:
    """``meta`` of a weights file; empty for a file that has none or cannot be read."""
    path = Path(path)
    try:
        if path.suffix == SAFE:
            with safe_open(path, "pt") as file:
                return dict(json.loads(file.metadata()["meta"]))
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["meta"])
    except Exception:
        return {}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """State dict of a ``*_best.pth`` or ``*.safetensors`` file, or of a training checkpoint.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file holds no weights, some that are NaN or infinite, or more than weights
            and a training's history.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.suffix != SAFE:
        return state_of(read_pickle(path), path)
    return state_of(read_safetensors(path, f"checkpoint {path}"), path)


def state_of(content: Any, path: str | Path) -> dict[str, Tensor]:
    """The weights in what a file holds, all of them finite.

    Raises:
        ValueError: See :func:`read_weights`.
    """
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(value, Tensor) for value in state.values())
    ):
        raise ValueError(f"checkpoint {path} holds no state_dict")
    require_weights(state, f"checkpoint {path}")
    return dict(state)


def load_parts(
    model: nn.Module,
    path: str | Path,
    parts: Sequence[str] | None = None,
    command: str | None = None,
) -> list[str]:
    """Load weights strictly into the named parts of a model.

    Args:
        model: The model.
        path: Weights file.
        parts: What to load, as the keys begin (``"backbone"``, ``"experts"``,
            ``"experts.sinet"``); None for all.
        command: What makes the file, named in errors.

    Returns:
        The keys loaded.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A key of these parts is missing, left over, or of another shape.
    """
    hint = f"; make it with: {command}" if command else ""
    try:
        state = read_weights(path)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{error}{hint}") from error
    return load_state(model, state, parts, f"checkpoint {path}", hint)


def load_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    parts: Sequence[str] | None,
    source: str,
    hint: str = "",
) -> list[str]:
    """As :func:`load_parts`, of weights that were read already. Errors name their ``source``, and
    end with ``hint``.

    Raises:
        ValueError: A key of these parts is missing, left over, or of another shape; or the router
            chooses among other experts.
    """
    wanted = _of_parts(model.state_dict(), parts)
    given = _of_parts(state, parts)
    # An ablation that switches an expert off starts from the same file as the whole model.
    known = {name for name, _ in getattr(model, "experts", nn.Module()).named_children()}
    given = {
        k: v for k, v in given.items() if k.split(".")[0] != "experts" or k.split(".")[1] in known
    }
    misfit, held = compare(wanted, given, source), _experts(state)
    if misfit.faults:
        new = _experts(wanted) - _experts(given)
        remedy = "Were backbone, experts and widths the same in the config that made it?"
        if new:
            others = ("backbone", *(f"experts.{name}" for name in sorted(known & held)))
            remedy = (
                f"It has no {listed(sorted(new))}: a training begins that anew with init_from.parts"
                f"={others}, or adds one expert to the whole mixture with grow=True "
                "(docs/experts.md)"
            )
        raise ValueError(f"{source} does not fit this model: {misfit}. {remedy}{hint}")
    if held and held != known and any(k.startswith("router.") for k in given):
        raise ValueError(
            f"the router of {source} chooses among {listed(sorted(held))}, and this model has "
            f"{listed(sorted(known))}; leave 'router' out of init_from.parts, and train one anew"
        )
    model.load_state_dict(given, strict=False)
    return list(given)


def _experts(keys: Iterable[str]) -> set[str]:
    return {key.split(".")[1] for key in keys if key.startswith("experts.")}


def _of_parts(state: Mapping[str, Tensor], parts: Sequence[str] | None) -> dict[str, Tensor]:
    starts = None if parts is None else tuple(f"{part}." for part in parts)
    return {k: v for k, v in state.items() if starts is None or f"{k}.".startswith(starts)}


@dataclass(frozen=True)
class Fit:
    """How far weights fit a model; as text the share of its tensors, and three of each fault.

    Args:
        fitting: Keys of equal name and shape.
        wanted: Number of the model's keys.
        faults: Keys that do not fit, by what is wrong with them.
    """

    fitting: list[str]
    wanted: int
    faults: dict[str, list[str]]

    def __str__(self) -> str:
        share = f"{len(self.fitting)} of {self.wanted} tensors of the model fit"
        told = [f"{len(v)} {what} ({listed(v, shown=3)})" for what, v in self.faults.items()]
        return "; ".join([share, *told])


def compare(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> Fit:
    """Compares weights that are to be loaded with those of the model, ``wanted``, by name and
    shape; errors name their ``source``.

    Raises:
        ValueError: Some are of another type, see :func:`require_weights`.
    """
    require_weights(given, source, wanted)
    shared = {key: wanted[key].shape == given[key].shape for key in wanted if key in given}
    same = [key for key, equal in shared.items() if equal]
    faults = {
        "keys of the model are not in it": [key for key in wanted if key not in given],
        "keys of it are not in the model": [key for key in given if key not in wanted],
        "keys differ in shape": [key for key, equal in shared.items() if not equal],
    }
    return Fit(same, len(wanted), {what: keys for what, keys in faults.items() if keys})


def stored_config(checkpoint: str | Path, *, trust_code: bool = False) -> Config | None:
    """The config that made a weights file, or None if the file does not hold it.

    It is read as literals and never run, and may build registered parts of this project alone.

    Args:
        checkpoint: The file.
        trust_code: Import the modules in its ``custom_imports``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The config is more than literals, names a type that is none of this project's,
            or would import code without ``trust_code``.
    """
    meta = meta_of(checkpoint)
    text = meta.get("config") or meta.get("cfg")
    if not isinstance(text, str):
        return None
    source = f"checkpoint {checkpoint}"
    config = read_literals(text, source)
    import_custom(config, source, trust_code=trust_code)
    MODELS.import_from_location()
    for key in ("model", "data_preprocessor"):
        if not isinstance(config.get(key, {}), Mapping):
            raise ValueError(f"{source}: {key}={config[key]!r} of its config is no dict")
        check_received(config.get(key), MODELS.module_dict, source, key=key)
    try:
        return Config(config)
    except KeyError as error:  # a name that mmengine keeps for itself
        raise ValueError(f"{source}: its config cannot be read: {error}") from error


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
    content = read_pickle(path)
    held = content.get("meta") if isinstance(content, Mapping) else None
    return dict(held) if isinstance(held, Mapping) else {}

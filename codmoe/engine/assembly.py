"""What a stage starts from: one file, or a backbone and heads from several runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from codmoe.engine.checkpoints import load_parts, load_state, read_weights
from codmoe.registry import suggest

INIT_KEYS = ("file", "parts", "backbone", "experts", "command")


@dataclass(frozen=True)
class Sources:
    """The files behind ``cfg.init_from``.

    Args:
        file: One file for all ``parts``, or None.
        parts: Parts that are loaded from ``file``; None for all.
        backbone: Files of the backbone; several are averaged. Empty if it is not loaded.
        experts: File of each expert's head; empty with ``file``, or if the heads start anew.
        command: What makes the files, named in errors.
    """

    file: Path | None = None
    parts: tuple[str, ...] | None = None
    backbone: tuple[Path, ...] = ()
    experts: Mapping[str, Path] = field(default_factory=dict)
    command: str | None = None

    @property
    def paths(self) -> list[Path]:
        """Every file once."""
        single = [] if self.file is None else [self.file]
        return list(dict.fromkeys([*single, *self.backbone, *self.experts.values()]))

    @property
    def policy(self) -> str:
        """``"one file"`` (the joint run, or the stage before), ``"one backbone"`` or ``"soup"``."""
        if self.file is not None:
            return "one file"
        return "soup" if len(self.backbone) > 1 else "one backbone"

    def expert_files(self, names: Iterable[str]) -> dict[str, Path]:
        """The file of each of these experts whose head is loaded."""
        if self.file is None:
            return {name: self.experts[name] for name in names if name in self.experts}
        loaded = self.parts is None or "experts" in self.parts
        return dict.fromkeys(names, self.file) if loaded else {}

    def backbone_files(self) -> tuple[Path, ...]:
        """The file of the backbone, all of them for a soup, none if it is not loaded."""
        if self.file is None:
            return self.backbone
        return (self.file,) if self.parts is None or "backbone" in self.parts else ()


def read_sources(cfg: Config) -> Sources | None:
    """The files that ``cfg.init_from`` names; None for a stage that starts from nothing.

    One file: ``dict(file="experts_joint_best.pth", parts=("backbone", "experts"), command=...)``.
    Several: ``dict(backbone="expert_sinet_best.pth", experts=dict(sinet="expert_sinet_best.pth",
    ...), command=...)``, where ``backbone=dict(average=[...])`` is the mean of several files'.
    A name without a folder lies in ``cfg.checkpoint_dir``.
    """
    init = cfg.get("init_from")
    if not init:
        return None
    backbone = init.get("backbone") or ()
    if isinstance(backbone, Mapping):
        backbone = backbone["average"]
    files = [backbone] if isinstance(backbone, (str, Path)) else backbone
    experts = init.get("experts") or {}
    parts = init.get("parts")
    return Sources(
        file=_path(cfg, init["file"]) if init.get("file") else None,
        parts=None if parts is None else tuple(parts),
        backbone=tuple(_path(cfg, file) for file in files),
        experts={name: _path(cfg, file) for name, file in experts.items() if file is not None},
        command=init.get("command"),
    )


def _path(cfg: Config, file: str | Path) -> Path:
    path = Path(file).expanduser()
    if path.parent != Path("."):
        return path
    return Path(cfg.get("checkpoint_dir", "checkpoints_moe")) / path


def init_faults(cfg: Mapping[str, Any]) -> list[str]:
    """What is wrong with the keys of ``cfg.init_from``, one sentence each."""
    init = cfg.get("init_from") or {}
    faults = [
        f"init_from: no key {key!r}; {suggest(key, INIT_KEYS)}"
        for key in init
        if key not in INIT_KEYS
    ]
    several = [key for key in ("backbone", "experts") if init.get(key)]
    if init.get("file") and several:
        faults.append(
            f"init_from: file and {several[0]} exclude each other; a config that inherits one and "
            "wants the other begins with init_from=dict(_delete_=True, ...)"
        )
    elif init and not faults and not init.get("file") and not several:
        faults.append("init_from: names no weights; give file=, or backbone= and experts=")
    if several and init.get("parts"):
        faults.append("init_from: parts belongs to file; with backbone and experts leave it out")
    backbone, experts = init.get("backbone"), init.get("experts")
    if isinstance(backbone, Mapping):
        files = backbone.get("average")
        listed = isinstance(files, (list, tuple)) and len(files) > 1
        if not listed or set(backbone) != {"average"}:
            faults.append(
                f"init_from.backbone={dict(backbone)}: give a file, or dict(average=[...]) with "
                "two files or more"
            )
    elif backbone and not isinstance(backbone, (str, Path)):
        faults.append(f"init_from.backbone={backbone!r}: give a file, or dict(average=[...])")
    if experts and not isinstance(experts, Mapping):
        faults.append(f"init_from.experts={experts!r}: give dict(NAME='FILE.pth', ...)")
    elif experts:
        named = (cfg.get("model") or {}).get("experts") or {}
        needed = [name for name, expert in named.items() if expert is not None]
        faults += _without_file(needed, [n for n, file in experts.items() if file is not None])
    return faults


def _without_file(needed: Iterable[str], given: Sequence[str]) -> list[str]:
    missing = [name for name in needed if name not in given]
    if not missing:
        return []
    return [
        f"init_from.experts names no file for {', '.join(missing)}; it has {', '.join(given)}: add "
        f"{missing[0]}='expert_{missing[0]}_best.pth', or model.experts.{missing[0]}=None"
    ]


def require_files(sources: Sources) -> None:
    """Tell all files that are missing, and what makes them.

    Raises:
        FileNotFoundError: One is not there.
    """
    missing = [str(path) for path in sources.paths if not path.is_file()]
    if missing:
        what = "which does not exist; make it" if len(missing) == 1 else "which do not exist; make"
        them = "" if len(missing) == 1 else " them"
        raise FileNotFoundError(
            f"this stage starts from {', '.join(missing)}, {what}{them} with: "
            f"{sources.command or '(the stage before)'}"
        )


def load_sources(model: nn.Module, sources: Sources) -> list[str]:
    """Load what :func:`read_sources` found, each part strictly, its buffers included.

    Returns:
        Lines for the log.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file holds no such expert, or does not fit the model.
    """
    require_files(sources)
    hint = f"; make it with: {sources.command}" if sources.command else ""
    if sources.file is not None:
        keys = load_parts(model, sources.file, sources.parts, sources.command)
        return [f"loaded {len(keys)} tensors from {sources.file}"]
    lines = []
    if sources.backbone:
        listed = ", ".join(map(str, sources.backbone))
        averaged = len(sources.backbone) > 1
        state = average_weights(sources.backbone) if averaged else read_weights(listed)
        source = f"the average of {listed}" if averaged else f"checkpoint {listed}"
        keys = load_state(model, state, ("backbone",), source, hint)
        lines.append(f"loaded {len(keys)} tensors of the backbone from {source}")
    if sources.experts:
        names = [name for name, _ in model.get_submodule("experts").named_children()]
        for fault in _without_file(names, list(sources.experts)):
            raise ValueError(fault)
        for name, path in sources.expert_files(names).items():
            state = read_weights(path)
            held = sorted({k.split(".")[1] for k in state if k.startswith("experts.")})
            if name not in held:
                raise ValueError(
                    f"init_from.experts.{name}={str(path)!r} holds no expert {name!r}, but "
                    f"{', '.join(held) or 'none'}; give the file that its training left{hint}"
                )
            keys = load_state(model, state, (f"experts.{name}",), f"checkpoint {path}", hint)
            lines.append(f"loaded {len(keys)} tensors of expert {name} from {path}")
    return lines


def average_weights(paths: Sequence[Path], part: str = "backbone") -> dict[str, Tensor]:
    """The mean of one part's floating-point tensors over several files (Wortsman et al., Model
    soups: averaging weights of multiple fine-tuned models, ICML 2022).

    Only runs that began with the same pretrained weights have a mean that is of use. Integer
    buffers are the first file's.

    Args:
        paths: Weights files.
        part: First component of the keys.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file does not hold the part, or with other keys or shapes than the first.
    """
    states = []
    for path in paths:
        state = {k: v for k, v in read_weights(path).items() if k.startswith(f"{part}.")}
        if not state:
            raise ValueError(f"checkpoint {path} holds no {part}, so it cannot be averaged")
        first = states[0] if states else state
        other = [
            key for key in first.keys() | state.keys() if _shape(first, key) != _shape(state, key)
        ]
        if other:
            raise ValueError(
                f"the {part}s of {paths[0]} and {path} cannot be averaged: they differ in "
                f"{len(other)} keys or shapes, e.g. {min(other)}; average runs of one backbone"
            )
        states.append(state)
    mean = dict(states[0])
    for key, value in mean.items():
        if value.is_floating_point():
            # In float64 the mean of equal numbers is that number, to the last bit.
            total = sum(state[key].double() for state in states)
            # What is read from half precision need not be rounded to it.
            mean[key] = (total / len(states)).to(torch.promote_types(value.dtype, torch.float32))
    return mean


def _shape(state: Mapping[str, Tensor], key: str) -> torch.Size | None:
    return state[key].shape if key in state else None


def skip_pretrained(cfg: Config) -> None:
    """Neither download nor read backbone weights that a checkpoint replaces at once."""
    backbone = cfg.model.backbone
    if isinstance(backbone, dict):
        # Only what is there: a backbone of somebody else's need not know these arguments.
        skipped = dict(pretrained=False, checkpoint=None)
        backbone.update({key: value for key, value in skipped.items() if key in backbone})

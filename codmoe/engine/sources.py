"""The weights that a stage starts from: named, and loaded.

A stage starts from one file (the joint run, the stage before), or from a backbone and heads of
several runs; or from a mixture to which it adds an expert.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from codmoe.engine.checkpoints import load_parts, load_state, read_weights
from codmoe.messages import suggest
from codmoe.models.build import check_parts
from codmoe.models.moe import ModelLevelMoE
from codmoe.registry import fits, value_faults
from codmoe.shipped import is_shipped, shipped_weights


@dataclass(frozen=True)
class Sources:
    """The files behind ``cfg.init_from``, under its keys.

    Args:
        file: One file for all ``parts``, or None.
        parts: Parts that are loaded from ``file``, such as ``"experts"`` or ``"experts.sinet"``;
            others begin anew. None for all.
        backbone: Files of the backbone; several are averaged. Empty if it is not loaded.
        experts: File of each expert's head, None for one that begins anew; empty with ``file``, or
            if all begin anew.
        command: What makes the files, named in errors.
        grow: Whether the model has an expert that ``file`` has not: see :func:`grown`.
    """

    file: Path | None = None
    parts: tuple[str, ...] | None = None
    backbone: tuple[Path, ...] = ()
    experts: Mapping[str, Path | None] = field(default_factory=dict)
    command: str | None = None
    grow: bool = False

    @property
    def paths(self) -> list[Path]:
        """Every file once."""
        named = [self.file, *self.backbone, *self.experts.values()]
        return list(dict.fromkeys(path for path in named if path is not None))

    @property
    def policy(self) -> str:
        """``"one file"`` (the joint run, or the stage before), ``"one backbone"`` or ``"soup"``."""
        if self.file is not None:
            return "one file"
        return "soup" if len(self.backbone) > 1 else "one backbone"

    def expert_files(self, names: Iterable[str]) -> dict[str, Path]:
        """The file of each of these experts whose head is loaded."""
        if self.file is None:
            files = {name: self.experts.get(name) for name in names}
            return {name: file for name, file in files.items() if file is not None}
        parts = ("experts",) if self.parts is None else self.parts
        return {
            name: self.file for name in names if "experts" in parts or f"experts.{name}" in parts
        }

    def backbone_files(self) -> tuple[Path, ...]:
        """The file of the backbone, all of them for a soup, none if it is not loaded."""
        if self.file is None:
            return self.backbone
        return (self.file,) if self.parts is None or "backbone" in self.parts else ()


def read_sources(cfg: Config) -> Sources | None:
    """Read ``cfg.init_from``, which was checked when the config was loaded; None if there is none.

    One file: ``dict(file="experts_joint_best.pth", parts=("backbone", "experts"), command=...)``.
    Several: ``dict(backbone="expert_sinet_best.pth", experts=dict(sinet="expert_sinet_best.pth",
    ...), command=...)``, where ``backbone=dict(average=[...])`` is the mean of several files'.
    A name without a folder lies in ``cfg.checkpoint_dir``, that of a model that ships trained
    (``"small"``) in the package.
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
        experts={name: file and _path(cfg, file) for name, file in experts.items()},
        command=init.get("command"),
        grow=bool(init.get("grow")),
    )


def _path(cfg: Config, file: str | Path) -> Path:
    if is_shipped(file):
        return shipped_weights(file)
    path = Path(file).expanduser()
    if path.parent != Path("."):
        return path
    return Path(cfg.get("checkpoint_dir", "checkpoints_moe")) / path


def init_faults(cfg: Mapping[str, Any]) -> list[str]:
    """Faults of ``cfg.init_from``, one sentence each."""
    init = cfg.get("init_from") or {}
    keys = [each.name for each in fields(Sources)]
    faults = [f"init_from: no key {k!r}; {suggest(k, keys)}" for k in init if k not in keys]
    kinds = dict(file=str | None, parts=list[str] | tuple[str, ...] | None, command=str | None)
    kinds["grow"] = bool
    faults += value_faults({k: init[k] for k in kinds if k in init}, kinds, "init_from")
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
    if init.get("grow") and (several or init.get("parts")):
        faults.append("init_from: grow=True takes one whole mixture; give file= without parts=")
    if init.get("grow") and not (cfg.get("model") or {}).get("newcomers"):
        faults.append("init_from: grow=True needs model.newcomers=('NAME',), the new expert last")
    backbone, experts = init.get("backbone"), init.get("experts")
    if isinstance(backbone, Mapping):
        files = backbone.get("average") or ()
        listed = fits(files, list[str] | tuple[str, ...]) and len(files) > 1
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
        files = dict.fromkeys(experts, str | None)
        faults += value_faults(experts, files, "init_from.experts")
        faults += _without_file(needed, list(experts))
    return faults


def _without_file(needed: Iterable[str], given: Sequence[str]) -> list[str]:
    missing = [name for name in needed if name not in given]
    if not missing:
        return []
    return [
        f"init_from.experts names no file for {', '.join(missing)}; it has {', '.join(given)}: add "
        f"{missing[0]}='expert_{missing[0]}_best.pth', {missing[0]}=None to begin it anew, or "
        f"model.experts.{missing[0]}=None"
    ]


def require_files(sources: Sources) -> None:
    """Raise FileNotFoundError if a file is missing, with all that are and what makes them."""
    missing = [str(path) for path in sources.paths if not path.is_file()]
    if missing:
        what = "which does not exist; make it" if len(missing) == 1 else "which do not exist; make"
        them = "" if len(missing) == 1 else " them"
        raise FileNotFoundError(
            f"this stage starts from {', '.join(missing)}, {what}{them} with: "
            f"{sources.command or '(the stage before)'}"
        )


def load_sources(model: ModelLevelMoE, sources: Sources) -> list[str]:
    """Load the parts of a model from their files, each strictly, its buffers included.

    Returns:
        Lines for the log.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file holds no such expert, or does not fit the model.
    """
    require_files(sources)
    hint = f"; make it with: {sources.command}" if sources.command else ""
    if sources.grow and sources.file is not None:
        state, new = grown(model, read_weights(sources.file), f"checkpoint {sources.file}")
        keys = load_state(model, state, None, f"checkpoint {sources.file}", hint)
        begin_as_backbone(model, new)
        return [f"loaded {len(keys)} tensors from {sources.file}, with room for {new}"]
    if sources.file is not None:
        check_parts(model, sources.parts or (), "init_from.parts")
        keys = load_parts(model, sources.file, sources.parts, sources.command)
        return [f"loaded {len(keys)} tensors from {sources.file}", *_begin_anew(model, sources)]
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
    return [*lines, *_begin_anew(model, sources)]


def _begin_anew(model: ModelLevelMoE, sources: Sources) -> list[str]:
    """Settle how the experts begin whose heads are not loaded; gives a line if there are such."""
    loaded = sources.expert_files(model.expert_names)
    anew = [name for name in model.expert_names if name not in loaded]
    if sources.backbone_files():
        for name in anew:
            begin_as_backbone(model, name)
    return [f"begins anew: {', '.join(anew)}"] if anew else []


def grown(
    model: nn.Module, state: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], str]:
    """A trained mixture's weights with those of the expert that the model has beyond it.

    The new expert, and the evidence for it, are as the model was built; the smaller mixture's
    router is what the larger one's holds, as it is.

    Args:
        model: The larger mixture, the new expert the last of its ``newcomers``.
        state: Weights of the smaller one.
        source: Where they are from, for errors.

    Returns:
        The weights, and the name of the new expert.

    Raises:
        ValueError: The model lacks an old expert, or has not just its last newcomer beyond these.
    """
    names = [name for name, _ in model.get_submodule("experts").named_children()]
    held = sorted({k.split(".")[1] for k in state if k.startswith("experts.")})
    new = [name for name in names if name not in held]
    gone = [name for name in held if name not in names]
    if not new or gone:
        what = f"lacks {', '.join(gone)}" if gone else "has no expert beyond them"
        raise ValueError(
            f"init_from.grow: {source} has experts {', '.join(held) or '(none)'}, and this model "
            f"{what}; keep these and add one, model=dict(experts=dict(NAME=dict(type=...)))"
        )
    newcomer = getattr(model.get_submodule("router"), "newcomer", None)
    if new != [newcomer]:
        raise ValueError(
            f"init_from.grow: beyond {source} this model has {', '.join(new)}, and its newcomers "
            f"end with {newcomer}; grow by one expert at a time, the last of model.newcomers"
        )
    full = {
        k.replace("router.", "router.old.", 1) if k.startswith("router.") else k: v
        for k, v in state.items()
    }
    made = (f"experts.{newcomer}.", "router.evidence.")
    return full | {k: v for k, v in model.state_dict().items() if k.startswith(made)}, new[0]


def begin_as_backbone(model: ModelLevelMoE, name: str) -> None:
    """Give the own blocks of an expert, if it has any, the weights that the backbone's have."""
    own = model.expert_parts[name].backbone
    if own is not None:
        own.load_state_dict(model.backbone.ending(model.own_blocks).state_dict())


def average_weights(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of the backbones' floating-point tensors over several files (Wortsman et al., Model
    soups: averaging weights of multiple fine-tuned models, ICML 2022).

    Only runs that began with the same pretrained weights have a mean that is of use. Integer
    buffers are the first file's.

    Args:
        paths: Weights files.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file holds no backbone, or one with other keys or shapes than the first.
    """
    states: list[dict[str, Tensor]] = []
    for path in paths:
        state = {k: v for k, v in read_weights(path).items() if k.startswith("backbone.")}
        if not state:
            raise ValueError(f"checkpoint {path} holds no backbone, so it cannot be averaged")
        states.append(state)
        first, mine = ({k: v.shape for k, v in s.items()} for s in (states[0], state))
        other = {key for key, _ in first.items() ^ mine.items()}
        if other:
            raise ValueError(
                f"the backbones of {paths[0]} and {path} cannot be averaged: they differ in "
                f"{len(other)} keys or shapes, e.g. {min(other)}; average runs of one backbone"
            )
    mean = dict(states[0])
    for key, value in mean.items():
        if value.is_floating_point():
            # In float64 the mean of equal numbers is that number, to the last bit.
            total = reduce(torch.add, [state[key].double() for state in states])
            # What is read from half precision need not be rounded to it.
            mean[key] = (total / len(states)).to(torch.promote_types(value.dtype, torch.float32))
    return mean

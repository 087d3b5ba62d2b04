"""Configs: found by path or by name, and checked whole before anything is built."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine import registry as root
from mmengine.config import Config
from mmengine.registry import Registry as MMRegistry
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from codmoe import registry
from codmoe.compiled.speed import speed_faults
from codmoe.engine.handover import assembly_faults, init_faults
from codmoe.engine.optim import amp_faults
from codmoe.messages import suggest
from codmoe.registry import argument_faults

# What mmengine's Runner takes, and what it looks up in the config by itself.
RUNNER_KEYS = (
    *(key for key in inspect.signature(Runner).parameters if key != "cfg"),
    *"activation_checkpointing custom_imports find_unused_parameters model_wrapper_cfg".split(),
    *"sync_bn vis_backends".split(),
)
LOADER_KEYS = (*inspect.signature(DataLoader).parameters, "num_batch_per_epoch")
Section = tuple[str, Mapping[str, Any], MMRegistry]
"""Dotted key of a section of the config, the section, and where its ``type`` is registered."""
OWN_KEYS = (
    "amp assembly checkpoint_dir compile config_file fast_norm init_from max_unreadable "
    "memory_format train_graphs"
).split()


def config_root() -> Path:
    """The folder ``configs``: of the checkout, or as it was installed with the wheel."""
    package = Path(__file__).resolve().parents[1]
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
        FileNotFoundError: There is none; the message names the nearest.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    stem = str(name).removeprefix("configs/").removesuffix(".py")
    shipped = config_root() / f"{stem}.py"
    if shipped.is_file() and "_base_" not in Path(stem).parts:
        return shipped
    if stem.startswith("study/"):  # shipped before 0.2
        raise FileNotFoundError(
            f"config {str(name)!r} was removed with the study and its data set; results are in "
            "projects/earlier_studies.md, and experts/joint_polyp_dinov2-s is a stage 1 like its"
        )
    raise FileNotFoundError(f"config {str(name)!r} does not exist; {suggest(stem, list_configs())}")


def load_config(name: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config, apply overrides and check it.

    Args:
        name: Path, or name of a shipped config.
        options: Dotted keys and values, as ``--cfg-options`` gives them.

    Raises:
        FileNotFoundError: No such config.
        ValueError: The config has faults; all are listed.
    """
    path = find_config(name)
    cfg = Config.fromfile(path)
    if options:
        cfg.merge_from_dict(dict(options))
    _drop_delete_marks(cfg._cfg_dict)
    cfg.config_file = str(path)
    faults = config_faults(cfg) + _idle_options(options or {})
    if faults:
        listed = "\n".join(f"  - {fault}" for fault in faults)
        raise ValueError(f"{path} has {len(faults)} fault(s):\n{listed}")
    return cfg


def _drop_delete_marks(section: Any) -> None:
    """Remove ``_delete_`` where there was nothing to delete: mmengine leaves it in."""
    if isinstance(section, dict):
        section.pop("_delete_", None)
        section = list(section.values())
    if isinstance(section, (list, tuple)):
        for value in section:
            _drop_delete_marks(value)


def _idle_options(options: Mapping[str, Any]) -> list[str]:
    """Overrides that would do nothing: a variable of a config is used up when the file is read."""
    known = [*RUNNER_KEYS, *OWN_KEYS]
    hints = dict(data_root="--data-root", max_epochs="train_cfg.max_epochs", seed="randomness.seed")
    return [
        f"--cfg-options {key}: has no effect; "
        + (f"use {hints[key]}" if key in hints else suggest(key.split(".")[0], known))
        for key in options
        if key.split(".")[0] not in known
    ]


def config_faults(cfg: Mapping[str, Any]) -> list[str]:
    """Everything that can be told wrong without building: unknown types, misspelt arguments, and
    top-level keys that look like a known one.
    """
    faults = []
    for key in cfg:
        # Configs hold variables of their own (train_pipeline): only near misses are faults.
        if key not in RUNNER_KEYS and key not in OWN_KEYS:
            known = [*RUNNER_KEYS, *OWN_KEYS]
            close = difflib.get_close_matches(key, known, 1, 0.88)
            close = close or [k for k in known if sorted(k) == sorted(key)]  # "modle"
            faults += [f"{key}: not a config key; did you mean {close[0]!r}?"] if close else []
    for path, section, kinds in _typed_sections(cfg):
        faults += [f"{path}: {fault}" for fault in _section_faults(section, kinds)]
    faults += _loop_faults(cfg) + speed_faults(cfg) + amp_faults(cfg)
    for path in ("train_dataloader", "val_dataloader", "test_dataloader"):
        unknown = [key for key in cfg.get(path) or () if key not in LOADER_KEYS]
        faults += [f"{path}: no key {key!r}; {suggest(key, LOADER_KEYS)}" for key in unknown]
    return faults + init_faults(cfg) + assembly_faults(cfg)


def _loop_faults(cfg: Mapping[str, Any]) -> list[str]:
    """Faults of ``train_cfg``, the optimiser and its schedule, which the Runner builds late."""
    loop, wrapper = dict(cfg.get("train_cfg") or {}), dict(cfg.get("optim_wrapper") or {})
    by_epoch = loop.pop("by_epoch", True)
    loop.setdefault("type", "EpochBasedTrainLoop" if by_epoch else "IterBasedTrainLoop")
    # The engine chooses between the two by `amp`, and drops what only one of them takes.
    for key in ("optimizer", "constructor", "paramwise_cfg", "dtype", "loss_scale"):
        wrapper.pop(key, None)
    sections: list[Section] = [("train_cfg", loop, root.LOOPS)]
    if wrapper:
        wrapper.setdefault("type", "OptimWrapper")
        sections.append(("optim_wrapper", wrapper, root.OPTIM_WRAPPERS))
    optimizer = (cfg.get("optim_wrapper") or {}).get("optimizer") or {}
    sections += _below("optim_wrapper.optimizer", optimizer, root.OPTIMIZERS)
    sections += _below("param_scheduler", cfg.get("param_scheduler"), root.PARAM_SCHEDULERS)
    faults = []
    for path, section, kinds in sections:
        keys = {k: v for k, v in section.items() if k != "convert_to_iter_based"}
        faults += [f"{path}: {fault}" for fault in _section_faults(keys, kinds)]
    return faults


def _section_faults(section: Mapping[str, Any], kinds: MMRegistry) -> list[str]:
    kind = section["type"]
    if isinstance(kind, str):
        try:
            kind = kinds.get(kind)
        except ValueError as error:
            return [str(error)]
        if kind is None:  # mmengine's own registries do not raise
            hint = suggest(section["type"], kinds.module_dict)
            return [f"type={section['type']!r} is not a registered {kinds.name}; {hint}"]
    return argument_faults(kind, section)


def _typed_sections(cfg: Mapping[str, Any]) -> Iterator[Section]:
    yield from _below("model", cfg.get("model"), registry.MODELS)
    yield from _below("model_wrapper_cfg", cfg.get("model_wrapper_cfg"), registry.MODEL_WRAPPERS)
    for hooks in ("default_hooks", "custom_hooks"):
        yield from _below(hooks, cfg.get(hooks), registry.HOOKS)
    for part in ("train", "val", "test"):
        loader = cfg.get(f"{part}_dataloader") or {}
        yield from _below(f"{part}_dataloader.dataset", loader.get("dataset"), registry.DATASETS)
        yield from _below(f"{part}_evaluator", cfg.get(f"{part}_evaluator"), registry.METRICS)


def _below(path: str, node: Any, kinds: MMRegistry) -> Iterator[Section]:
    if isinstance(node, Mapping):
        if "type" in node:
            yield path, node, kinds
        for key, value in node.items():
            inner = registry.TRANSFORMS if key == "pipeline" else kinds
            yield from _below(f"{path}.{key}", value, inner)
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from _below(f"{path}[{i}]", value, kinds)


def parse_options(pairs: list[str] | None) -> dict[str, Any]:
    """``key=value`` strings of the command line → dictionary, values read as Python where they are.

    Raises:
        ValueError: A string has no ``=``.
    """
    from ast import literal_eval

    options = {}
    for pair in pairs or []:
        key, sep, value = pair.partition("=")
        if not sep:
            raise ValueError(f"--cfg-options {pair!r} is not key=value")
        try:
            options[key] = literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = {"true": True, "false": False, "none": None}.get(value.lower(), value)
    return options

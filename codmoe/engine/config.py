"""Configs: found by path or by name, and checked whole before anything is built."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from codmoe import registry
from codmoe.registry import argument_faults, nearest, suggest

RUNNER_KEYS = (
    "model work_dir train_dataloader val_dataloader test_dataloader train_cfg val_cfg test_cfg "
    "auto_scale_lr optim_wrapper param_scheduler val_evaluator test_evaluator default_hooks "
    "custom_hooks data_preprocessor load_from resume launcher env_cfg log_processor log_level "
    "visualizer vis_backends default_scope randomness experiment_name model_wrapper_cfg sync_bn "
    "find_unused_parameters activation_checkpointing custom_imports"
).split()
OWN_KEYS = ("amp", "checkpoint_dir", "config_file", "init_from")


def config_root() -> Path:
    """The folder ``configs``: of the checkout, or as it was installed with the wheel."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / "configs"
    return checkout if checkout.is_dir() else package / "configs"


def list_configs() -> list[str]:
    """Names of the shipped configs, e.g. ``"ensemble/stage3"``."""
    root = config_root()
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    return sorted(str(path.with_suffix("")) for path in paths if path.parts[0] != "_base_")


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
    if shipped.is_file() and not stem.startswith("_base_"):
        return shipped
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
    cfg.config_file = str(path)
    faults = config_faults(cfg)
    if faults:
        listed = "\n".join(f"  - {fault}" for fault in faults)
        raise ValueError(f"{path} has {len(faults)} fault(s):\n{listed}")
    return cfg


def config_faults(cfg: Mapping[str, Any]) -> list[str]:
    """Everything that can be told wrong without building: unknown types, misspelt arguments, and
    top-level keys that look like a known one.
    """
    faults = []
    for key in cfg:
        # Configs hold variables of their own (train_pipeline): only near misses are faults.
        if key not in RUNNER_KEYS and key not in OWN_KEYS:
            close = difflib.get_close_matches(key, [*RUNNER_KEYS, *OWN_KEYS], 1, 0.88)
            faults += [f"{key}: not a config key; did you mean {close[0]!r}?"] if close else []
    for path, section, kinds in _typed_sections(cfg):
        faults += [f"{path}: {fault}" for fault in _section_faults(section, kinds)]
    return faults


def _section_faults(section: Mapping[str, Any], kinds: registry.Registry) -> list[str]:
    kind = section["type"]
    if isinstance(kind, str):
        try:
            kind = kinds.get(kind)
        except ValueError as error:
            return [str(error)]
    return argument_faults(kind, section)


def _typed_sections(cfg: Mapping[str, Any]) -> Iterator[tuple[str, Mapping, registry.Registry]]:
    yield from _below("model", cfg.get("model"), registry.MODELS)
    for hooks in ("default_hooks", "custom_hooks"):
        yield from _below(hooks, cfg.get(hooks), registry.HOOKS)
    for part in ("train", "val", "test"):
        loader = cfg.get(f"{part}_dataloader") or {}
        yield from _below(f"{part}_dataloader.dataset", loader.get("dataset"), registry.DATASETS)
        yield from _below(f"{part}_evaluator", cfg.get(f"{part}_evaluator"), registry.METRICS)


def _below(path: str, node: Any, kinds: registry.Registry):
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


__all__ = [
    "config_faults",
    "config_root",
    "find_config",
    "list_configs",
    "load_config",
    "nearest",
    "parse_options",
]

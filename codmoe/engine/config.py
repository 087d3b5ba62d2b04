"""Configs: found by path or by name, and checked whole before anything is built."""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import os
import re
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mmengine import registry as root
from mmengine.config import Config
from mmengine.registry import Registry as MMRegistry
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from codmoe import registry
from codmoe.compiled.speed import PARTS, speed_faults
from codmoe.engine.handover import assembly_faults
from codmoe.engine.optim import amp_faults
from codmoe.engine.sources import init_faults
from codmoe.evaluation.conventions import COMBINED, MIXTURE
from codmoe.messages import beside, did_you_mean, listed, nearest, short, suggest
from codmoe.models.backbones.base import Backbone
from codmoe.models.experts.base import Expert
from codmoe.models.routers.base import Router
from codmoe.models.tta import AugmentedMoE, check_scales
from codmoe.registry import accepted_arguments, argument_faults, value_faults
from codmoe.shipped import config_root, find_config, list_configs
from codmoe.trust import import_custom

# What mmengine's Runner takes, and what it looks up in the config by itself.
RUNNER_KEYS = (
    *(key for key in inspect.signature(Runner).parameters if key != "cfg"),
    *"activation_checkpointing custom_imports find_unused_parameters model_wrapper_cfg".split(),
    *"sync_bn vis_backends".split(),
)
LOADER_TYPES = inspect.signature(DataLoader).parameters
LOADER_KEYS = (*LOADER_TYPES, "num_batch_per_epoch")
Section = tuple[str, Mapping[str, Any], MMRegistry]
"""Dotted key of a section of the config, the section, and where its ``type`` is registered."""
DEFAULT_SIZE = 448

INSTEAD = dict(data_root="--data-root", max_epochs="train_cfg.max_epochs", seed="randomness.seed")
"""What does what a variable, which is used up when its file is read, would not."""

OWN_KEYS = (
    "amp assembly checkpoint_dir compile config_file fast_norm init_from max_unreadable "
    "memory_format threshold tta"
).split()


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
    cfg = _read(path)
    # Spelt out, so that an option may change one part of it.
    if isinstance(cfg.get("compile", {}), (bool, type(None))):
        cfg.compile = dict.fromkeys(PARTS, bool(cfg.compile))
    read = cfg.to_dict()
    given = dict(options or {})
    if isinstance(every := given.get("compile"), bool):
        given = {**{f"compile.{part}": every for part in PARTS}, **given}
        given.pop("compile")
    try:
        cfg.merge_from_dict(given)
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        told = error.args[0] if error.args else error
        raise ValueError(f"--cfg-options cannot be merged into {path}: {told}") from error
    for section in dicts_in(cfg._cfg_dict):
        section.pop("_delete_", None)  # mmengine leaves it in where there was nothing to delete
    if cfg.get("custom_imports") != read.get("custom_imports"):
        import_custom(cfg, "--cfg-options", trust_code=True, beside=path.parent)
    for key in set(cfg) - {*RUNNER_KEYS, *OWN_KEYS}:
        if any(_undumpable(key, cfg[key])):  # a variable, which has been used up
            cfg.pop(key)
    cfg.config_file = str(path)
    faults = config_faults(cfg) + _idle_options(options or {}) + _idle_nones(cfg, read)
    faults += _faults_of_files(path, read)
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise ValueError(f"{path} has {len(faults)} fault(s):\n{lines}")
    return cfg


def dicts_in(node: Any) -> Iterator[dict]:
    """A section of a config and all dicts in it, also those in lists."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            yield from dicts_in(value)


def size_of(cfg: Mapping[str, Any] | None) -> tuple[int, int]:
    """(width, height) that a config tests at: of the ``Resize`` in its test or validation pipeline,
    else the dataset's own ``image_size`` (synthetic images), else 448 × 448.
    """
    sets = [
        ((cfg or {}).get(f"{part}_dataloader") or {}).get("dataset") for part in ("test", "val")
    ]
    resizes = [
        node for node in dicts_in(sets) if node.get("type") == "Resize" and node.get("scale")
    ]
    own = [node["image_size"] for node in dicts_in(sets) if node.get("image_size")]
    size = ([node["scale"] for node in resizes] + own + [DEFAULT_SIZE])[0]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def require_sections(cfg: Mapping[str, Any], *keys: str) -> None:
    """Raises:
    ValueError: The config lacks a section, or has None or nothing in it.
    """
    missing = [key for key in keys if not cfg.get(key)]
    if missing:
        raise ValueError(
            f"{cfg.get('config_file', 'the config')} has no {', '.join(missing)}; inherit a "
            "shipped config by _base_, or give them"
        )


def _base_path(
    base: str, file: str, elsewhere: Callable[[str, str], tuple[str, str | None]]
) -> tuple[str, str | None]:
    """mmengine's, for ``_base_``; ``codmoe::experts/joint.py`` is a config that ships."""
    if base.startswith(SHIPPED_BASE):
        return str(config_root() / base.removeprefix(SHIPPED_BASE)), None
    return elsewhere(base, file)


SHIPPED_BASE = "codmoe::"
# mmengine knows a list of packages, and where they keep configs, by heart.
Config._get_cfg_path = staticmethod(partial(_base_path, elsewhere=Config._get_cfg_path))


def _read(path: Path) -> Config:
    """The config of a file, with its bases.

    Raises:
        ValueError: It cannot be read; the message names the file, of all its bases, and the line.
    """
    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
    except Exception as error:
        raise ValueError(_reading_fault(path, error)) from error
    import_custom(cfg, str(path), trust_code=True, beside=path.parent)
    return cfg


def _reading_fault(path: Path, error: Exception) -> str:
    frames = list(traceback.walk_tb(error.__traceback__))
    files = [f.f_locals["filename"] for f, _ in frames if f.f_code.co_name == "_file2dict"]
    if isinstance(error, RecursionError):
        return f"{path}: its _base_ files lead back to each other"
    if isinstance(error, FileNotFoundError) and files and not Path(files[-1]).exists():
        shipped = f"{config_root()}{os.sep}"
        close = [p.replace(shipped, SHIPPED_BASE) for p in beside(Path(files[-1]), ".py")]
        hint = f"one that ships is named '{SHIPPED_BASE}experts/joint.py'"
        hint = did_you_mean(close) if close else hint
        where = files[-2] if files[1:] else path
        return f"{where}: its _base_ {files[-1]} does not exist; {hint}"
    file = str(files[-1] if files else path)
    if isinstance(error, SyntaxError):
        try:
            compile(Path(file).read_bytes(), file, "exec")
        except SyntaxError as own:  # mmengine's names a temporary copy
            return f"{file}:{own.lineno}: {own.msg}: {(own.text or '').strip()}"
    line = next((f":{n}" for f, n in reversed(frames) if f.f_code.co_filename == file), "")
    told = str(error).partition("\n")[0]
    return f"{file}{line}: the config cannot be read ({type(error).__name__}: {told})"


def _idle_options(options: Mapping[str, Any]) -> list[str]:
    """Overrides that would do nothing: a variable of a config is used up when the file is read."""
    known = [*RUNNER_KEYS, *OWN_KEYS]
    return [
        f"--cfg-options {key}: has no effect; "
        + (f"use {INSTEAD[key]}" if key in INSTEAD else suggest(key.split(".")[0], known))
        for key in options
        if key.split(".")[0] not in known
    ]


def _faults_of_files(
    path: Path, cfg: Mapping[str, Any], above: frozenset[str] | None = None
) -> list[str]:
    """What a config file, or one of its bases, sets in vain. ``above`` are the variables that the
    files which inherit it read as ``_base_.NAME``; None if none inherits it.
    """
    if path.suffix != ".py":
        return []
    text, names = _filled_in(path)
    bases = {name: Config.fromfile(name, import_custom_modules=False).to_dict() for name in names}
    faults = _idle_variables(text, cfg, bases, above)
    if bases:
        faults += _idle_nones(cfg, *bases.values())
    read = frozenset(re.findall(r"\b_base_(?:\.|\[['\"])(\w+)", text)) | (above or frozenset())
    for name, base in bases.items():
        below = _faults_of_files(Path(name), base, read)
        faults += [f"{os.path.normpath(name)}: {fault}" for fault in below]
    return faults


def _filled_in(path: Path) -> tuple[str, list[str]]:
    """The text of a config file with the file's name and the environment's values where it has
    ``{{ fileDirname }}`` and ``{{$NAME:default}}``, and the paths of its bases.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        Config._substitute_predefined_vars(os.path.abspath(path), str(copy))
        Config._substitute_env_variables(str(copy), str(copy))
        bases = Config._get_base_files(str(copy))
        return copy.read_text("utf-8"), [Config._get_cfg_path(b, str(path))[0] for b in bases]


def _idle_variables(
    text: str,
    cfg: Mapping[str, Any],
    bases: Mapping[str, Mapping[str, Any]],
    above: frozenset[str] | None,
) -> list[str]:
    """Variables that a file sets and nobody reads: those of its bases, which the bases have used,
    and those called like a key further down, as ``batch_size``. Arguments as of the caller.
    """
    names = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)]
    read = {node.id for node in names if not isinstance(node.ctx, ast.Store)}
    # A trial has a name for people, which is none of a backbone.
    known = {*RUNNER_KEYS, *OWN_KEYS, "_base_", "name", *read, *(above or ())}
    idle = dict.fromkeys(node.id for node in names if node.id not in known)
    faults = []
    for name in idle:
        # A whole config, as a run leaves it, has no base, and variables that its parts have used.
        keys = _keys_called(name, cfg) if bases and above is None else []
        if any(name in base for base in bases.values()):
            fault = "has no effect, as the _base_ has used its own; "
        elif keys:
            fault = "a variable that nothing reads; "
        else:
            continue
        instead = INSTEAD.get(name)
        hint = f"set {listed(keys, shown=2)}" if keys else "set the keys that hold it instead"
        faults.append(f"{name}: {fault}" + (f"use {instead}" if instead else hint))
    return faults


def _keys_called(name: str, cfg: Mapping[str, Any]) -> list[str]:
    """Dotted keys of the config whose last part is this name, those of training first."""
    found: list[str] = []

    def look(node: Any, path: str) -> None:
        if isinstance(node, Mapping):
            for key, value in node.items():
                if key == name and path:
                    found.append(f"{path}.{key}")
                look(value, f"{path}.{key}" if path else str(key))

    look({key: cfg[key] for key in RUNNER_KEYS if key in cfg}, "")
    return sorted(found, key=lambda key: (not key.startswith(("train", "optim")), key.count(".")))


def _idle_nones(cfg: Mapping[str, Any], *before: Mapping[str, Any]) -> list[str]:
    """Parts that are switched off under a misspelt name, so that the one that is meant stays on.
    ``before`` is what the config inherits, or what it was before it was overridden.
    """
    faults = []
    for path, parts in _named_parts(cfg):
        held = [dict(_named_parts(one)).get(path, {}) for one in before]
        known = {name for one in held for name in one}
        for name, part in parts.items():
            if part is None and name not in known and nearest(name, known):
                faults.append(f"{path}.{name}=None switches nothing off; {suggest(name, known)}")
    return faults


def _named_parts(cfg: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The sections whose entries have names, of which None switches one off."""
    model = cfg.get("model")
    model = model if isinstance(model, Mapping) else {}
    sections = {f"model.{key}": model.get(key) for key in ("experts", "routing_losses")}
    sections["default_hooks"] = cfg.get("default_hooks")
    for part in ("train", "val", "test"):
        key = f"{part}_dataloader"
        loader = cfg.get(key)
        for node in dicts_in(loader.get("dataset") if isinstance(loader, Mapping) else None):
            sections.setdefault(f"{key}.dataset.datasets", node.get("datasets"))
    yield from ((key, held) for key, held in sections.items() if isinstance(held, Mapping))


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
    wrong = _kind_faults(cfg)
    if wrong:
        return faults + wrong  # what is checked next would trip over them
    for path, section, kinds in _typed_sections(cfg):
        faults += [f"{path}: {fault}" for fault in _section_faults(section, kinds)]
    faults += whole_model_faults(cfg.get("model")) + _lesson_faults(cfg)
    faults += _name_faults(cfg)
    faults += _source_faults(cfg) + tta_faults(cfg)
    return faults + _loop_faults(cfg) + speed_faults(cfg) + amp_faults(cfg) + assembly_faults(cfg)


def whole_model_faults(model: Any) -> list[str]:
    """Whether the section ``model`` names a part of a model instead of a whole one."""
    name = model.get("type") if isinstance(model, Mapping) else None
    kind = registry.MODELS.module_dict.get(name) if isinstance(name, str) else None
    if kind is None or not issubclass(kind, (Expert, Router, Backbone)):
        return []
    part = next(p for p in (Expert, Router, Backbone) if issubclass(kind, p)).__name__.lower()
    place = f"experts=dict(NAME=dict(type={name!r}))" if part == "expert" else f"{part}=dict(...)"
    return [f"model: type={name!r} is one {part}; give type='ModelLevelMoE' and {place}"]


def metrics_of(cfg: Mapping[str, Any], part: str) -> list[Any]:
    """The metrics of ``<part>_evaluator``, which may be one or a list."""
    held = cfg.get(f"{part}_evaluator") or []
    return list(held) if isinstance(held, (list, tuple)) else [held]


def sources_of(metric: Any) -> list[str]:
    """What a ``CODMetric`` scores besides the mixture; empty of any other metric."""
    if not isinstance(metric, Mapping) or metric.get("type") != "CODMetric":
        return []
    given = metric.get("sources") or ()
    return [name for name in ([given] if isinstance(given, str) else given) if name != MIXTURE]


def _source_faults(cfg: Mapping[str, Any]) -> list[str]:
    """Sources that no metric could score, which would be told after an epoch, or after them all."""
    model = cfg.get("model") or {}
    experts = model.get("experts")
    if model.get("type") != "ModelLevelMoE" or not isinstance(experts, Mapping):
        return []
    valid = [*(name for name, one in experts.items() if one is not None), *COMBINED, "all"]
    faults = []
    for part in ("val", "test"):
        for number, metric in enumerate(metrics_of(cfg, part)):
            sources, key = sources_of(metric), f"{part}_evaluator.{number}.sources"
            wrong = [name for name in sources if name not in valid]
            faults += [f"{key}: no {name!r} to score; {suggest(name, valid)}" for name in wrong]
            if sources and not wrong and part == "val" and not model.get("evaluate_all_experts"):
                faults.append(f"{key}={sources} needs model.evaluate_all_experts=True")
    return faults


def tta_faults(cfg: Mapping[str, Any]) -> list[str]:
    """Faults of ``tta``, the several views of each image in a test."""
    options = cfg.get("tta")
    if not options:
        return []
    faults = argument_faults(AugmentedMoE, options)
    if not faults and "scales" in options:
        try:
            check_scales(options["scales"])
        except ValueError as error:
            faults.append(str(error))
    resizes = [d for d in dicts_in(cfg.get("test_dataloader")) if d.get("type") == "Resize"]
    sizes = {str(resize.get("scale")) for resize in resizes}
    if len(sizes) > 1:
        faults.append(f"it needs test pipelines that resize to one size, not {listed(list(sizes))}")
    return [f"tta: {fault}" for fault in faults]


def _lesson_faults(cfg: Mapping[str, Any]) -> list[str]:
    """Experts whose ``learns_from`` names a data set that is not trained on."""
    loader = cfg.get("train_dataloader") or {}
    nodes = list(dicts_in(loader.get("dataset")))
    groups = [node["datasets"] for node in nodes if isinstance(node.get("datasets"), Mapping)]
    known = [name for group in groups for name, one in group.items() if one is not None]
    known = known or [node["name"] for node in nodes if isinstance(node.get("name"), str)]
    experts = (cfg.get("model") or {}).get("experts")
    if not known or not isinstance(experts, Mapping):
        return []
    return [
        f"model.experts.{name}.learns_from: no data set {wanted!r} is trained on; "
        + suggest(wanted, known)
        for name, expert in experts.items()
        if isinstance(expert, Mapping)
        for wanted in expert.get("learns_from") or ()
        if wanted not in known
    ]


def _name_faults(cfg: Mapping[str, Any]) -> list[str]:
    """Weights that would bear the name of another's: ``experts/sinet`` with an expert put in
    SINet's place, after which a later stage would take its weights for SINet's.
    """
    best = (cfg.get("default_hooks") or {}).get("best")
    experts = (cfg.get("model") or {}).get("experts")
    name = best.get("name") if isinstance(best, Mapping) else None
    if not isinstance(name, str) or not isinstance(experts, Mapping):
        return []
    there = [key for key, expert in experts.items() if expert is not None]
    taken = name.removeprefix("expert_")
    if name == taken or taken in there or f"experts/{taken}" not in list_configs():
        return []
    own = repr(f"expert_{there[0]}") if len(there) == 1 else "a name of your own"
    return [
        f"default_hooks.best.name={name!r}: {name}_best.pth is for the weights of {taken!r}, which "
        f"this model does not have; give {own}"
    ]


KINDS: dict[str, Any] = {
    **{k: v for k, v in (accepted_arguments(Runner) or {}).items() if k in RUNNER_KEYS},
    **dict.fromkeys(("model", "optim_wrapper"), dict),
    **{f"{part}_dataloader": dict | None for part in ("train", "val", "test")},
    **{f"{part}_cfg": dict | None for part in ("train", "val", "test")},
    **{f"{part}_evaluator": dict | list[dict] | None for part in ("val", "test")},
    "default_hooks": dict[str, dict | None] | None,
    "custom_hooks": list[dict] | None,
    "param_scheduler": dict | list[dict] | None,
    "model_wrapper_cfg": dict | None,
    "checkpoint_dir": str,
    "find_unused_parameters": bool | None,
    "init_from": dict | None,
    "log_level": Literal["CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG"],
    "max_unreadable": float,
    "memory_format": str | None,
    "sync_bn": str | None,
    "threshold": float | None,
    "tta": dict | None,
}
"""Types of the values of top-level keys, where nothing else checks them."""


def _kind_faults(cfg: Mapping[str, Any]) -> list[str]:
    """Values of the wrong type at the top level, and those that no config file can hold."""
    faults = []
    for key in (*RUNNER_KEYS, *OWN_KEYS):
        if key in cfg:
            faults += [f"{where}: {fault}" for where, fault in _undumpable(key, cfg[key])]
            hint = KINDS.get(key, Any)
            if not faults:
                faults += value_faults({key: cfg[key]}, {key: hint}, "the config")
    if faults:
        return faults
    for path in ("train_dataloader", "val_dataloader", "test_dataloader"):
        loader = cfg.get(path) or {}
        unknown = [key for key in loader if key not in LOADER_KEYS]
        faults += [f"{path}: no key {key!r}; {suggest(key, LOADER_KEYS)}" for key in unknown]
        plain = {k: v for k, v in loader.items() if not isinstance(v, dict) and k in LOADER_TYPES}
        faults += [f"{path}: {fault}" for fault in argument_faults(DataLoader, plain)]
    return faults + init_faults(cfg)


def _undumpable(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """What the copy of the config in the work dir and in the weights could not hold."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _undumpable(f"{path}.{key}", item)
    elif isinstance(value, (list, tuple, set)):
        for i, item in enumerate(value):
            yield from _undumpable(f"{path}[{i}]", item)
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, f"{value} cannot be written into a config; give a finite number"
    elif isinstance(value, Path):
        yield path, f"{value!r} cannot be written into a config; give {str(value)!r}, a string"
    elif value is not None and not isinstance(value, (bool, int, float, str)):
        called = isinstance(value, type) or callable(value)
        hint = "give its registered name" if called else "give numbers, strings, lists and dicts"
        yield path, f"{short(value)} cannot be written into a config; {hint}"


def _loop_faults(cfg: Mapping[str, Any]) -> list[str]:
    """Faults of what the Runner builds late, and of what it reads without a type."""
    loop, wrapper = dict(cfg.get("train_cfg") or {}), dict(cfg.get("optim_wrapper") or {})
    by_epoch = loop.pop("by_epoch", True)
    loop.setdefault("type", "EpochBasedTrainLoop" if by_epoch else "IterBasedTrainLoop")
    optimizer, paramwise = wrapper.get("optimizer"), wrapper.get("paramwise_cfg")
    # The engine chooses between the two by `amp`, and drops what only one of them takes.
    for key in ("optimizer", "constructor", "paramwise_cfg", "dtype", "loss_scale"):
        wrapper.pop(key, None)
    sections: list[Section] = [("train_cfg", loop, root.LOOPS)]
    for key, default in (("val_cfg", "ValLoop"), ("test_cfg", "TestLoop")):
        sections.append((key, {"type": default, **(cfg.get(key) or {})}, root.LOOPS))
    log = {"type": "LogProcessor", **(cfg.get("log_processor") or {})}
    sections.append(("log_processor", log, root.LOG_PROCESSORS))
    if wrapper:
        wrapper.setdefault("type", "OptimWrapper")
        sections.append(("optim_wrapper", wrapper, root.OPTIM_WRAPPERS))
    faults: list[str] = []
    sections += typed_in("optim_wrapper.optimizer", optimizer, root.OPTIMIZERS)
    sections += typed_in("param_scheduler", cfg.get("param_scheduler"), root.PARAM_SCHEDULERS)
    for part in ("train", "val", "test"):
        loader = cfg.get(f"{part}_dataloader") or {}
        for key, kinds in LOADER_PARTS.items():
            path, given = f"{part}_dataloader.{key}", loader.get(key)
            sections += typed_in(path, given, kinds)
            if given is not None and not isinstance(given, Mapping):
                faults.append(f"{path}={short(given)} is no dict with a type")
    for path, section, kinds in sections:
        keys = {k: v for k, v in section.items() if k != "convert_to_iter_based"}
        faults += [f"{path}: {fault}" for fault in _section_faults(keys, kinds)]
    if optimizer is not None and not isinstance(optimizer, Mapping):
        faults.append(f"optim_wrapper.optimizer={short(optimizer)} is no dict with a type")
    env = cfg.get("env_cfg") or {}
    plain: list[tuple[str, Any, Mapping[str, Any]]] = [
        ("randomness", cfg.get("randomness"), accepted_arguments(Runner.set_randomness) or {}),
        ("env_cfg", env, ENV),
        ("env_cfg.mp_cfg", env.get("mp_cfg"), PROCESSES),
        ("optim_wrapper.paramwise_cfg", paramwise, PARAMWISE),
    ]
    custom = paramwise.get("custom_keys") if isinstance(paramwise, Mapping) else None
    for name, entry in custom.items() if isinstance(custom, Mapping) else ():
        multiples = dict(lr_mult=float, decay_mult=float)
        plain.append((f"optim_wrapper.paramwise_cfg.custom_keys[{name!r}]", entry, multiples))
    for path, given, accepted in plain:
        if isinstance(given, Mapping):
            faults += [f"{path}: {fault}" for fault in value_faults(given, accepted)]
        elif given is not None:
            faults.append(f"{path}={short(given)} is of the wrong type; it takes a dict")
    return faults


LOADER_PARTS = dict(
    sampler=root.DATA_SAMPLERS, batch_sampler=root.DATA_SAMPLERS, collate_fn=root.FUNCTIONS
)
ENV = dict(cudnn_benchmark=bool, mp_cfg=dict, dist_cfg=dict, resource_limit=int)
PROCESSES = dict(
    mp_start_method=Literal["fork", "forkserver", "spawn"], opencv_num_threads=int, distributed=bool
)
PARAMWISE = dict(
    custom_keys=dict[str, dict],
    bypass_duplicate=bool,
    **dict.fromkeys("bias_lr_mult bias_decay_mult norm_decay_mult flat_decay_mult".split(), float),
    **dict.fromkeys("dwconv_decay_mult dcn_offset_lr_mult".split(), float),
)


def _section_faults(section: Mapping[str, Any], kinds: MMRegistry) -> list[str]:
    name = section["type"]
    if not isinstance(name, str):
        return [f"type={short(name)} is no name of a registered {kinds.name}"]
    try:
        kind = kinds.get(name)
    except Exception as error:  # of mmengine's, which imports a name with dots
        if isinstance(error, ValueError):
            return [str(error)]
        kind = None
    if kind is None:  # mmengine's own registries do not raise
        hint = suggest(name, kinds.module_dict)
        return [f"type={name!r} is not a registered {kinds.name}; {hint}"]
    return argument_faults(kind, section)


def _typed_sections(cfg: Mapping[str, Any]) -> Iterator[Section]:
    yield from typed_in("model", cfg.get("model"), registry.MODELS)
    yield from typed_in("model_wrapper_cfg", cfg.get("model_wrapper_cfg"), registry.MODEL_WRAPPERS)
    for hooks in ("default_hooks", "custom_hooks"):
        yield from typed_in(hooks, cfg.get(hooks), registry.HOOKS)
    for part in ("train", "val", "test"):
        loader = cfg.get(f"{part}_dataloader") or {}
        yield from typed_in(f"{part}_dataloader.dataset", loader.get("dataset"), registry.DATASETS)
        yield from typed_in(f"{part}_evaluator", cfg.get(f"{part}_evaluator"), registry.METRICS)


def typed_in(path: str, node: Any, kinds: MMRegistry) -> Iterator[Section]:
    """The sections with a ``type`` in a part of a config, itself included."""
    if isinstance(node, Mapping):
        if "type" in node:
            yield path, node, kinds
        for key, value in node.items():
            inner = registry.TRANSFORMS if key == "pipeline" else kinds
            yield from typed_in(f"{path}.{key}", value, inner)
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from typed_in(f"{path}[{i}]", value, kinds)


def parse_options(pairs: list[str] | None) -> dict[str, Any]:
    """``key=value`` strings of the command line → dictionary, values read as Python where they are.

    As of mmengine, words between commas are a list, in brackets or without: ``SIMAE,HCE``. What is
    in quotes stays a string, and so does what may be a path or a pattern.

    Raises:
        ValueError: A string has no ``=``.
    """
    options = {}
    for pair in pairs or []:
        key, sep, value = pair.partition("=")
        if not sep:
            raise ValueError(f"--cfg-options {pair!r} is not key=value")
        options[key] = _value_of(value)
    return options


def _value_of(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        inner = text[1:-1] if text[:1] + text[-1:] in ("[]", "()") else text
        if (inner != text or "," in text) and re.fullmatch(r"[\w.-]+(, ?[\w.-]+)*", inner):
            return [_value_of(word.strip()) for word in inner.split(",")]
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)

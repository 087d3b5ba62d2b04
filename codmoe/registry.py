"""Registries of models, data sets, transforms, metrics and hooks, children of mmengine's.

Nothing has to be imported by hand: a registry imports its ``locations`` when it is first asked. An
unknown ``type=`` and a misspelt argument are answered with the nearest valid names.
"""

from __future__ import annotations

import inspect
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typeguard
from mmengine import registry as root
from mmengine.registry import Registry as MMRegistry
from mmengine.registry import build_from_cfg, build_model_from_cfg

from codmoe.messages import nearest, on_purpose, short, suggest

SCOPE = "codmoe"
REMOVED = dict(  # in 0.2; CHANGELOG.md says why
    PixelCombiner="'ProbabilityCombiner'",
    ExpectedRegretLoss="'ExpertIoUDistillation'",
    ExpertRankingLoss="'ExpertIoUDistillation'",
    OracleRouter="another router; codmoe test --experts reports the oracle of any model",
)
"""Registered names of before → what to use now."""


CHECKED = ("codmoe", "mmengine", "torch")
"""Packages whose annotations are held against values; those of others may be loose."""


def argument_faults(cls: Callable, given: Mapping[str, Any]) -> list[str]:
    """Faults of the keyword arguments of a config section, one sentence each."""
    accepted = accepted_arguments(cls)
    name = getattr(cls, "__name__", str(cls))
    return [] if accepted is None else value_faults(given, accepted, name)


def value_faults(
    given: Mapping[str, Any], accepted: Mapping[str, Any], name: str = "it"
) -> list[str]:
    """Faults of a section whose keys ``name`` takes: of those that are not ``accepted``, and of
    values that are not of the type given there.
    """
    faults = []
    for key, value in given.items():
        if key in ("type", "_scope_"):
            continue
        if key not in accepted:
            faults.append(f"{name} takes no argument {key!r}: {suggest(str(key), accepted)}")
        elif not fits(value, accepted[key]):
            kind = inspect.formatannotation(accepted[key])
            kind = kind.replace("collections.abc.", "").replace("typing.", "")
            where, wrong = _misfit(str(key), value, accepted[key])
            of = "it" if where == key else key
            faults.append(f"{name}: {where}={short(wrong)} is of the wrong type; {of} takes {kind}")
    return faults


def _misfit(key: str, value: Any, hint: Any) -> tuple[str, Any]:
    """The entry of a dict or list that does not fit, or all of it."""
    if isinstance(value, Mapping) and fits({}, hint):
        found = ((f"{key}.{k}", v) for k, v in value.items() if not fits({k: v}, hint))
        return next(found, (key, value))
    if isinstance(value, (list, tuple)) and fits([], hint):
        found = ((f"{key}[{i}]", v) for i, v in enumerate(value) if not fits([v], hint))
        return next(found, (key, value))
    return key, value


def accepted_arguments(cls: Callable) -> dict[str, Any] | None:
    """Types of the arguments of a class or function by name; None if it takes any.

    A class that takes ``**kwargs`` hands them to its base class, so the signatures along its method
    resolution order are united until one closes the list.
    """
    accepted: dict[str, Any] = {}
    for candidate in inspect.getmro(cls) if inspect.isclass(cls) else (cls,):
        init = candidate.__dict__.get("__init__") if inspect.isclass(candidate) else candidate
        if init is None or not inspect.isroutine(init):
            continue
        checked = str(candidate.__module__).partition(".")[0] in CHECKED
        parameters = inspect.signature(init).parameters.values()
        for p in parameters:
            if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                accepted.setdefault(p.name, _hint(p, init) if checked else Any)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            accepted.pop("self", None)
            accepted |= getattr(cls, "read_by_model", {})
            return accepted
    return None


def _hint(parameter: inspect.Parameter, function: Any) -> Any:
    """The type of a parameter; anything where it has none, or one that only type checkers know."""
    hint = parameter.annotation
    if hint is parameter.empty:
        return Any
    if isinstance(hint, str):
        try:
            hint = eval(hint, getattr(function, "__globals__", {}))
        except NameError:
            return Any
    # Some annotate `x: int = None`.
    return typing.Union[hint, None] if parameter.default is None else hint  # noqa: UP007


def fits(value: Any, hint: Any) -> bool:
    """Whether a config's value is of a type.

    Lists pass for tuples, as ``[4, 4]`` of a command line does; a string is no sequence of strings.
    """
    if isinstance(value, str):
        members = typing.get_args(hint) if _is_union(hint) else (hint,)
        members = tuple(m for m in members if typing.get_origin(m) is not Sequence)
        return any(_passes(value, member) for member in members)
    return _passes(value, hint) or _passes(_tuples(value), hint)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _passes(value: Any, hint: Any) -> bool:
    try:
        typeguard.check_type(
            value,
            hint,
            forward_ref_policy=typeguard.ForwardRefPolicy.IGNORE,
            collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS,
        )
    except typeguard.TypeCheckError:
        return False
    return True


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _checked(build):
    def build_checked(cfg, registry, *args, **kwargs):
        what = short(cfg)
        if isinstance(cfg, dict) and isinstance(cfg.get("type"), str):
            # Whatever default scope another project left behind, our names are looked up here
            # first.
            cfg = {"_scope_": SCOPE, **cfg}
            with registry.switch_scope_and_registry(cfg["_scope_"]) as scoped:
                cls = scoped.get(cfg["type"])
            faults = argument_faults(cls, cfg) if cls is not None else []
            if faults:
                raise ValueError("; ".join(faults))
            what = cfg["type"]
        elif isinstance(cfg, dict) and "type" not in {**cfg, **(kwargs.get("default_args") or {})}:
            raise ValueError(f"{what} names no type; give dict(type='NAME', ...)")
        with building(what):
            return build(cfg, *args, registry=registry, **kwargs)

    return build_checked


@contextmanager
def building(what: str) -> Iterator[None]:
    """Tells what could not be built of the config, where nobody foresaw the error.

    Args:
        what: Its key or type; the type that mmengine was building last is named with its arguments.

    Raises:
        ValueError: Something failed that was not raised on purpose.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if on_purpose(error):
            raise
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        built = [f.f_locals.get("obj_cls") for f in frames if f.f_code.co_name == "build_from_cfg"]
        cls = next(filter(None, reversed(built)), None)
        takes = accepted_arguments(cls) if cls is not None else None
        if cls is not None and getattr(cls, "__name__", what) != what:
            what = f"{what}: {getattr(cls, '__name__', cls)}"
        told = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{what} cannot be built ({type(error).__name__}: {told})"
            + (f"; it takes {', '.join(takes)}" if takes else "")
        ) from error


class Registry(MMRegistry):
    """An mmengine registry whose errors name what would be right."""

    def __init__(self, parent: MMRegistry, locations: list[str], build_func=build_from_cfg):
        super().__init__(
            parent.name,
            parent=parent,
            scope=SCOPE,
            locations=locations,
            build_func=_checked(build_func),
        )

    def get(self, key: str):
        """The class registered under ``key`` here or in mmengine.

        Raises:
            ValueError: Nothing is registered under that name.
        """
        try:
            found = super().get(key)
        except (ImportError, RuntimeError, ValueError):  # of a name with dots
            found = None
        if found is None:
            if key in REMOVED:
                raise ValueError(f"type={key!r} was removed in 0.2; use {REMOVED[key]}")
            own = list(self.module_dict)
            # Names of mmengine's own are offered only when they are near: there are hundreds.
            close = nearest(key, own + list(self.parent.module_dict))
            hint = suggest(key, close or own)
            raise ValueError(f"type={key!r} is not a registered {self.name}; {hint}")
        return found


MODELS = Registry(root.MODELS, ["codmoe.models"], build_model_from_cfg)
DATASETS = Registry(root.DATASETS, ["codmoe.datasets"])
TRANSFORMS = Registry(root.TRANSFORMS, ["codmoe.datasets.transforms"])
METRICS = Registry(root.METRICS, ["codmoe.evaluation"])
HOOKS = Registry(root.HOOKS, ["codmoe.engine"])
MODEL_WRAPPERS = Registry(root.MODEL_WRAPPERS, ["codmoe.engine"])

# mmengine warns about every kind of part that a scope has no registry of. Ours are empty for these.
_EMPTY = [
    Registry(kind, [], kind.build_func)
    for kind in (
        root.DATA_SAMPLERS,
        root.EVALUATOR,
        root.LOG_PROCESSORS,
        root.LOOPS,
        root.OPTIM_WRAPPER_CONSTRUCTORS,
        root.OPTIM_WRAPPERS,
        root.OPTIMIZERS,
        root.PARAM_SCHEDULERS,
        root.VISBACKENDS,
        root.VISUALIZERS,
    )
]

"""Registries of models, data sets, transforms, metrics and hooks, children of mmengine's.

Nothing has to be imported by hand: a registry imports its ``locations`` when it is first asked. An
unknown ``type=`` and a misspelt argument are answered with the nearest valid names.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from mmengine import registry as root
from mmengine.registry import Registry as MMRegistry
from mmengine.registry import build_from_cfg, build_model_from_cfg

from codmoe.messages import nearest, suggest

SCOPE = "codmoe"
REMOVED = dict(  # in 0.2; CHANGELOG.md says why
    PixelCombiner="'ProbabilityCombiner'",
    ExpectedRegretLoss="'ExpertIoUDistillation'",
    ExpertRankingLoss="'ExpertIoUDistillation'",
    OracleRouter="another router; tools/test.py --experts reports the oracle of any model",
)
"""Registered names of before → what to use now."""


def argument_faults(cls: type, given: Iterable[str]) -> list[str]:
    """Faults of the keyword arguments of a config section, one sentence each.

    A class that takes ``**kwargs`` hands them to its base class, so the signatures along its method
    resolution order are united until one closes the list; nothing is said if none does.
    """
    accepted: set[str] = set()
    candidates = inspect.getmro(cls) if inspect.isclass(cls) else (cls,)
    for candidate in candidates:
        init = candidate.__dict__.get("__init__") if inspect.isclass(candidate) else candidate
        if init is None or not inspect.isroutine(init):
            continue
        parameters = inspect.signature(init).parameters.values()
        accepted |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    else:
        return []
    accepted -= {"self"}
    name = getattr(cls, "__name__", str(cls))
    return [
        f"{name} takes no argument {key!r}: {suggest(key, accepted)}"
        for key in given
        if key not in accepted and key not in ("type", "_scope_")
    ]


def _checked(build):
    def build_checked(cfg, registry, *args, **kwargs):
        if isinstance(cfg, dict) and isinstance(cfg.get("type"), str):
            # Whatever default scope another project left behind, our names are looked up here
            # first.
            cfg = {"_scope_": SCOPE, **cfg}
            with registry.switch_scope_and_registry(cfg["_scope_"]) as scoped:
                cls = scoped.get(cfg["type"])
            # TypeError carries Python's own text for anything the signature cannot tell beforehand.
            faults = argument_faults(cls, cfg) if cls is not None else []
            if faults:
                raise ValueError("; ".join(faults))
        return build(cfg, *args, registry=registry, **kwargs)

    return build_checked


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
        found = super().get(key)
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

"""Builds the parts of the model from their configs and checks that each is what it claims."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from torch import nn

from codmoe.messages import suggest
from codmoe.models.backbones.base import Backbone
from codmoe.models.combiners import Combiner
from codmoe.models.experts.base import Expert, check_signature
from codmoe.models.router_truth import RouterTruth
from codmoe.models.routers.base import Router
from codmoe.models.routers.evidence import EvidenceRouter
from codmoe.models.routers.grown import GrownRouter
from codmoe.registry import MODELS, argument_faults

Part = TypeVar("Part", bound=nn.Module)
DEFAULT_EXPERTS = dict(
    sinet=dict(type="SINetExpert"),
    pranet=dict(type="PraNetExpert"),
    zoomnet=dict(type="ZoomNetExpert"),
    ujsc=dict(type="UJSCExpert"),
)
PLAIN_VITS = ("vit_", "deit_", "deit3_", "eva", "flexivit_")
TAKES_ALL = ("UniformRouter", "FixedRouter", "StaticRouter")


SETS = dict(
    Backbone=("channels", "size_divisor"),
    Expert=("backbone", "input_scales"),
    Router=("expert_names", "top_k"),
    Combiner=("log_temperature",),
)
"""What each kind of part has once its constructor has run."""


def check_choice(key: str, value: str | None, choices: Sequence[str | None]) -> None:
    """Raises:
    ValueError: ``value`` of the config key ``key`` is none of ``choices``.
    """
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices[:-1])
        raise ValueError(f"{key}={value!r} is unknown; use {listed} or {choices[-1]!r}")


def _build(cfg: Any, key: str, contract: Callable[..., Part], **filled_in: Any) -> Part:
    if not isinstance(cfg, Mapping) or "type" not in cfg:
        raise ValueError(f"{key}={cfg!r} needs a dict with a type, e.g. dict(type='...')")
    kind: Any = contract
    try:
        # Before it is built: another kind of part would trip over what is filled in.
        cls = MODELS.get(cfg["type"]) if isinstance(cfg["type"], str) else cfg["type"]
        if inspect.isclass(cls) and not issubclass(cls, kind):
            raise ValueError(f"type={cfg['type']!r} is no {kind.__name__}")
        part = MODELS.build(dict(cfg), default_args=filled_in)
    except (ValueError, FileNotFoundError) as error:
        if str(error).startswith(key):
            raise
        raise type(error)(f"{key}: {error}") from error
    if not isinstance(part, kind):
        raise ValueError(f"{key}: type={cfg['type']!r} is no {kind.__name__}")
    unset = [name for name in SETS.get(kind.__name__, ()) if not hasattr(part, name)]
    if unset:
        raise ValueError(
            f"{key}: {type(part).__name__}.__init__ sets no {', '.join(unset)}; let it call "
            f"super().__init__(...), and set what {kind.__name__}'s docstring says"
        )
    return part


def backbone_config(backbone: str | Mapping[str, Any]) -> dict[str, Any]:
    """The config of a backbone that is given by its timm name, or a copy of the config given."""
    if not isinstance(backbone, str):
        return dict(backbone)
    kind = "ViTPyramid" if backbone.startswith(PLAIN_VITS) else "TimmPyramid"
    return dict(type=kind, name=backbone)


def skip_pretrained(model: dict[str, Any]) -> None:
    """Have the section ``model`` of a config neither download nor read backbone weights that a
    checkpoint replaces at once.
    """
    backbone = model.get("backbone")
    if isinstance(backbone, dict):
        # Only what is there: a backbone of somebody else's need not know these arguments.
        skipped = dict(pretrained=False, checkpoint=None)
        backbone.update({key: value for key, value in skipped.items() if key in backbone})


def build_backbone(backbone: str | dict) -> Backbone:
    """A backbone from a timm name or a config."""
    cfg = backbone_config(backbone) if isinstance(backbone, str) else backbone
    return _build(cfg, "backbone", Backbone)


def build_experts(
    experts: Mapping[str, dict | None] | None, num_experts: int | None, backbone: Backbone
) -> nn.ModuleDict:
    """Experts by name; None entries are dropped."""
    if experts is None:
        num_experts = 4 if num_experts is None else num_experts
        if not 1 <= num_experts <= len(DEFAULT_EXPERTS):
            raise ValueError(
                f"num_experts={num_experts}: this project has {len(DEFAULT_EXPERTS)} "
                f"({', '.join(DEFAULT_EXPERTS)}); name your own in experts=dict(...)"
            )
        experts = dict(list(DEFAULT_EXPERTS.items())[:num_experts])
    experts = {name: cfg for name, cfg in experts.items() if cfg is not None}
    if not experts:
        raise ValueError(
            "experts is empty; give at least one, e.g. dict(sinet=dict(type='SINetExpert'))"
        )
    if num_experts is not None and num_experts != len(experts):
        raise ValueError(
            f"num_experts={num_experts}, but experts names {len(experts)} ({', '.join(experts)}); "
            "leave num_experts out"
        )
    for name in experts:
        if "loss" in name:
            raise ValueError(
                f"experts.{name}: mmengine adds up every logged value whose name holds 'loss', and "
                f"IoU_{name} would be part of the loss; choose another name"
            )
    built = nn.ModuleDict()
    for name in sorted(experts):
        key, cfg = f"experts.{name}", experts[name]
        own = cfg.get("own_blocks", 0) if isinstance(cfg, Mapping) else 0
        sets = cfg.get("learns_from") or () if isinstance(cfg, Mapping) else ()
        if isinstance(cfg, Mapping):
            cfg = {k: v for k, v in cfg.items() if k not in Expert.read_by_model}
        expert = _build(cfg, key, Expert, in_channels=backbone.channels)
        check_signature(expert)
        expert.learns_from = (sets,) if isinstance(sets, str) else tuple(sets)
        if own:
            try:
                expert.backbone = copy.deepcopy(backbone.ending(own)).requires_grad_(True)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
        built[name] = expert
    return built


def own_blocks_of(experts: Mapping[str, dict | None] | None) -> int:
    """The number of last blocks that experts have of their own; 0 where none has.

    Raises:
        ValueError: They differ: the blocks before could not be run once for all.
    """
    configs = {name: cfg for name, cfg in (experts or {}).items() if isinstance(cfg, Mapping)}
    found = {name: cfg["own_blocks"] for name, cfg in configs.items() if cfg.get("own_blocks")}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in found.items())
        raise ValueError(
            f"experts: own_blocks differ ({listed}); give all that have blocks of their own the "
            "same number, so that the blocks before are run once for all"
        )
    return next(iter(found.values()), 0)


def build_router(
    router: dict | None,
    names: Sequence[str],
    top_k: int | None,
    in_channels: Sequence[int],
    newcomers: Sequence[str] = (),
) -> Router:
    """The router; by default one that reads the image, or none to speak of for one expert. With
    ``newcomers``, in the order in which they joined, ``router`` is that of the mixture that grew.

    Raises:
        ValueError: A newcomer is none of the experts, is named twice, or joined no other, or
            ``newcomers`` is one name.
    """
    if isinstance(newcomers, str):
        raise ValueError(f"newcomers={newcomers!r}: give a tuple of names, ({newcomers!r},)")
    if newcomers:
        return _build_grown(router, names, top_k, in_channels, newcomers)
    if router is None:
        router = dict(type="EvidenceRouter" if len(names) > 1 else "UniformRouter")
    if top_k is None and router.get("type") not in TAKES_ALL:
        top_k = min(2, len(names))
    filled_in = dict(in_channels=tuple(in_channels), expert_names=tuple(names), top_k=top_k)
    return _build(router, "router", Router, **filled_in)


def _build_grown(
    router: dict | None,
    names: Sequence[str],
    top_k: int | None,
    in_channels: Sequence[int],
    newcomers: Sequence[str],
) -> Router:
    *earlier, last = newcomers
    before = [name for name in names if name != last]
    if last not in names:
        raise ValueError(
            f"newcomers: {last!r} is not an expert of this model; {suggest(last, names)}"
        )
    if last in earlier or not before:
        what = "is named twice" if last in earlier else "is the only expert, and joined none"
        raise ValueError(f"newcomers={tuple(newcomers)}: {last!r} {what}")
    config = router or {}
    takes_all = config.get("type") in TAKES_ALL
    if top_k is None and not takes_all:
        top_k = min(2, len(names))
    # Its evidence is as wide as that of a router which reads the image, too.
    own = config if config.get("type") == "EvidenceRouter" else dict(type="EvidenceRouter")
    own = {**own, "fallback": 0.0}
    given = dict(in_channels=tuple(in_channels), expert_names=(last,), top_k=1)
    k = None if takes_all or top_k is None else min(top_k, len(before))
    old = build_router(router, before, k, in_channels, earlier)
    return GrownRouter(
        old,
        cast(EvidenceRouter, _build(own, "router", Router, **given)),
        expert_names=tuple(names),
        top_k=old.top_k if top_k is None else top_k,
    )


def check_train_top_k(value: int | str | None, router: Router, dispatch: str) -> int | None:
    """The number of experts that ``train_top_k`` means; None for a router that takes all anyway.

    Raises:
        ValueError: It is none, or sparse dispatch would run the experts for it alone.
    """
    experts, least = len(router.expert_names), router.top_k
    if value is None or (value == "all" and least == experts):
        return None
    count = experts if value == "all" else value
    if not isinstance(count, int) or isinstance(count, bool) or not least <= count <= experts:
        raise ValueError(
            f"train_top_k={value!r}: give 'all', None, or a number from top_k, {least}, to the "
            f"number of experts, {experts}"
        )
    if dispatch == "sparse":
        raise ValueError(
            f"train_top_k={value!r} with train_dispatch='sparse', which runs the experts of top_k "
            "alone; set train_dispatch='dense' or train_top_k=None"
        )
    return count


def build_router_truth(truth: Mapping | None, names: Sequence[str]) -> RouterTruth | None:
    """What tells the routing losses the experts' IoU, or None for the experts at hand."""
    if not truth:
        return None
    faults = argument_faults(RouterTruth, truth) if isinstance(truth, Mapping) else [repr(truth)]
    if faults or not truth.get("files"):
        found = "; ".join(faults) or "no files"
        raise ValueError(f"router_truth: {found}; give dict(files=(...)) and, if wanted, centred")
    return RouterTruth(expert_names=names, **truth)


def check_shared(names: Sequence[str], router: Router) -> tuple[int, ...]:
    """Positions of the experts that every image gets.

    Raises:
        ValueError: One is none of the experts, or no choice would be left to the router.
    """
    shared = tuple(router.index_of(name, "shared_experts") for name in names)
    if shared and router.top_k == len(router.expert_names):
        return ()  # all are chosen anyway
    if len(shared) >= router.top_k and shared:
        raise ValueError(
            f"shared_experts={tuple(names)} with top_k={router.top_k}: top_k counts them, and at "
            f"least one is to be chosen by the router; set top_k={len(shared) + 1} or more"
        )
    return shared


def build_combiner(combiner: dict | None, names: Sequence[str]) -> Combiner:
    """The combiner; by default a weighted sum of probabilities."""
    combiner = combiner or dict(type="ProbabilityCombiner")
    return _build(combiner, "combiner", Combiner, expert_names=tuple(names))


def build_routing_losses(losses: Mapping[str, dict | None] | None, dispatch: str) -> nn.ModuleDict:
    """Routing losses by name; None entries are dropped."""
    built = {
        name: _build(cfg, f"routing_losses.{name}", nn.Module)
        for name, cfg in (losses or {}).items()
        if cfg is not None
    }
    for name, loss in built.items():
        if getattr(loss, "needs_all_experts", False) and dispatch != "dense":
            raise ValueError(
                f"routing_losses.{name} compares all experts; set train_dispatch='dense' or "
                f"routing_losses=dict({name}=None)"
            )
    return nn.ModuleDict(built)


def freeze(model: nn.Module, frozen: Sequence[str]) -> None:
    """Take gradient and training mode from the named parts of a model.

    Raises:
        ValueError: There is no such part.
    """
    check_parts(model, frozen, "frozen")
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    model.train(model.training)


def check_parts(model: nn.Module, named: Sequence[str], key: str) -> None:
    """Raises:
    ValueError: The config key ``key`` names something that is no part of the model.
    """
    parts = [name for name, _ in model.named_modules() if name.count(".") < 2 and name]
    for name in named:
        if name not in parts:
            raise ValueError(f"{key}={list(named)}: no part {name!r}; {suggest(name, parts)}")

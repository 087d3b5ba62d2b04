"""Models by the name of their config, or from nothing but a weights file."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.config import Config

from codmoe.engine.checkpoints import load_parts, meta_of, stored_config
from codmoe.engine.config import load_config, whole_model_faults
from codmoe.messages import note, suggest
from codmoe.models.build import DEFAULT_EXPERTS, backbone_config, skip_pretrained
from codmoe.models.moe import ModelLevelMoE
from codmoe.registry import MODELS
from codmoe.shipped import (
    ABOUT,
    DEFAULT,
    FOLDER,
    SHIPPED,
    is_shipped,
    list_configs,
    shipped_names,
    shipped_weights,
)


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Names that match a shell pattern, of the shipped configs, e.g. ``"ensemble/stage3"``, and of
    the models that ship trained, e.g. ``"small"``.

    ``*`` matches ``/`` too: ``list_models("*stage3*")``.

    Args:
        pattern: Shell pattern.
        pretrained: Only those that ship trained.
    """
    trained = shipped_names(pattern)
    return trained if pretrained else sorted([*fnmatch.filter(list_configs(), pattern), *trained])


def create_model(
    name: str | Path | None = None,
    *,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    device: str | torch.device | None = None,
    trust_code: bool = False,
    **overrides: Any,
) -> ModelLevelMoE:
    """A model in evaluation mode.

    ``create_model(checkpoint="checkpoints_moe/ensemble_best.pth")`` needs no name: the file holds
    the config that made it, which is read as plain values and not run.
    ``create_model("small", pretrained=True)`` is a whole trained model that ships with the package.

    Args:
        name: Name of a shipped config (:func:`list_models`) or path of one. None takes the config
            in ``checkpoint``.
        checkpoint: Weights of the whole model, loaded strictly. Nothing is downloaded then.
        pretrained: Start from a pretrained backbone, as far as ``checkpoint`` does not bring one:
            from the local file that the config names, or else from timm's hub. For a model that
            ships trained: with all its trained weights.
        device: Where the model goes; None leaves it on the CPU.
        trust_code: Import the modules that the config in ``checkpoint`` names in
            ``custom_imports``: that runs their code, so only for files whose owner you trust.
        **overrides: Merged into the config's ``model``: ``top_k=1``, ``experts=dict(ujsc=None)``
            (None removes an expert), ``backbone=dict(name="pvt_v2_b0")``. A dict with a ``type`` of
            its own that differs, or with ``_delete_=True``, replaces instead.

    Returns:
        The model; its whole config is ``model.cfg``, with the ``threshold`` of its masks that the
        weights hold, or None.

    Raises:
        FileNotFoundError: No such config or checkpoint.
        ValueError: Neither is given, the config has faults, or the checkpoint does not fit.
    """
    if name is None and checkpoint is None:
        names = ", ".join(list_models())
        raise ValueError(f"create_model needs name= (one of {names}; or a path) or checkpoint=")
    if is_shipped(name):
        if pretrained and checkpoint is None:
            checkpoint, name = shipped_weights(name), None
        else:
            name = SHIPPED[name]
    if name is not None:
        cfg = load_config(name)
    else:
        cfg = config_of(cast("str | Path", checkpoint), trust_code)
    if "model" not in cfg:
        raise ValueError(f"{name or checkpoint}: the config has no model=dict(...)")
    for fault in whole_model_faults(cfg.model):
        raise ValueError(f"{name or checkpoint}: {fault}")
    section = cfg.model.to_dict()
    if cfg.get("data_preprocessor"):  # mmengine allows it at the top level
        section.setdefault("data_preprocessor", cfg.data_preprocessor.to_dict())
    section["backbone"] = backbone_config(section.get("backbone", "pvt_v2_b2"))
    from_nothing = checkpoint is not None or not pretrained
    if from_nothing:
        skip_pretrained(section)
    section = merge_model(section, overrides)
    section["backbone"] = backbone_config(section["backbone"])
    if checkpoint is not None:
        skip_pretrained(section)
    elif pretrained:
        section["backbone"]["pretrained"] = True
    if checkpoint is not None and section.get("experts"):
        section["experts"] = _in_order(section["experts"], expert_order(checkpoint))
    cfg.model = section
    model = MODELS.build({"type": "ModelLevelMoE", **section})
    if checkpoint is not None:
        load_whole(model, checkpoint)
        cfg.threshold = meta_of(checkpoint).get("threshold")
    model.cfg = cfg
    return model.to(device or "cpu").eval()


def merge_model(section: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``overrides`` merged into a config's ``model`` section; see :func:`create_model`.

    Raises:
        ValueError: An expert is removed that is not there.
    """
    section = dict(section)
    changed = overrides.get("experts")
    if changed:
        if not section.get("experts"):
            section["experts"] = dict(
                list(DEFAULT_EXPERTS.items())[: section.get("num_experts", 4)]
            )
        section.pop("num_experts", None)
        for name in (name for name, expert in changed.items() if expert is None):
            if name not in section["experts"]:
                raise ValueError(
                    f"experts.{name}=None removes an expert that is not there; "
                    + suggest(name, section["experts"])
                )
    return _merge(section, overrides)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(value, Mapping):
            value = dict(value)
            replace = value.pop("_delete_", False)
            if isinstance(old, Mapping) and not replace:
                same = value.get("type", old.get("type")) == old.get("type")
                value = _merge(old, value) if same else value
        merged[key] = value
    return merged


def load_whole(model: ModelLevelMoE, checkpoint: str | Path) -> None:
    """Load all weights strictly, the order of the experts included: routers know them by number.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A key is missing, left over or of another shape, or the order differs.
    """
    order = expert_order(checkpoint)
    if order and set(order) == set(model.expert_names) and order != model.expert_names:
        raise ValueError(
            f"checkpoint {checkpoint} was made with experts in the order {', '.join(order)}, this "
            f"model has {', '.join(model.expert_names)}: the router would mistake one for another"
        )
    load_parts(model, checkpoint)


def expert_order(checkpoint: str | Path) -> tuple[str, ...]:
    """Names of the experts in the order that made a weights file; empty if it does not say.

    Raises:
        FileNotFoundError: No such file.
    """
    return tuple(meta_of(checkpoint).get("expert_names") or ())


def config_of(checkpoint: str | Path, trust_code: bool = False) -> Config:
    """The config that a weights file was made with; it builds parts of this project alone.

    Args:
        checkpoint: The file.
        trust_code: See :func:`create_model`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file holds no config, one that is more than literals, builds what is no part
            of this project, or leaves the order of the experts open.
    """
    cfg = stored_config(checkpoint, trust_code=trust_code)
    if cfg is None:
        raise ValueError(
            f"checkpoint {checkpoint} does not say which config made it; give name= (--config), "
            f"one of {', '.join(list_models())}"
        )
    experts = (cfg.get("model") or {}).get("experts") or {}
    if sum(expert is not None for expert in experts.values()) > 1:
        # mmengine writes dicts sorted by key.
        order = expert_order(checkpoint)
        if not order:
            raise ValueError(
                f"checkpoint {checkpoint} holds a config, but not the order of its experts, by "
                "which the router knows them; give name= (--config), or use the stage's *_best.pth"
            )
        cfg.model.experts = _in_order(cfg.model.experts.to_dict(), order)
    return cfg


def _in_order(experts: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    first = {name: experts[name] for name in order if name in experts}
    return {**first, **experts}


def weights_to_use(model: Any, checkpoint: Any) -> tuple[Any, Any]:
    """What ``create_model`` takes, of an :class:`Inferencer`'s ``model`` and ``checkpoint``.

    Without a checkpoint these are the weights that ship, and one line on standard error says so.

    Raises:
        ValueError: A model is named that has no weights.
        FileNotFoundError: This installation lacks the weights.
    """
    if checkpoint is not None:
        return model, checkpoint
    if model is not None and not is_shipped(model):
        raise ValueError(
            f"{str(model)!r} has no weights; give checkpoint='FILE.pth' (--checkpoint FILE.pth), a "
            f"model that has its weights already, or one that ships trained: {', '.join(SHIPPED)}"
        )
    name = model or DEFAULT
    path = shipped_weights(name)
    note(f"model {name!r} ({ABOUT[name]}); its card: {FOLDER / 'MODEL_CARD.md'}")
    return None, path

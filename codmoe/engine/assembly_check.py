"""Measures what a stage loaded before its first step: every expert on its own checkpoint and inside
the assembled model.

A head that was trained on one backbone and sits on another still loads, trains and predicts; only
its IoU tells.
"""

from __future__ import annotations

import gc
import json
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.runner import ValLoop
from torch import Tensor, nn

from codmoe.engine.assembly import read_sources, skip_pretrained
from codmoe.engine.assembly_report import failure, print_assembly
from codmoe.engine.checkpoints import load_parts, read_weights
from codmoe.engine.hooks import bare_model
from codmoe.engine.stored_config import meta_of, stored_config
from codmoe.evaluation.tables import save_json
from codmoe.models.build import DEFAULT_EXPERTS
from codmoe.registry import MODELS

ASSEMBLY_KEYS = ("max_drop",)
MAX_DROP = 0.01


def assembly_faults(cfg: Mapping[str, Any]) -> list[str]:
    """What is wrong with ``cfg.assembly`` = ``dict(max_drop=0.01)``, one sentence each.

    ``max_drop`` is the IoU an expert may lose by being assembled; None measures and never stops.
    ``assembly=None`` measures nothing.
    """
    settings = cfg.get("assembly", {})
    if settings is None:
        return []
    if not isinstance(settings, Mapping) or set(settings) - set(ASSEMBLY_KEYS):
        return [f"assembly={settings!r}: give dict(max_drop=0.01), or None to measure nothing"]
    drop = settings.get("max_drop", MAX_DROP)
    if drop is not None and (isinstance(drop, bool) or not isinstance(drop, (int, float))):
        return [f"assembly.max_drop={drop!r} is not a number; it is an IoU, e.g. 0.01, or None"]
    if drop is not None and not 0 <= drop <= 1:
        return [f"assembly.max_drop={drop!r} is not in [0, 1]; one point of IoU is 0.01"]
    return []


def check_assembly(runner, cfg: Config) -> dict[str, Any] | None:
    """Measure what :func:`~codmoe.engine.assembly.load_sources` loaded, on the stage's validation
    data; every process takes part. Nothing is trained, and no random state is changed.

    Args:
        runner: The Runner, its model loaded; ``cfg`` is its config.
        cfg: ``cfg.assembly`` as :func:`assembly_faults` describes it.

    Returns:
        The payload of ``<work_dir>/assembly.json``; None where nothing is measured.

    Raises:
        ValueError: An expert lost more than ``max_drop``, or there is no validation data.
    """
    sources, settings = read_sources(cfg), cfg.get("assembly", {})
    if sources is None or settings is None or cfg.get("resume"):
        return None
    model = bare_model(runner)
    files = sources.expert_files(model.expert_names)
    if not files:
        return None
    if runner.val_loop is None:
        raise ValueError(
            "the experts that this stage starts from cannot be measured without validation data; "
            "give val_dataloader, val_cfg and val_evaluator, or set assembly=None"
        )
    started = time.time()
    runner.logger.info(f"measuring {len(files)} expert(s) before the first step")
    with _same_random_numbers():
        inside = measure_experts(runner, model)
        experts = {}
        for path in dict.fromkeys(files.values()):
            names = [name for name, file in files.items() if file == path]
            experts |= _of_file(runner, cfg, model, path, names, inside)
    limit = settings.get("max_drop", MAX_DROP)
    for expert in experts.values():
        expert["passed"] = limit is None or expert["drop"] <= limit
    payload = dict(
        config=str(cfg.get("config_file")),
        policy=sources.policy,
        max_drop=limit,
        passed=all(expert["passed"] for expert in experts.values()),
        images=len(runner.val_loop.dataloader.dataset),
        backbone=[str(path) for path in sources.backbone_files()],
        experts={name: experts[name] for name in model.expert_names if name in experts},
        uniform=inside["uniform"],
        oracle=inside["oracle"],
        seconds=round(time.time() - started, 1),
    )
    if is_main_process():
        path = save_json(Path(cfg.work_dir) / "assembly.json", payload)
        print_assembly(payload, runner.logger, path)
    # Goes into the weights that this run leaves, for the table of the stage after.
    began = {n: dict(checkpoint=e["checkpoint"], IoU=e["own"]) for n, e in experts.items()}
    runner.message_hub.update_info("codmoe_started_from", began)
    barrier()  # a process that fails first has its launcher end the one that writes
    if not payload["passed"]:
        raise ValueError(failure(payload, Path(cfg.work_dir) / "assembly.json"))
    return payload


def measure_experts(runner, model: nn.Module) -> dict[str, float]:
    """IoU of each expert of ``model``, of their uniform mixture and of the oracle, on the Runner's
    validation data: mmengine's loop over the Runner's own loader, without its hooks.

    Args:
        runner: A Runner with a validation loop.
        model: A :class:`~codmoe.models.ModelLevelMoE` on the Runner's device.
    """
    loop = runner.val_loop
    kept = runner.model, runner._hooks, model.evaluate_all_experts, model.training
    # Hooks take a validation for one of training: they log it, keep its weights, swap averages in.
    runner.model, runner._hooks, model.evaluate_all_experts = model, [], True
    try:
        evaluator = runner.build_evaluator([_routing_metric(runner.cfg)])
        metrics = ValLoop(runner, loop.dataloader, evaluator, getattr(loop, "fp16", False)).run()
    finally:
        runner.model, runner._hooks, model.evaluate_all_experts, training = kept
        model.train(training)
    return {k.removeprefix("IoU_"): float(v) for k, v in metrics.items() if k.startswith("IoU_")}


def _routing_metric(cfg: Config) -> dict[str, Any]:
    """The config's own, for it may gather over the network; no other measure is needed."""
    given = cfg.get("val_evaluator") or []
    for metric in [given] if isinstance(given, Mapping) else given:
        if isinstance(metric, Mapping) and metric.get("type") == "RoutingMetric":
            return {key: value for key, value in metric.items() if key != "prefix"}
    return dict(type="RoutingMetric")


def _of_file(
    runner,
    cfg: Config,
    model: nn.Module,
    path: Path,
    names: list[str],
    inside: Mapping[str, float],
) -> dict[str, dict[str, Any]]:
    """The experts that come from one file: measured there, unless it is the assembled model."""
    own_cfg, meta, state = stored_config(path), meta_of(path), read_weights(path)
    differs = {name: _differences(cfg, own_cfg, model, state, name) for name in names}
    if any(differs.values()):
        own = own_model(cfg if own_cfg is None else own_cfg, path, names)
        alone = measure_experts(runner, own.to(next(model.parameters()).device))
        del own
        gc.collect()
    else:
        alone = inside
    trained_by = {k: meta.get(k) for k in ("stage", "config_file", "epoch", "run_id")}
    return {
        name: dict(
            checkpoint=str(path),
            trained_by={key: value for key, value in trained_by.items() if value is not None},
            config_in_checkpoint=own_cfg is not None,
            # What the run that made the file had itself begun with, on its validation data.
            before=(meta.get("started_from") or {}).get(name),
            own=alone[name],
            assembled=inside[name],
            drop=alone[name] - inside[name],
            measured_once=alone is inside,
            differs=differs[name],
        )
        for name in names
    }


def own_model(cfg: Config, path: Path, names: list[str]) -> nn.Module:
    """The model that a head was trained in: backbone and heads of one file, built as its config
    says.

    Args:
        cfg: The config that made the file.
        path: Weights file.
        names: The experts that are wanted.

    Raises:
        ValueError: The weights do not fit that config.
    """
    cfg = Config(dict(model=cfg.model.to_dict(), data_preprocessor=cfg.get("data_preprocessor")))
    skip_pretrained(cfg)
    section = cfg.model.to_dict()
    if section.get("data_preprocessor") is None:
        section["data_preprocessor"] = cfg.data_preprocessor
    experts = section.get("experts") or DEFAULT_EXPERTS
    changes = dict(
        experts={name: experts[name] for name in names},
        # Whatever mixes them: each expert is measured alone.
        router=dict(type="UniformRouter"),
        routing_losses=None,
        num_experts=None,
        top_k=None,
        frozen=(),
    )
    model = MODELS.build({"type": "ModelLevelMoE", **section, **changes})
    load_parts(model, path, ("backbone", *(f"experts.{name}" for name in names)))
    return model


def _differences(
    cfg: Config, own: Config | None, model: nn.Module, state: Mapping[str, Tensor], name: str
) -> list[str]:
    """In what an expert's own checkpoint is not what was assembled: weights, to the last bit, or
    config.
    """
    here = model.state_dict()
    found = []
    for part in ("backbone", f"experts.{name}"):
        keys = {k for k in state.keys() | here.keys() if k.startswith(f"{part}.")}
        same = all(
            # Files in half precision are read into float32 without loss.
            k in state and k in here and torch.equal(state[k].to(here[k].dtype), here[k].cpu())
            for k in sorted(keys)
        )
        found += [] if same else [f"weights of {part}"]
    if own is not None:
        mine, theirs = _sections(cfg, name), _sections(own, name)
        found += [f"config of {key}" for key in mine if mine[key] != theirs[key]]
    return found


def _sections(cfg: Config, name: str) -> dict[str, str]:
    """What decides how one expert predicts, in a form that can be compared."""
    section = cfg.model.to_dict()
    backbone = section.get("backbone")
    if isinstance(backbone, dict):
        backbone = {k: v for k, v in backbone.items() if k not in ("pretrained", "checkpoint")}
    expert = (section.get("experts") or DEFAULT_EXPERTS).get(name)
    preprocessor = section.get("data_preprocessor") or cfg.get("data_preprocessor")
    sections = {"backbone": backbone, f"experts.{name}": expert, "data_preprocessor": preprocessor}
    return {k: json.dumps(v, sort_keys=True, default=str) for k, v in sections.items()}


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Training goes on from the random state that it would have had without the measuring."""
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])

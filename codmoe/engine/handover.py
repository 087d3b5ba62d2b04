"""The model that a stage starts with: its experts measured before the first step, and refused where
they lost by being put together.

It is measured once, on the validation data: each expert in the assembled model and, where weights
or config differ, on its own checkpoint.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, barrier, get_dist_info, is_main_process
from mmengine.runner import autocast
from torch import Tensor, nn

from codmoe.console import TextTable
from codmoe.datasets.streams import drawn_from
from codmoe.engine.checkpoints import load_parts, meta_of, read_weights, stored_config
from codmoe.engine.ddp import bare_model
from codmoe.engine.sources import Sources
from codmoe.evaluation.diversity import diversity, pairwise
from codmoe.evaluation.measures import THRESHOLD
from codmoe.evaluation.routing_metric import source_ious
from codmoe.files import save_json
from codmoe.models.build import DEFAULT_EXPERTS, skip_pretrained
from codmoe.models.moe import ModelLevelMoE
from codmoe.registry import MODELS

MAX_DROP = 0.01
"""IoU that an expert may lose by being assembled, where ``cfg.assembly`` says nothing."""
STALE = "weights of backbone"
REFIT = {
    "one file": "configs/experts/refit.py",
    "one backbone": "configs/experts/refit_one_backbone.py",
    "soup": "configs/experts/refit_soup.py",
}


def assembly_faults(cfg: Mapping[str, Any]) -> list[str]:
    """Faults of ``cfg.assembly`` = ``dict(max_drop=0.01)``, one sentence each.

    ``max_drop`` is the IoU an expert may lose by being assembled; None measures and never stops.
    ``assembly=None`` measures nothing.
    """
    settings = cfg.get("assembly", {})
    if settings is None:
        return []
    if not isinstance(settings, Mapping) or set(settings) - {"max_drop"}:
        return [f"assembly={settings!r}: give dict(max_drop=0.01), or None to measure nothing"]
    drop = settings.get("max_drop", MAX_DROP)
    number = isinstance(drop, (int, float)) and not isinstance(drop, bool)
    if drop is None or (number and 0 <= drop <= 1):
        return []
    return [f"assembly.max_drop={drop!r} is not a number in [0, 1]; one point of IoU is 0.01"]


def check_assembly(runner, sources: Sources) -> dict[str, Any] | None:
    """Measure the experts that were loaded from ``sources``, and refuse those that lost by it.

    ``runner.cfg.assembly`` says how much they may lose (:func:`assembly_faults`). Every process
    takes part; nothing is trained, and no random state is changed.

    Returns:
        What :func:`measure_experts` found in the assembled model; None where nothing is measured.
        ``<work_dir>/assembly.json`` keeps it beside what each expert was on its own checkpoint.

    Raises:
        ValueError: An expert lost more than ``max_drop``, or there is no validation data.
    """
    cfg, model = runner.cfg, bare_model(runner)
    settings, files = cfg.get("assembly", {}), sources.expert_files(model.expert_names)
    # What a mixture grows from is whole already, and its new expert has learnt nothing.
    if settings is None or not files or sources.grow:
        return None
    if runner.val_loop is None:
        raise ValueError(
            "the experts that this stage starts from cannot be measured without validation data; "
            "give val_dataloader, val_cfg and val_evaluator, or set assembly=None"
        )
    started = time.time()
    runner.logger.info(f"measuring {len(files)} expert(s) before the first step")
    inside = measure_experts(runner, model)
    experts: dict[str, dict[str, Any]] = {}
    for path in dict.fromkeys(files.values()):
        names = [name for name, file in files.items() if file == path]
        experts |= _of_file(runner, path, names, inside)
    limit = settings.get("max_drop", MAX_DROP)
    for expert in experts.values():
        expert["passed"] = limit is None or expert["drop"] <= limit
    payload = dict(
        config=str(cfg.get("config_file")),
        policy=sources.policy,
        max_drop=limit,
        passed=all(expert["passed"] for expert in experts.values()),
        images=inside["images"],
        backbone=[str(path) for path in sources.backbone_files()],
        experts={name: experts[name] for name in model.expert_names if name in experts},
        uniform=inside["IoU"]["uniform"],
        oracle=inside["IoU"]["oracle"],
        seconds=round(time.time() - started, 1),
    )
    path = Path(cfg.work_dir) / "assembly.json"
    if is_main_process():
        save_json(path, payload)
        print_assembly(payload, runner.logger, path)
    # Goes into the weights that this run leaves, for the table of the stage after.
    began = {n: dict(checkpoint=e["checkpoint"], IoU=e["own"]) for n, e in experts.items()}
    runner.message_hub.update_info("codmoe_started_from", began)
    barrier()  # a process that fails first has its launcher end the one that writes
    if not payload["passed"]:
        raise ValueError(failure(payload, path))
    return inside


@torch.no_grad()
def measure_experts(runner, model: ModelLevelMoE) -> dict[str, Any]:
    """Run every expert on every validation image, over all processes.

    Random numbers go on afterwards as if nothing had been measured.

    Args:
        runner: A Runner with a validation loop.
        model: The Runner's own, or another one on its device.

    Returns:
        ``images``, their number; ``IoU`` of each expert, of the ``mixture``, of all experts' mean
        map (``uniform``) and of the best expert of each image (``oracle``), per image, at 0.5, at
        the original resolution; ``diversity`` and its ``pairs``, how unlike the experts err: see
        :func:`codmoe.evaluation.diversity.diversity`.
    """
    loop, names = runner.val_loop, model.expert_names
    rank, world_size = get_dist_info()
    everyone, training = model.evaluate_all_experts, model.training
    model.evaluate_all_experts = True
    model.eval()
    rows: dict[int, list[float]] = {}
    seen = 0
    try:
        with drawn_from(0), autocast(enabled=getattr(loop, "fp16", False)):
            for batch in loop.dataloader:
                tables = [_figures(sample, names) for sample in model.val_step(batch)]
                for values in torch.stack(tables).tolist():
                    # With several processes the sampler repeats images at the end.
                    index = seen * world_size + rank
                    seen += 1
                    if index < len(loop.dataloader.dataset):
                        rows[index] = values
    finally:
        model.evaluate_all_experts = everyone
        model.train(training)
    merged: dict[int, list[float]] = {}
    for part in all_gather_object(rows):
        merged.update(part)
    return summary([merged[index] for index in sorted(merged)], names)


def _figures(sample: Any, names: Sequence[str]) -> Tensor:
    """IoU with the truth of each expert, their mean and the mixture; then :func:`pairwise`."""
    experts = torch.stack([sample.expert_probs[name] for name in names])
    truth = sample.gt_mask.to(experts.device)
    alike = pairwise(experts > THRESHOLD, truth.bool())
    return torch.cat([source_ious(experts, sample.pred_prob, truth).to(alike), alike.flatten()])


def summary(rows: Sequence[Sequence[float]], names: Sequence[str]) -> dict[str, Any]:
    """Means over images of what :func:`measure_experts` gathers."""
    table = np.asarray(rows, dtype=np.float64)
    count = len(names)
    experts, figures = table[:, :count], table[:, count + 2 :]
    iou = dict(zip((*names, "uniform", "mixture"), table.mean(0).tolist(), strict=False))
    iou["oracle"] = float(experts.max(1).mean())
    unlike, pairs = diversity(names, figures, float(experts.mean()))
    return dict(images=len(table), IoU=iou, diversity=unlike, pairs=pairs)


def _of_file(
    runner, path: Path, names: list[str], inside: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The experts that come from one file: measured there, unless it is the assembled model."""
    cfg, model = runner.cfg, bare_model(runner)
    own_cfg, meta, state = stored_config(path), meta_of(path), read_weights(path)
    differs = {name: _differences(cfg, own_cfg, model, state, name) for name in names}
    alone = inside
    if any(differs.values()):
        own = own_model(cfg if own_cfg is None else own_cfg, path, names)
        alone = measure_experts(runner, own.to(next(model.parameters()).device))
        del own
        gc.collect()
    trained_by = {k: meta.get(k) for k in ("stage", "config_file", "epoch", "run_id")}
    return {
        name: dict(
            checkpoint=str(path),
            trained_by={key: value for key, value in trained_by.items() if value is not None},
            config_in_checkpoint=own_cfg is not None,
            # What the run that made the file had itself begun with, on its validation data.
            before=(meta.get("started_from") or {}).get(name),
            own=alone["IoU"][name],
            assembled=inside["IoU"][name],
            drop=alone["IoU"][name] - inside["IoU"][name],
            measured_once=alone is inside,
            differs=differs[name],
        )
        for name in names
    }


def own_model(cfg: Config, path: Path, names: Sequence[str]) -> ModelLevelMoE:
    """The model that heads were trained in: backbone and the named heads of one file, as the config
    that made it says.

    Raises:
        ValueError: The weights do not fit that config.
    """
    section = cfg.model.to_dict()
    skip_pretrained(section)
    experts = section.get("experts") or DEFAULT_EXPERTS
    section |= dict(
        data_preprocessor=section.get("data_preprocessor") or cfg.get("data_preprocessor"),
        experts={name: experts[name] for name in names},
        # Whatever mixes them: each expert is measured alone.
        router=dict(type="UniformRouter"),
        routing_losses=None,
        num_experts=None,
        top_k=None,
        frozen=(),
    )
    model = MODELS.build({"type": "ModelLevelMoE", **section})
    load_parts(model, path, ("backbone", *(f"experts.{name}" for name in names)))
    return model


def _differences(
    cfg: Config, own: Config | None, model: nn.Module, state: Mapping[str, Tensor], name: str
) -> list[str]:
    """Parts in which an expert's own checkpoint is not the assembled model: weights, to the last
    bit, or config.
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
    """The sections of a config that decide how one expert predicts, as text to compare."""
    section = cfg.model.to_dict()
    backbone = section.get("backbone")
    if isinstance(backbone, dict):
        backbone = {k: v for k, v in backbone.items() if k not in ("pretrained", "checkpoint")}
    expert = dict((section.get("experts") or DEFAULT_EXPERTS).get(name) or {})
    kind = MODELS.get(expert["type"]) if isinstance(expert.get("type"), str) else None
    for key in ("learns_from", *getattr(kind, "loss_arguments", ())):
        expert.pop(key, None)
    preprocessor = section.get("data_preprocessor") or cfg.get("data_preprocessor")
    sections = {"backbone": backbone, f"experts.{name}": expert, "data_preprocessor": preprocessor}
    return {k: json.dumps(v, sort_keys=True, default=str) for k, v in sections.items()}


def print_assembly(payload: Mapping[str, Any], logger, path: Path) -> None:
    """Log the payload of ``assembly.json`` as a table in the log file, and as a line."""
    experts = payload["experts"]
    before = any(expert["before"] for expert in experts.values())
    names = ["expert", *(["before that run"] if before else []), "own checkpoint"]
    rows = []
    for name, expert in experts.items():
        figures = (f"{expert[key]:.4f}" for key in ("own", "assembled"))
        row = [expert["checkpoint"], *figures, f"{expert['drop']:+.4f}", _note(expert)]
        rows.append([name, *([_before(expert)] if before else []), *row])
    title = f"experts before the first step, validation IoU over {payload['images']} images"
    heads = [*names, "IoU there", "assembled", "drop", ""]
    table = TextTable(heads, rows, (*range(len(names)), -1), title)
    backbone = ", ".join(payload["backbone"]) or "not loaded"
    kind = "average of " if len(payload["backbone"]) > 1 else ""
    logger.info(
        f"assembled ({payload['policy']}), backbone: {kind}{backbone}\n{table.text()}\n{path}",
        extra=dict(terminal=False),
    )
    worst = max(experts, key=lambda name: experts[name]["drop"])
    shown = [f"{name} {expert['assembled']:.4f}" for name, expert in experts.items()]
    logger.info(
        f"IoU of the experts before the first step: {', '.join(shown)}; against their own "
        f"checkpoints {worst} lost most, {experts[worst]['drop']:+.4f} ({path.name})"
    )


def _before(expert: Mapping[str, Any]) -> str:
    start = expert["before"]
    return f"{start['IoU']:.4f} {Path(start['checkpoint']).name}" if start else "-"


def _note(expert: Mapping[str, Any]) -> str:
    if expert["measured_once"]:
        note = "measured once: bit-identical to its checkpoint"
        known = expert["config_in_checkpoint"]
        return note if known else f"{note}, which holds no config"
    return "differs: " + ", ".join(expert["differs"])


def failure(payload: Mapping[str, Any], path: Path) -> str:
    """The error of an assembled model: each expert that lost too much, why, and the way out."""
    files = payload["backbone"]
    here = "was not loaded from any run"
    if files:
        here = f"is {'that' if len(files) == 1 else 'the average'} of {', '.join(files)}"
    failed = {name: e for name, e in payload["experts"].items() if not e["passed"]}
    lines = [
        f"expert {name!r} has IoU {expert['own']:.4f} on its own checkpoint and "
        f"{expert['assembled']:.4f} in the assembled model, a drop of {expert['drop']:.4f} where "
        f"assembly.max_drop={payload['max_drop']} is allowed: {_cause(expert, here)}"
        for name, expert in failed.items()
    ]
    stale = any(STALE in expert["differs"] for expert in failed.values())
    fix = f" {_fix(payload)}" if stale else ""
    return "\n".join([*lines, f"No step was made.{fix} The table: {path}"])


def _fix(payload: Mapping[str, Any]) -> str:
    if not payload["backbone"]:
        one_file = payload["policy"] == "one file"
        key = "parts=('backbone', 'experts')" if one_file else "backbone='FILE.pth'"
        return f"Load the backbone that belongs to the heads: init_from.{key}."
    return (
        "Start from the joint run (init_from=dict(file='experts_joint_best.pth', parts=('backbone',"
        " 'experts'))), or refit the heads on this backbone first "
        f"({REFIT[payload['policy']]}) and start from what that leaves."
    )


def _cause(expert: Mapping[str, Any], here: str) -> str:
    by = expert["trained_by"]
    forms = dict(stage="{}", config_file="{}", epoch="epoch {}", run_id="run {:.8}")
    run = [
        form.format(str(by[key])) for key, form in forms.items() if by.get(key) not in (None, "")
    ]
    trained = expert["checkpoint"] + (f" ({', '.join(run)})" if run else "")
    if STALE in expert["differs"]:
        return f"its head was trained on the backbone of {trained}, and the backbone here {here}"
    return (
        f"its head and backbone are those of {trained}, but the {', '.join(expert['differs'])} "
        "differs here; make both configs agree"
    )

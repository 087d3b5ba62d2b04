"""The weights that a stage starts from: named, loaded, put together and measured.

A stage starts from one file (the joint run, the stage before), or from a backbone and heads of
several runs. What was put together is measured once before the first step, on the validation data:
each expert in the assembled model and, where weights or config differ, on its own checkpoint.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
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
from codmoe.engine.checkpoints import load_parts, load_state, meta_of, read_weights, stored_config
from codmoe.engine.ddp import bare_model
from codmoe.evaluation.diversity import diversity, pairwise
from codmoe.evaluation.measures import THRESHOLD
from codmoe.evaluation.routing_metric import ious_at
from codmoe.files import save_json
from codmoe.messages import suggest
from codmoe.models.build import DEFAULT_EXPERTS, skip_pretrained
from codmoe.models.moe import ModelLevelMoE
from codmoe.registry import MODELS, fits, value_faults
from codmoe.shipped import is_shipped, shipped_weights

MAX_DROP = 0.01
"""IoU that an expert may lose by being assembled, where ``cfg.assembly`` says nothing."""
STALE = "weights of backbone"
REFIT = {
    "one file": "configs/experts/refit.py",
    "one backbone": "configs/experts/refit_one_backbone.py",
    "soup": "configs/experts/refit_soup.py",
}


@dataclass(frozen=True)
class Sources:
    """The files behind ``cfg.init_from``, under its keys.

    Args:
        file: One file for all ``parts``, or None.
        parts: Parts that are loaded from ``file``; None for all.
        backbone: Files of the backbone; several are averaged. Empty if it is not loaded.
        experts: File of each expert's head; empty with ``file``, or if the heads start anew.
        command: What makes the files, named in errors.
        grow: Whether the model has an expert that ``file`` has not: see :func:`grown`.
    """

    file: Path | None = None
    parts: tuple[str, ...] | None = None
    backbone: tuple[Path, ...] = ()
    experts: Mapping[str, Path] = field(default_factory=dict)
    command: str | None = None
    grow: bool = False

    @property
    def paths(self) -> list[Path]:
        """Every file once."""
        single = [] if self.file is None else [self.file]
        return list(dict.fromkeys([*single, *self.backbone, *self.experts.values()]))

    @property
    def policy(self) -> str:
        """``"one file"`` (the joint run, or the stage before), ``"one backbone"`` or ``"soup"``."""
        if self.file is not None:
            return "one file"
        return "soup" if len(self.backbone) > 1 else "one backbone"

    def expert_files(self, names: Iterable[str]) -> dict[str, Path]:
        """The file of each of these experts whose head is loaded."""
        if self.file is None:
            return {name: self.experts[name] for name in names if name in self.experts}
        loaded = self.parts is None or "experts" in self.parts
        return dict.fromkeys(names, self.file) if loaded else {}

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
        experts={name: _path(cfg, file) for name, file in experts.items() if file is not None},
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
        faults += _without_file(needed, [n for n, file in experts.items() if file is not None])
    return faults


def _without_file(needed: Iterable[str], given: Sequence[str]) -> list[str]:
    missing = [name for name in needed if name not in given]
    if not missing:
        return []
    return [
        f"init_from.experts names no file for {', '.join(missing)}; it has {', '.join(given)}: add "
        f"{missing[0]}='expert_{missing[0]}_best.pth', or model.experts.{missing[0]}=None"
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


def hand_over(runner, sources: Sources) -> dict[str, Any] | None:
    """Load the weights that a stage starts from into its Runner, and measure what that made.

    Returns:
        See :func:`check_assembly`.

    Raises:
        FileNotFoundError, ValueError: See :func:`load_sources` and :func:`check_assembly`.
    """
    for line in load_sources(bare_model(runner), sources):
        runner.logger.info(line)
    return check_assembly(runner, sources)


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
        keys = load_parts(model, sources.file, sources.parts, sources.command)
        return [f"loaded {len(keys)} tensors from {sources.file}"]
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
    return lines


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

    Args:
        runner: The Runner, its model loaded.
        sources: Where its weights are from.

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
    mixture = sample.pred_prob[None].to(experts)
    maps = torch.cat([experts, experts.mean(0, keepdim=True), mixture])
    truth = sample.gt_mask.to(maps.device)
    alike = pairwise(experts > THRESHOLD, truth.bool())
    return torch.cat([ious_at(maps, truth).to(alike), alike.flatten()])


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
    """The model that heads were trained in: backbone and heads of one file, as its config says.

    Args:
        cfg: The config that made the file.
        path: Weights file.
        names: The experts that are wanted.

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

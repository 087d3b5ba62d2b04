"""What joint training made of the experts: how good each is, and how unlike each other they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, barrier, get_dist_info, is_main_process
from mmengine.hooks import Hook
from torch import Tensor

from codmoe.datasets.views import drawn_from
from codmoe.engine.checkpoints import load_parts
from codmoe.engine.hooks.progress import BestWeightsHook, bare_model
from codmoe.evaluation.measures.per_image import THRESHOLD
from codmoe.evaluation.routing_metric import ious_at
from codmoe.evaluation.tables import save_json
from codmoe.registry import HOOKS

BEFORE, AFTER = "experts_before.json", "experts_after.json"


@HOOKS.register_module()
class ExpertsAfterHook(Hook):
    """Measures the experts on the validation images before the first step and, with the weights
    that are kept, after the last.

    Leaves ``<work_dir>/experts_before.json``, which a resumed run goes on from, and
    ``experts_after.json`` with both and their difference: IoU of each expert and of the mixture
    (per image, at 0.5, original resolution), and how unlike the experts are: the IoU of each two
    experts' masks and the correlation of their IoUs over the images, averaged over pairs. Experts
    that grow alike leave a router nothing to choose from.

    Args:
        max_drop: Loss of IoU of an expert from which the log warns.
    """

    # After the best weights are written, before caches are cleared.
    priority = "LOW"

    def __init__(self, max_drop: float = 0.01):
        self.max_drop = max_drop
        self._before: dict[str, Any] | None = None

    def before_train(self, runner) -> None:
        if getattr(runner, "_val_loop", None) is None:
            return
        path = Path(runner.work_dir) / BEFORE
        if runner.iter > 0:
            self._before = json.loads(path.read_text()) if path.is_file() else None
            if self._before is None:
                runner.logger.warning(
                    f"{path} does not exist: what the experts were before training is not known"
                )
            return
        self._before = measure_experts(runner)
        if is_main_process():
            save_json(path, self._before)

    def after_train(self, runner) -> None:
        if getattr(runner, "_val_loop", None) is None or len(bare_model(runner).experts) < 2:
            return
        model = bare_model(runner)
        best = next((h for h in runner.hooks if isinstance(h, BestWeightsHook)), None)
        earlier = None
        if best is not None:
            barrier()  # it is the main process that wrote it
            earlier = {k: v.detach().clone() for k, v in model.state_dict().items()}
            load_parts(model, best.path)
        try:
            after = measure_experts(runner)
        finally:
            if earlier is not None:
                model.load_state_dict(earlier)
        if not is_main_process():
            return
        payload = dict(before=self._before, after=after)
        if self._before is not None:
            payload["change"] = {
                key: {name: after[key][name] - value for name, value in self._before[key].items()}
                for key in ("IoU", "diversity")
            }
        save_json(Path(runner.work_dir) / AFTER, payload)
        runner.logger.info("\n".join(table(self._before, after)))
        for name, change in payload.get("change", {}).get("IoU", {}).items():
            if change < -self.max_drop:
                runner.logger.warning(
                    f"{name} lost {-change:.4f} IoU in this stage: raise model.expert_loss_weight, "
                    "lower optim_wrapper.optimizer.lr, or train with train_dispatch='dense'"
                )


@torch.no_grad()
def measure_experts(runner) -> dict[str, Any]:
    """Every expert on every validation image, over all processes.

    Returns:
        ``images``, their number; ``IoU`` by expert, with ``mixture`` and ``oracle``;
        ``diversity`` with ``pairwise_iou`` and ``error_correlation``, means over pairs; and
        ``pairs`` of both.
    """
    model, loader = bare_model(runner), runner.val_dataloader
    names = model.expert_names
    rank, world_size = get_dist_info()
    everyone, training = model.evaluate_all_experts, model.training
    model.evaluate_all_experts = True
    model.eval()
    rows: dict[int, list[float]] = {}
    seen = 0
    try:
        with drawn_from(0):  # a run that measures goes on with the random numbers of one that not
            for batch in loader:
                tables = [_figures(s, names) for s in model.val_step(batch)]
                for values in torch.stack(tables).tolist():
                    # With several processes the sampler repeats images at the end.
                    index = seen * world_size + rank
                    seen += 1
                    if index < len(loader.dataset):
                        rows[index] = values
    finally:
        model.evaluate_all_experts = everyone
        model.train(training)
    merged: dict[int, list[float]] = {}
    for part in all_gather_object(rows):
        merged.update(part)
    return summary([merged[index] for index in sorted(merged)], names)


def _figures(sample: Any, names: Sequence[str]) -> Tensor:
    """IoU of each expert and of the mixture with the truth, and of each two experts' masks."""
    experts = torch.stack([sample.expert_probs[name] for name in names])
    maps = torch.cat([experts, sample.pred_prob[None].to(experts)])
    found = [ious_at(maps, sample.gt_mask.to(maps.device))]
    for first in range(len(names) - 1):
        found.append(ious_at(experts[first + 1 :], experts[first] > THRESHOLD))
    return torch.cat(found)


def summary(rows: Sequence[Sequence[float]], names: Sequence[str]) -> dict[str, Any]:
    """Means over images of what :func:`measure_experts` gathers."""
    table = np.asarray(rows, dtype=np.float64)
    count = len(names)
    experts, alike = table[:, :count], table[:, count + 1 :].mean(0)
    iou = dict(zip(names, experts.mean(0).tolist(), strict=True))
    iou.update(mixture=float(table[:, count].mean()), oracle=float(experts.max(1).mean()))
    pairs = [f"{a}-{b}" for a, b in combinations(names, 2)]
    correlations = [_correlation(*experts[:, [i, j]].T) for i, j in combinations(range(count), 2)]
    return dict(
        images=len(table),
        IoU=iou,
        diversity=dict(
            pairwise_iou=float(alike.mean()), error_correlation=float(np.mean(correlations))
        )
        if pairs
        else {},
        pairs=dict(
            pairwise_iou=dict(zip(pairs, alike.tolist(), strict=True)),
            error_correlation=dict(zip(pairs, correlations, strict=True)),
        ),
    )


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one of them is the same for all images."""
    if a.std() < 1e-12 or b.std() < 1e-12:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def table(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> list[str]:
    """Lines for the log: each figure before the stage, after it, and the change."""
    lines = [f"experts on {after['images']:,} validation images, with the weights that are kept:"]
    lines.append(f"  {'':18}  before   after   change")
    shown = [(f"IoU {name}", "IoU", name) for name in after["IoU"]]
    shown += [(name.replace("_", " "), "diversity", name) for name in after["diversity"]]
    for title, group, name in shown:
        value = after[group][name]
        earlier = None if before is None else before[group].get(name)
        rest = "" if earlier is None else f"  {value - earlier:+.4f}"
        first = "     -" if earlier is None else f"{earlier:.4f}"
        lines.append(f"  {title:18}  {first}  {value:.4f}{rest}")
    return lines

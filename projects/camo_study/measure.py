"""Measures how alike trained rows err and what their mean is worth:
python projects/camo_study/measure.py plain_448 plain_560 joint --part test --json alike.json

A row is a config of this project; its weights are those that it leaves. Every expert of every row
is a source of its own, ``joint/sinet``; so is the mixture of a row, ``joint``. ``--mean`` adds the
mean of some sources' probabilities: ``--mean plain_448+plain_560``.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path

import torch

from codmoe.engine.config import load_config
from codmoe.engine.hooks.progress import bare_model
from codmoe.engine.launch import prepare, test_runner
from codmoe.evaluation.cod_metric import CODMetric
from codmoe.evaluation.conventions import CONVENTIONS

CONFIGS = Path(__file__).parent / "configs"


def predict(row: str, part: str, maps: dict, masks: dict, work_dir: str, flip: bool) -> None:
    """Adds the row's maps to ``maps[source][stem]``, in 255ths of a probability, on the CPU."""
    name, _, weights = row.partition("=")
    cfg = load_config(CONFIGS / f"{name}.py")
    if part == "val":
        cfg.test_dataloader = cfg.val_dataloader
    cfg.model.evaluate_all_experts = True
    prepare(cfg, work_dir=f"{work_dir}/measure_{name}_{part}_{int(flip)}")
    weights = weights or f"{cfg.checkpoint_dir}/{cfg.default_hooks.best.name}_best.pth"
    runner = test_runner(cfg, weights)
    model = bare_model(runner).eval()
    alone = len(model.experts) == 1
    for batch in runner.test_dataloader:
        views = []
        for mirrored in (False, True) if flip else (False,):
            inputs = batch["inputs"].flip(-1) if mirrored else batch["inputs"]
            again = dict(batch, inputs=inputs)
            again["data_samples"] = [sample.clone() for sample in batch["data_samples"]]
            with torch.no_grad():
                samples = model.test_step(again)
            views.append([_maps(name, s, alone, mirrored) for s in samples])
        for sample, *found in zip(samples, *views, strict=True):
            masks[sample.stem] = sample.gt_mask.cpu()
            for source in found[0]:
                prob = sum(view[source].float() for view in found) / len(found)
                small = (prob * 255).round().to(torch.uint8).cpu()
                maps.setdefault(source, {})[sample.stem] = small


def _maps(name: str, sample, alone: bool, mirrored: bool) -> dict[str, torch.Tensor]:
    found = {name: sample.pred_prob}
    if not alone:
        found |= {f"{name}/{k}": v for k, v in sample.expert_probs.items()}
    return {k: v.flip(-1) for k, v in found.items()} if mirrored else found


def add_means(maps: dict, means: list[str]) -> None:
    """Adds the mean of the sources that ``a+b`` names."""
    for mean in means:
        members = [maps[name] for name in mean.split("+")]
        maps[mean] = {
            stem: torch.stack([m[stem].float() for m in members]).mean(0).round().to(torch.uint8)
            for stem in members[0]
        }


def score(maps: dict, masks: dict, device: str) -> dict:
    """``table[source]`` with all measures and per-image values."""
    table = {}
    for source, each in maps.items():
        metric = CODMetric()
        for stem, small in each.items():
            sample = dict(stem=stem, dataset="CAMO", gt_mask=masks[stem].to(device))
            sample["pred_prob"] = small.to(device).float() / 255
            metric.process(None, [sample])
        metric.evaluate(len(each))
        table[source] = metric.table["CAMO"]["mixture"]
        table[source].pop("curves", None)
    return table


def alike(maps: dict, masks: dict, sources: list[str], device: str) -> dict:
    """IoU of each two sources' masks and correlation of their pixel errors, means over images."""
    pairs = {pair: [] for pair in combinations(sources, 2)}
    for stem, mask in masks.items():
        truth = mask.to(device) > 0
        masked = torch.stack([maps[s][stem].to(device) > 127 for s in sources]).flatten(1)
        wrong = (masked != truth.flatten()).float()
        centred = wrong - wrong.mean(1, keepdim=True)
        norm = centred.norm(dim=1).clamp(min=1e-6)
        correlation = centred @ centred.T / norm[:, None] / norm[None]
        inside = masked.float() @ masked.float().T
        area = masked.float().sum(1)
        union = area[:, None] + area[None] - inside
        iou = torch.where(union > 0, inside / union.clamp(min=1), torch.ones_like(union))
        iou, correlation = iou.tolist(), correlation.tolist()
        for i, j in combinations(range(len(sources)), 2):
            pairs[sources[i], sources[j]].append((iou[i][j], correlation[i][j]))
    return {
        "+".join(pair): dict(
            mask_iou=sum(v[0] for v in values) / len(values),
            error_correlation=sum(v[1] for v in values) / len(values),
        )
        for pair, values in pairs.items()
    }


def summary(table: dict, pairs: dict, sources: list[str]) -> dict:
    """Disagreement over error, error correlation and oracle of some sources."""
    own = [pairs["+".join(pair)] for pair in combinations(sources, 2)]
    iou = [table[s]["IoU"] for s in sources]
    images = [table[s]["images"] for s in sources]
    best = [max(part[stem]["IoU"] for part in images) for stem in images[0]]
    pairwise = sum(p["mask_iou"] for p in own) / len(own)
    return dict(
        sources=sources,
        mean_iou=sum(iou) / len(iou),
        pairwise_mask_iou=pairwise,
        error_correlation=sum(p["error_correlation"] for p in own) / len(own),
        disagreement_over_error=(1 - pairwise) / (1 - sum(iou) / len(iou)),
        oracle=sum(best) / len(best),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="+", help="config names, or NAME=WEIGHTS")
    parser.add_argument("--part", choices=("val", "test"), default="test")
    parser.add_argument("--mean", nargs="*", default=[], help="sources with + between them")
    parser.add_argument("--flip", action="store_true", help="mean with the mirrored image's maps")
    parser.add_argument("--json", required=True)
    parser.add_argument("--work-dir", default="work_dirs/camo")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    maps: dict = {}
    masks: dict = {}
    done = []
    for row in args.rows:
        try:
            predict(row, args.part, maps, masks, args.work_dir, args.flip)
            done.append(row.partition("=")[0])
        except FileNotFoundError as error:
            print(f"{row}: left out, {error}")
    experts = {row: [s for s in maps if s.startswith(f"{row}/")] or [row] for row in done}
    lone = [row for row in done if experts[row] == [row]]
    for row in done:
        if len(experts[row]) > 1:
            add_means(maps, ["+".join(experts[row])])
    if len(lone) > 1:
        add_means(
            maps, ["+".join(c) for n in range(2, len(lone) + 1) for c in combinations(lone, n)]
        )
    for mean in args.mean:
        if all(source in maps for source in mean.split("+")):
            add_means(maps, [mean])
    sources = [s for row in done for s in experts[row]]
    pairs = alike(maps, masks, sources, device)
    table = score(maps, masks, device)
    groups = {row: summary(table, pairs, experts[row]) for row in done if len(experts[row]) > 1}
    if len(lone) > 1:
        groups["lone"] = summary(table, pairs, lone)
    for name, group in groups.items():
        print(name, json.dumps({k: v for k, v in group.items() if k != "sources"}))
    for source, row in table.items():
        print(
            *(f"{row[metric]:.4f}" for metric in ("IoU", "Sm", "wFm", "MAE")),
            f" {source}",
        )
    payload = dict(part=args.part, flip=args.flip, conventions=CONVENTIONS, table=dict(CAMO=table))
    payload |= dict(groups=groups, pairs=pairs)
    Path(args.json).parent.mkdir(parents=True, exist_ok=True)
    Path(args.json).write_text(json.dumps(payload))


if __name__ == "__main__":
    main()

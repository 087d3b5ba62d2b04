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
from codmoe.engine.ddp import bare_model
from codmoe.engine.launch import prepare
from codmoe.engine.testing import test_runner
from codmoe.evaluation.cod_metric import CODMetric
from codmoe.evaluation.conventions import CONVENTIONS
from codmoe.evaluation.diversity import diversity, pairwise

CONFIGS = Path(__file__).parent / "configs"
BATCH = 16


def predict(row: str, part: str, maps: dict, masks: dict, work_dir: str, flip: bool) -> None:
    """Adds the row's maps to ``maps[source][stem]``, in 255ths of a probability, on the CPU."""
    name, _, source = row.partition("=")
    config, _, weights = (source or name).partition(":")
    cfg = load_config(CONFIGS / f"{config}.py")
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
            inputs = [x.flip(-1) if mirrored else x for x in batch["inputs"]]
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


def score(source: str, maps: dict, masks: dict, device: str, full: bool) -> dict:
    """A row of the table, with per-image values; all measures, or IoU, Dice and MAE.

    Args:
        source: One of ``maps``, or several with ``+`` between them for the mean of theirs.
        maps: ``{source: {stem: map}}``.
        masks: ``{stem: truth}``.
        device: Where it is computed.
        full: Whether all measures are wanted.
    """
    members = [maps[name] for name in source.split("+")]
    metric, stems = CODMetric(full=full), list(members[0])
    for start in range(0, len(stems), BATCH):
        samples = []
        for stem in stems[start : start + BATCH]:
            prob = sum(member[stem].to(device).float() for member in members)
            prob = prob / (255 * len(members))
            gt_mask = masks[stem].to(device)
            samples.append(dict(stem=stem, dataset="CAMO", gt_mask=gt_mask, pred_prob=prob))
        metric.process(None, samples)
    metric.evaluate(len(stems))
    row = metric.table["CAMO"]["mixture"]
    row.pop("curves", None)
    return row


def alike(maps: dict, masks: dict, sources: list[str], device: str) -> dict:
    """IoU of each two sources' masks and correlation of their pixel errors, means over images."""
    total = torch.zeros(2, len(sources) * (len(sources) - 1) // 2, dtype=torch.float64)
    for stem, mask in masks.items():
        masked = torch.stack([maps[s][stem].to(device) > 127 for s in sources])
        total += pairwise(masked, mask.to(device) > 0).cpu()
    return {
        "+".join(pair): dict(mask_iou=iou, error_correlation=correlation)
        for pair, (iou, correlation) in zip(
            combinations(sources, 2), (total / len(masks)).T.tolist(), strict=True
        )
    }


def summary(table: dict, pairs: dict, sources: list[str]) -> dict:
    """Disagreement over error, error correlation and oracle of some sources."""
    own = [pairs["+".join(pair)] for pair in combinations(sources, 2)]
    figures = [[p[key] for p in own] for key in ("mask_iou", "error_correlation")]
    mean_iou = sum(table[s]["IoU"] for s in sources) / len(sources)
    found, _ = diversity(sources, figures, mean_iou)
    images = [table[s]["images"] for s in sources]
    best = [max(part[stem]["IoU"] for part in images) for stem in images[0]]
    return dict(
        sources=sources,
        mean_iou=mean_iou,
        pairwise_mask_iou=found.pop("pairwise_iou"),
        **found,
        oracle=sum(best) / len(best),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="+", help="config names, or NAME=CONFIG:WEIGHTS")
    parser.add_argument("--part", choices=("val", "test"), default="test")
    parser.add_argument("--mean", nargs="*", default=[], help="sources with + between them")
    parser.add_argument("--subsets", nargs="*", default=[], help="rows: means of some experts, too")
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
    groups = {row: names for row, names in experts.items() if len(names) > 1}
    lone = [row for row in done if row not in groups]
    if len(lone) > 1:
        groups["lone"] = lone
    means = ["+".join(names) for names in groups.values()]
    for names in (lone, *(groups[row] for row in args.subsets if row in groups)):
        means += ["+".join(c) for n in range(2, len(names)) for c in combinations(names, n)]
    means += [mean for mean in args.mean if all(name in maps for name in mean.split("+"))]
    pairs = alike(maps, masks, [s for row in done for s in experts[row]], device)
    table: dict = {}
    payload = dict(part=args.part, flip=args.flip, conventions=CONVENTIONS, table=dict(CAMO=table))
    payload |= dict(groups={}, pairs=pairs)
    Path(args.json).parent.mkdir(parents=True, exist_ok=True)
    for source in dict.fromkeys([*maps, *means]):
        # All measures of an expert alone are in the row's own test.
        full = source in done or source in args.mean or source in map("+".join, groups.values())
        table[source] = score(source, maps, masks, device, full)
        print(f"{table[source]['IoU']:.4f} {table[source]['MAE']:.4f}  {source}", flush=True)
        for row, names in groups.items():
            if row not in payload["groups"] and all(name in table for name in names):
                payload["groups"][row] = summary(table, pairs, names)
        Path(args.json).write_text(json.dumps(payload))  # whatever ends this, this much stays
    for name, group in payload["groups"].items():
        print(name, json.dumps({k: v for k, v in group.items() if k != "sources"}))


if __name__ == "__main__":
    main()

"""Measures the small ensemble: what falls back and how far, how honest it is, each data set."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from codmoe import create_model
from codmoe.engine.checkpoints import read_meta, save_weights
from codmoe.engine.config import load_config
from codmoe.evaluation.measures import image_measures, iou_and_dice, uniform_probability
from codmoe.evaluation.reliability import (
    expected_calibration_error,
    fit_calibration,
    reliability,
)
from codmoe.models.combiners import mix_probabilities
from codmoe.models.moe import ModelLevelMoE
from codmoe.registry import DATASETS
from codmoe.structures import CODDataSample

CONFIG = "small/stage3"
# Of the folder of all data.
RESEARCH_SETS = dict(
    CAMO="camo/test",
    DUTS="duts/test",
    Kvasir="polyp/TestDataset/Kvasir",
    ClinicDB="polyp/TestDataset/CVC-ClinicDB",
)
THRESHOLDS = tuple(t / 20 for t in range(1, 20))
SHARPNESS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
ROUTING = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Temperatures of the router's logits."""
TIE = 0.002  # of IoU: the simpler one is taken


def data_set(
    name: str, root: str | Path | None = None, *, config: str = CONFIG, size: int | None = None
) -> Any:
    """``val`` or ``test`` of a config (a group), or a research-only set below ``root``; as a
    network of this size sees it.
    """
    cfg = load_config(config)
    section = cfg[f"{'val' if name == 'val' else 'test'}_dataloader"].dataset.to_dict()
    for each in section["datasets"].values() if size else ():
        for step in each["pipeline"]:
            step.update(dict(scale=(size, size)) if step["type"] == "Resize" else {})
    if name in RESEARCH_SETS:
        folder, pipeline = Path(str(root)) / RESEARCH_SETS[name], None
        for each in section["datasets"].values():
            pipeline = pipeline or each["pipeline"]
        section = dict(
            type="DatasetGroup",
            datasets={
                name: dict(
                    type="CODDataset",
                    data_root=str(folder),
                    image_dir="images",
                    mask_dir="masks",
                    pipeline=pipeline,
                )
            },
        )
    return DATASETS.build(section)


def samples_of(dataset: Any) -> Iterator[tuple[Tensor, CODDataSample]]:
    """Network input (3, H, W) and annotations of each image."""
    for index in range(len(dataset)):
        packed = dataset[index]
        yield packed["inputs"], packed["data_samples"]


def device_of(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


@torch.inference_mode()
def collect(model: ModelLevelMoE, dataset: Any) -> list[dict[str, Any]]:
    """Of each image: the experts' logits at half size, the router's as they are, how far the image
    is from known ones (distance over edge), the truth, and the data set.

    Raises:
        ValueError: The router knows no images.
    """
    familiarity = model.router.familiarity
    if not familiarity.edge > 0:
        raise ValueError(
            "the router knows no images; train it with default_hooks.familiarity="
            "dict(type='FamiliarityHook')"
        )
    sharpness, familiarity.sharpness, familiarity.kept = familiarity.sharpness, 0.0, []
    found = []
    for image, sample in samples_of(dataset):
        ready = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]))
        inputs = ready["inputs"].to(device_of(model))
        _, decision, outputs = model.mixture(inputs, dense=True)
        size = [side // 2 for side in inputs.shape[-2:]]
        maps = [F.interpolate(outputs[n].logits.float(), size, mode="bilinear") for n in outputs]
        truth = F.interpolate(sample.gt_mask[None, None].float(), size, mode="nearest")
        distance = familiarity.distance(familiarity.kept.pop()) / familiarity.edge
        found.append(
            dict(
                maps=torch.cat(maps, dim=1).half().cpu(),
                logits=decision.logits.cpu(),
                distance=float(distance),
                truth=truth[0, 0].bool(),
                dataset=sample.dataset,
            )
        )
    familiarity.sharpness, familiarity.kept = sharpness, None
    return found


def mixed(record: Mapping[str, Any], sharpness: float, top_k: int) -> Tensor:
    """Logits (h, w) of the mixture that these settings make of one image."""
    excess = max(record["distance"] - 1, 0.0)
    logits = record["logits"] * torch.tensor(-sharpness * excess).exp()
    chosen = logits.topk(top_k, dim=-1)
    weights = torch.full_like(logits, -torch.inf).scatter(
        1, chosen.indices, chosen.values.log_softmax(-1)
    )
    return mix_probabilities(record["maps"].float(), weights[..., None, None])[0, 0]


def mean_iou(records: Sequence[Mapping[str, Any]], sharpness: float, top_k: int) -> float:
    """IoU at 0.5, the mean of the data sets' means."""
    probs = [mixed(record, sharpness, top_k).sigmoid() for record in records]
    return _iou_at(records, probs, 0.5)


def _iou_at(
    records: Sequence[Mapping[str, Any]], probs: Sequence[Tensor], threshold: float
) -> float:
    by_set: dict[str, list[float]] = {}
    for record, prob in zip(records, probs, strict=True):
        iou = iou_and_dice(prob, record["truth"], threshold)[0]
        by_set.setdefault(record["dataset"], []).append(iou)
    return sum(sum(ious) / len(ious) for ious in by_set.values()) / len(by_set)


def choose(held: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How sharply to fall back, how many experts to ask and how evenly, and the calibration; on
    validation.

    Args:
        held: Validation images of a domain that the router of these records never saw.
        known: Validation images by the router that ships.

    Returns:
        ``fallback``, ``top_k``, ``routing`` (what the router's logits are divided by),
        ``temperature``, ``offset``, the ``threshold`` of masks under these and, for the card,
        ``tried``.
    """
    experts = known[0]["logits"].shape[1]
    off = {s: mean_iou(held, s, experts) for s in SHARPNESS}
    uniform = mean_iou([dict(r, logits=r["logits"] * 0) for r in held], 0.0, experts)
    # The gentlest of those that are level with the best.
    fallback = min(s for s, iou in off.items() if iou >= max(off.values()) - TIE)
    chosen = choose_mixture(known, fallback)
    chosen["tried"] |= dict(
        off_domain={f"fallback {s:g}": iou for s, iou in off.items()} | dict(uniform=uniform),
        off_domain_far=sum(r["distance"] > 1 for r in held) / len(held),
    )
    return dict(fallback=fallback, **chosen)


def choose_mixture(known: Sequence[Mapping[str, Any]], fallback: float) -> dict[str, Any]:
    """What :func:`choose` chooses once ``fallback`` is."""
    experts = known[0]["logits"].shape[1]
    at_home = {
        (k, t): mean_iou([dict(r, logits=r["logits"] / t) for r in known], fallback, k)
        for k in range(2, experts + 1)
        for t in ROUTING
    }
    top_k = min(k for (k, _), iou in at_home.items() if iou >= max(at_home.values()) - TIE)
    routing = max(ROUTING, key=lambda t: at_home[top_k, t])
    records = [dict(record, logits=record["logits"] / routing) for record in known]
    logits = [mixed(record, fallback, top_k) for record in records]
    temperature, offset = fit_calibration(logits, [r["truth"] for r in known])
    probs = [(each / temperature + offset).sigmoid() for each in logits]
    curve = {t: _iou_at(known, probs, t) for t in THRESHOLDS}
    level = [t for t, iou in curve.items() if iou >= max(curve.values()) - TIE]
    tried = dict(
        at_home={f"top {k}, at {t:g}": iou for (k, t), iou in at_home.items()},
        at_home_far=sum(r["distance"] > 1 for r in known) / len(known),
    )
    return dict(
        top_k=top_k,
        routing=routing,
        temperature=temperature,
        offset=offset,
        threshold=min(level, key=lambda t: abs(t - 0.5)),
        tried=tried,
    )


def settle(checkpoint: str | Path, choice: Mapping[str, Any], out: Path) -> None:
    """The weights of a stage with what was chosen in the config that they carry."""
    section: dict[str, Any] = dict(
        top_k=choice["top_k"],
        # A state dict that knows images goes with a router that can fall back.
        router=dict(fallback=max(choice["fallback"], 1e-6)),
        combiner=dict(
            type="ProbabilityCombiner",
            temperature=round(choice["temperature"], 4),
            offset=round(choice["offset"], 4),
        ),
    )
    model = create_model(checkpoint=checkpoint, **section)
    last = model.router.fuse[-1]  # its logits divided, so that no option of the model is needed
    last.load_state_dict({k: v / choice["routing"] for k, v in last.state_dict().items()})
    settled = dict(config=model.cfg.pretty_text, threshold=choice["threshold"])
    save_weights(out, model, read_meta(Path(checkpoint)) | settled, "settled")


@torch.inference_mode()
def measure(model: ModelLevelMoE, dataset: Any) -> dict[str, dict[str, Any]]:
    """Figures of each data set of a group, at the images' own resolution."""
    familiarity, by_set = getattr(model.router, "familiarity", None), {}
    for image, sample in samples_of(dataset):
        if familiarity is not None:
            familiarity.kept = []
        ready = model.data_preprocessor(dict(inputs=[image], data_samples=[copy.copy(sample)]))
        out = model(ready["inputs"].to(device_of(model)), ready["data_samples"], mode="predict")[0]
        truth, prob = sample.gt_mask, out.pred_prob.float().cpu()
        maps = {name: each.float().cpu() for name, each in out.expert_probs.items()}
        scores = image_measures(prob, truth)
        ious = {name: iou_and_dice(each, truth)[0] for name, each in maps.items()}
        chosen = torch.zeros(len(maps)).scatter(0, out.routing["indices"], out.routing["weights"])
        p = out.routing["probabilities"]
        far = None
        if familiarity is not None:
            far = float(familiarity.distance(familiarity.kept.pop()) > familiarity.edge)
        by_set.setdefault(sample.dataset, []).append(
            dict(
                scalars=dict(IoU=scores["IoU"], Sm=scores["Sm"], MAE=scores["MAE"]),
                sources=ious | dict(uniform=iou_and_dice(uniform_probability(maps), truth)[0]),
                oracle=max(ious.values()),
                curve=[iou_and_dice(prob, truth, t)[0] for t in THRESHOLDS],
                reliability=reliability(prob, truth),
                weights=dict(zip(maps, chosen.tolist(), strict=True)),
                entropy=float(-(p * p.clamp(min=1e-12).log()).sum()),
                far=far,
            )
        )
    if familiarity is not None:
        familiarity.kept = None
    return {name: _summed_up(images) for name, images in by_set.items()}


def _summed_up(images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def mean(key: str) -> dict[str, float]:
        names = images[0][key]
        return {name: sum(i[key][name] for i in images) / len(images) for name in names}

    curve = [
        sum(values) / len(images) for values in zip(*(i["curve"] for i in images), strict=True)
    ]
    best = max(range(len(curve)), key=curve.__getitem__)
    table = torch.stack([i["reliability"] for i in images]).mean(0)
    far = [i["far"] for i in images]
    return dict(
        n=len(images),
        **mean("scalars"),
        sources=mean("sources"),
        oracle=sum(i["oracle"] for i in images) / len(images),
        best_threshold=[THRESHOLDS[best], curve[best]],
        ECE=expected_calibration_error(table),
        weights=mean("weights"),
        entropy=sum(i["entropy"] for i in images) / len(images),
        far=None if None in far else sum(far) / len(far),
    )


def milliseconds(model: ModelLevelMoE, size: int, images: int = 4) -> float:
    """CPU time of an image on one thread; half of it is the least that two idle cores take.

    Not by the clock, nor on several threads, which others of the machine would spoil.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    inputs = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        model.mixture(inputs)
        started = time.process_time()
        for _ in range(images):
            model.mixture(inputs)
        spent = time.process_time() - started
    torch.set_num_threads(before)
    return 1000 * spent / images

"""The files that a run of all stages leaves, written by hand: no training, and every oddity."""

import json

import numpy as np
from PIL import Image

NAMES = ("pranet", "sinet")
STEMS = [f"img_{i}" for i in range(40)]
METRICS = ("IoU", "Dice", "Sm", "wFm", "meanEm", "MAE")


PANELS = ["image", "truth", "mixture", *NAMES]


def write_pictures(folder):
    """One strip an image: green, a truth of the left half, maps that are right, empty and full."""
    folder.mkdir(parents=True)
    strip = np.zeros((30, 40 * len(PANELS), 3), np.uint8)
    strip[:, :40, 1] = 128
    strip[:, 40:60] = strip[:, 80:100] = strip[:, 160:] = 255
    for i in range(len(STEMS)):
        Image.fromarray(strip).save(folder / f"{i}.webp", lossless=True)


def row(level, seed=0):
    """A row of a result table whose IoU is about ``level``."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.02, len(STEMS))
    images = {
        stem: {key: float(level + noise[i]) for key in METRICS} for i, stem in enumerate(STEMS)
    }
    means = {key: float(np.mean([image[key] for image in images.values()])) for key in METRICS}
    falling = [1 - k / 255 for k in range(256)]
    curves = dict.fromkeys(("threshold", "Precision", "Fm", "IoU"), falling)
    curves["Recall"] = falling[::-1]
    return dict(means, n=len(STEMS), images=images, curves=curves)


def scalars(epochs, start=0, steps=10, level=0.5, interval=5):
    """Lines of mmengine's scalars.json: two training entries an epoch and a validation."""
    lines = []
    for epoch in range(start + 1, epochs + 1):
        for inner in range(interval, steps + 1, interval):
            number = (epoch - 1) * steps + inner
            lines.append(
                {
                    "base_lr": 1e-3 / epoch, "lr": 1e-3, "loss": 3.0 / epoch, "epoch": epoch,
                    "iter": number, "step": number, "mutual_information": 0.01 * epoch,
                    **{f"{name}.loss_structure": 1.0 / epoch for name in NAMES},
                    **{f"share_{name}": 0.5 for name in NAMES},
                }
            )  # fmt: skip
        val = {"IoU": level + 0.01 * epoch, "mutual_information": 0.02, "step": epoch}
        lines.append(val | {f"IoU_{name}": level for name in NAMES})
        lines[-1] |= {f"share_{name}": 0.5 for name in NAMES}
    return lines


def write_log(stage, stamp, lines, text=""):
    """A time-stamped folder of mmengine with its log."""
    folder = stage / stamp / "vis_data"
    folder.mkdir(parents=True)
    (folder / "scalars.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    head = "codmoe 0.1.0, torch 2.13.0, Python 3.11.7, 2 × Some GPU, seed 7"
    log = f"2026/01/02 03:04:05 - mmengine - INFO - {head}\n{text}"
    (stage / stamp / f"{stamp}.log").write_text(log)


def write_run(folder, dataset="Animals", levels=None):
    """A work directory as tools/run_stages.py leaves it; ``levels`` are IoUs by source."""
    levels = dict(pranet=0.5, sinet=0.55, uniform=0.56, router=0.57, ensemble=0.6, oracle=0.65) | (
        levels or {}
    )
    rows = {source: row(level, seed) for seed, (source, level) in enumerate(levels.items())}
    after = {name: row(0.57, 7) for name in (*NAMES, "uniform", "oracle")}
    after["mixture"] = rows["ensemble"]
    routing = {"mutual_information": 0.001, "top1_max_share": 0.99, "regret": 0.05}
    routing |= {"share_pranet": 1.0, "share_sinet": 0.0}
    routing |= {"chosen_pranet": 1.0, "chosen_sinet": 0.0}
    payload = dict(
        configs=["a/stage1", "a/stage2", "a/stage3"],
        weights=[f"w/{name}_best.pth" for name in ("experts_joint", "router", "ensemble")],
        call=dict(gpus=2, options=["train_cfg.max_epochs=3"], data_root=None),
        seconds=3725.0,
        table={dataset: rows},
        ensemble_experts={dataset: after},
        routing=dict(router=routing, ensemble=dict(routing, mutual_information=0.3)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.json").write_text(json.dumps(payload))
    for number in (1, 2, 3):
        stage = folder / f"stage{number}"
        warning = "2026/01/02 03:04:06 - mmengine - WARNING - the router is <blind>\n"
        write_log(stage, "20260102_030405", scalars(3), warning * 2 if number == 2 else "")
        done = dict(epochs=3, best=0.53, best_epoch=2, seconds=61.0, precision="bf16", images=1234)
        (stage / "finished.json").write_text(json.dumps(done))
    sources = dict.fromkeys((*NAMES, "uniform", "oracle", "mixture"), 0.57)
    bins = [("big", 30), ("small", 10)]
    breakdown = [
        dict(attribute="kind", bin=name, n=n, IoU=dict(sources, sinet=0.6), best=["sinet"])
        for name, n in bins
    ]
    weights = {
        stem: dict(pranet=1.0, sinet=0.0) if i < 30 else dict(pranet=0.2, sinet=0.8)
        for i, stem in enumerate(STEMS)
    }
    attributes = {stem: {"kind": "big" if i < 30 else "small"} for i, stem in enumerate(STEMS)}
    write_pictures(folder / "ensemble_pictures")
    cost = dict(parameters=2e6, active=1.5e6, flops=3e9, ms=4.25)
    result = dict(
        table={dataset: after},
        versions=dict(codmoe="0.1.0", torch="2.13.0"),
        breakdown={dataset: breakdown},
        routing_weights={dataset: weights},
        attributes={dataset: attributes},
        pictures=dict(
            folder="ensemble_pictures",
            panels=PANELS,
            files={dataset: {stem: f"{i}.webp" for i, stem in enumerate(STEMS)}},
        ),
        cost=dict(
            sources=dict.fromkeys((*NAMES, "uniform", "mixture"), cost),
            size=[96, 64],
            device="Some GPU",
            precision="float32",
        ),
    )
    (folder / "ensemble.json").write_text(json.dumps(result))
    return folder, payload

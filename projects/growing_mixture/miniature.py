"""The study in miniature: made-up images of 64 px, networks of a few thousand parameters."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import yapf.yapflib.yapf_api

from codmoe.engine import launch, testing  # noqa: F401  so that forks need not import them
from codmoe.engine.config import dicts_in, load_config
from projects.jobs import Job, note_time

SIZE = 64
SETS = {
    "camo/train": 20,
    "camo/test": 6,
    "duts/train": 20,
    "duts/test": 6,
    "polyp/train": 20,
    "polyp/test/Kvasir": 6,
    "polyp/test/CVC-ClinicDB": 6,
}
COLOURS = dict(camo=(60, 110, 60), duts=(200, 160, 60), polyp=(60, 60, 170))


def miniature(folder: Path, rows: Sequence[str]) -> Path:
    """Make the images of all sets, and a small config of each row.

    Returns:
        Folder of the configs.
    """
    for name, count in SETS.items():
        _draw(folder / "data" / name, count, COLOURS[name.split("/")[0]])
    configs = folder / "configs"
    configs.mkdir(parents=True, exist_ok=True)
    for row in rows:
        cfg = load_config(Path(__file__).parent / f"configs/{row}.py")
        small = _shrunk(cfg._cfg_dict.to_dict(), folder / "data")
        lines = [f"{key} = {value!r}" for key, value in small.items()]
        (configs / f"{row}.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return configs


def run_here(jobs: Sequence[Job], logs: Path) -> None:
    """Run jobs one after another, each in a fork of this process, which has imported what takes a
    command most of its seconds.
    """
    torch.set_num_threads(1)
    # mmengine lays out a config five times a training, which takes as long as all else.
    yapf.yapflib.yapf_api.FormatCode = lambda text, **_: (text, True)
    for job in jobs:
        if job.makes.exists() or not all(need.exists() for need in job.needs):
            continue
        print(job.name, flush=True)
        began = time.time()
        process = multiprocessing.get_context("fork").Process(target=_job, args=(job, logs))
        process.start()
        process.join()
        note_time(logs, job, process.exitcode, time.time() - began, at_a_time=1)


def _job(job: Job, logs: Path) -> None:
    with (logs / f"{job.name}.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.argv = job.command
        runpy.run_path(job.command[0], run_name="__main__")


def _draw(folder: Path, count: int, colour: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(count)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        mask = np.zeros((SIZE, SIZE + 8), np.uint8)
        centre = tuple(int(c) for c in rng.integers(20, 44, 2))
        cv2.circle(mask, centre, int(rng.integers(8, 18)), 255, -1)
        image = rng.integers(0, 60, (*mask.shape, 3)) + np.array(colour) // 2
        image += mask[..., None] // 4
        cv2.imwrite(str(folder / f"images/{i}.png"), image.astype(np.uint8))
        cv2.imwrite(str(folder / f"masks/{i}.png"), mask)


def _shrunk(cfg: dict, data: Path) -> dict:
    cfg.pop("config_file")
    cfg["model"]["backbone"].update(
        name="vit_tiny_patch16_224",
        checkpoint=None,
        image_size=SIZE,
        layers=(0, 1, 1, 2),
        channels=(8, 8, 8, 8),
        timm_args=dict(depth=3, embed_dim=48, num_heads=3),
    )
    for name, expert in cfg["model"]["experts"].items():
        expert.update(channels=8)
        if "own_blocks" in expert:
            expert.update(own_blocks=2)
        if name == "pranet":
            expert.update(deep_channels=8, shallow_channels=8)
        if name == "ujsc":
            expert.update(confidence_channels=8)
    if cfg["model"]["router"]["type"] == "EvidenceRouter":
        cfg["model"]["router"].update(width=8)
    for node in dicts_in(cfg):
        if node.get("type") == "RandomWarp":
            node["size"] = (SIZE, SIZE)
        if node.get("type") == "Resize":
            node["scale"] = (SIZE, SIZE)
        if "data_root" in node:
            node["data_root"] = str(data / Path(node["data_root"]).name)
    for part in ("train", "val", "test"):
        loader = cfg[f"{part}_dataloader"]
        loader.update(batch_size=4, num_workers=0)
        loader.pop("persistent_workers", None)
    cfg["train_cfg"].update(max_epochs=2, val_interval=1)
    return cfg

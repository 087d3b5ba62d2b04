"""A stage's ``*_best.pth`` → one small file that ships: half precision, its config inside."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config

from codmoe.datasets.synthetic import KINDS, generate
from codmoe.engine.checkpoints import SAFE, read_meta, read_weights, save_half
from codmoe.inference.inferencer import Inferencer
from codmoe.inference.zoo import config_of, expert_order

LIMIT = 20_000_000
"""Bytes that a file may have that ships with the package."""
# What says how the model is built, what it was trained on, and at what size it is tested. Folders
# of work and weights and settings of the machine are left out; data_root stays.
KEPT = (
    "default_scope model train_dataloader val_dataloader test_dataloader val_evaluator "
    "test_evaluator train_cfg optim_wrapper param_scheduler"
).split()
META = ("stage", "epoch", "monitor", "score", "codmoe", "torch")
IMAGES = 8


def pack(checkpoint: str | Path, out: str | Path, limit: int = LIMIT) -> dict[str, float]:
    """Write the shippable form of a checkpoint; a file already at ``out`` is kept.

    The model of the written file needs neither network nor the file of its backbone's weights.

    Args:
        checkpoint: ``*_best.pth`` of a stage, with config and order of experts inside.
        out: File to write, ``*.safetensors``.
        limit: Bytes that it may have.

    Returns:
        ``bytes``, and ``change``: the mean change of a probability that rounding to half precision
        makes, on the worst of eight synthetic images.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: It holds no config, ``out`` is no ``.safetensors``, or the file is too large.
    """
    out = Path(out)
    if out.suffix != SAFE:
        raise ValueError(f"out={str(out)!r} must end in {SAFE}")
    state = read_weights(checkpoint)
    count = sum(2 * v.numel() if v.is_floating_point() else 8 * v.numel() for v in state.values())
    if count > limit:
        raise ValueError(
            f"{checkpoint} takes {count:,} bytes in half precision, more than {limit:,}; train "
            "narrower experts or a smaller backbone"
        )
    meta = {key: value for key, value in read_meta(Path(checkpoint)).items() if key in META}
    names = list(expert_order(checkpoint))
    save_half(out, state, dict(meta, expert_names=names, config=_config_text(checkpoint)))
    return dict(bytes=out.stat().st_size, change=_change(checkpoint, out))


def _config_text(checkpoint: str | Path) -> str:
    cfg = config_of(checkpoint)
    kept = {key: cfg[key] for key in KEPT if key in cfg}
    for key in ("pretrained", "checkpoint"):
        if key in kept["model"].backbone:
            kept["model"].backbone[key] = False if key == "pretrained" else None
    kept["model"].evaluate_all_experts = False
    return Config(kept).pretty_text


def _change(before: str | Path, after: str | Path) -> float:
    """Mean difference of the probabilities of two checkpoints, on the worst image."""
    models = [Inferencer(checkpoint=path, device="cpu") for path in (before, after)]
    size = models[0].size[0]
    images = [generate(i, KINDS[i % len(KINDS)], size, 0.7)[0] for i in range(IMAGES)]
    old, new = ([torch.from_numpy(p.probability) for p in model(images)] for model in models)
    return max(float((a - b).abs().mean()) for a, b in zip(old, new, strict=True))

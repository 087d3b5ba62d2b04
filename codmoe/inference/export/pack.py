"""A stage's ``*_best.pth`` → one small file that ships: 16 or 8 bits, its config inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config

from codmoe.datasets.synthetic import KINDS, generate
from codmoe.engine.checkpoints import SAFE, TRAINED_ON, packed, read_meta, read_weights
from codmoe.files import replacing
from codmoe.inference.inferencer import Inferencer
from codmoe.inference.zoo import config_of, expert_order

LIMIT = 30_000_000
"""Bytes that a file may have that ships with the package."""
# What says how the model is built, what it was trained on, and at what size it is tested. Folders
# of work and weights and settings of the machine are left out; data_root stays.
KEPT = (
    "default_scope model train_dataloader val_dataloader test_dataloader val_evaluator "
    "test_evaluator train_cfg optim_wrapper param_scheduler"
).split()
META = ("stage", "epoch", "monitor", "score", "threshold", "codmoe", "torch", TRAINED_ON)
IMAGES = 8
Pictures = str | Path | Sequence[Path] | Sequence[np.ndarray]


def pack(
    checkpoint: str | Path,
    out: str | Path,
    limit: int = LIMIT,
    *,
    eight_bit: bool = False,
    pictures: Pictures | None = None,
) -> dict[str, float]:
    """Write the shippable form of a checkpoint; a file already at ``out`` is kept.

    The model of the written file needs neither network nor the file of its backbone's weights.

    Args:
        checkpoint: ``*_best.pth`` of a stage, with config and order of experts inside.
        out: File to write, ``*.safetensors``.
        limit: Bytes that it may have.
        eight_bit: Matrices and kernels as 8-bit numbers with a scale for each output channel.
        pictures: What rounding is measured on; None for eight synthetic images.

    Returns:
        ``bytes``; ``change``, the mean change of a probability that rounding makes, on the worst
        picture; and ``mask``, 1 − IoU of the masks before and after at 0.5, averaged over pictures
        (0 where both are empty).

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: It holds no config, ``out`` is no ``.safetensors`` or the checkpoint, or the
            file is too large.
    """
    out = Path(out)
    if out.suffix != SAFE:
        raise ValueError(f"out={str(out)!r} must end in {SAFE}")
    if out.resolve() == Path(checkpoint).expanduser().resolve():
        raise ValueError(f"{out} is the checkpoint itself; name another file")
    state = read_weights(checkpoint)
    meta = {key: value for key, value in read_meta(Path(checkpoint)).items() if key in META}
    names = list(expert_order(checkpoint))
    meta |= dict(expert_names=names, config=_config_text(checkpoint))
    content = packed(state, meta, eight_bit=eight_bit)
    if len(content) > limit:
        raise ValueError(
            f"{checkpoint} takes {len(content):,} bytes, more than {limit:,}; train narrower "
            "experts or a smaller backbone" + ("" if eight_bit else ", or write 8-bit weights")
        )
    with replacing(out) as temporary:
        temporary.write_bytes(content)
    return dict(bytes=len(content), **_changes(checkpoint, out, pictures))


def _config_text(checkpoint: str | Path) -> str:
    cfg = config_of(checkpoint)
    kept = {key: cfg[key] for key in KEPT if key in cfg}
    for key in ("pretrained", "checkpoint"):
        if key in kept["model"].backbone:
            kept["model"].backbone[key] = False if key == "pretrained" else None
    kept["model"].evaluate_all_experts = False
    return Config(kept).pretty_text


def _changes(
    before: str | Path,
    after: str | Path,
    pictures: Pictures | None,
) -> dict[str, float]:
    models = [Inferencer(checkpoint=path, device="cpu") for path in (before, after)]
    size = models[0].size[0]
    if pictures is None:
        pictures = [generate(i, KINDS[i % len(KINDS)], size, 0.7)[0] for i in range(IMAGES)]
    change, mask = [], []
    for old, new in zip(*(model.stream(pictures) for model in models), strict=True):
        change.append(float(np.abs(old.probability - new.probability).mean()))
        either = (old.mask | new.mask).sum()
        mask.append(float((old.mask ^ new.mask).sum() / either) if either else 0.0)
    return dict(change=max(change), mask=float(np.mean(mask)))

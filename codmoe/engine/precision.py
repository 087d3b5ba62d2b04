"""The precision of training, chosen in one place."""

from __future__ import annotations

import torch
from mmengine.config import Config


def settle_amp(cfg: Config) -> str:
    """Choose the precision of training, in this one place.

    ``cfg.amp`` (default True) asks for mixed precision; what it means depends on the machine: bf16
    where the GPU has it, fp16 with a dynamic loss scale on others (T4), none on the CPU.

    Returns:
        The choice, for the log.
    """
    wrapper = cfg.optim_wrapper
    for key in ("dtype", "loss_scale"):
        wrapper.pop(key, None)
    if not cfg.get("amp", True) or not torch.cuda.is_available():
        wrapper.type = "OptimWrapper"
        return "float32"
    wrapper.type = "AmpOptimWrapper"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        # bf16 has float32's range and needs no loss scale.
        wrapper.update(dtype="bfloat16", loss_scale=1.0)
        return "bfloat16 autocast"
    wrapper.update(dtype="float16", loss_scale="dynamic")
    return "float16 autocast, dynamic loss scale"

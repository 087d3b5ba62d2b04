"""What the machine decides about the optimiser, in one place: precision and fused kernels."""

from __future__ import annotations

import inspect

import torch
from mmengine import registry as root
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
        wrapper.type = "CODOptimWrapper"
        return "float32"
    wrapper.type = "CODAmpOptimWrapper"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        # bf16 has float32's range and needs no loss scale.
        wrapper.update(dtype="bfloat16", loss_scale=1.0)
        return "bfloat16 autocast"
    wrapper.update(dtype="float16", loss_scale="dynamic")
    return "float16 autocast, dynamic loss scale"


def settle_fused(cfg: Config) -> None:
    """Let the optimiser update all parameters of a group in one kernel, where it can.

    On GPUs, for the optimisers of torch that know ``fused`` (AdamW, Adam, SGD), unless the config
    says ``optim_wrapper.optimizer.fused`` or ``foreach`` itself. With a loss scale it also spares
    the wait for whether a gradient overflowed.
    """
    optimizer = cfg.optim_wrapper.get("optimizer") or {}
    if not torch.cuda.is_available() or {"fused", "foreach"} & set(optimizer):
        return
    kind = optimizer.get("type")
    kind = root.OPTIMIZERS.get(kind) if isinstance(kind, str) else kind
    if kind is not None and "fused" in inspect.signature(kind).parameters:
        optimizer["fused"] = True

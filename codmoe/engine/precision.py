"""What the machine decides about the optimiser, in one place: precision and fused kernels."""

from __future__ import annotations

import inspect

import torch
from mmengine import registry as root
from mmengine.config import Config

AMP = (True, False, None, "fp16", "bf16")


def check_amp(amp: bool | str) -> None:
    """Raises:
    ValueError: ``amp`` is no choice of precision.
    """
    if amp not in AMP:
        raise ValueError(
            f"amp={amp!r} is unknown; use True (bf16 or fp16, by the GPU), 'fp16', 'bf16' or False"
        )


def settle_amp(cfg: Config) -> str:
    """Choose the precision of training, in this one place.

    ``cfg.amp`` (default True) asks for mixed precision; what it means depends on the machine: bf16
    where the GPU has it, fp16 with a dynamic loss scale on others (T4), none on the CPU. ``"fp16"``
    takes fp16 on any GPU, ``"bf16"`` only where there is bf16, False neither.

    Returns:
        The choice, for the log.

    Raises:
        ValueError: ``cfg.amp`` is none of these, or the GPU has no bf16 and it was asked for.
    """
    wrapper, amp = cfg.optim_wrapper, cfg.get("amp", True)
    for key in ("dtype", "loss_scale"):
        wrapper.pop(key, None)
    check_amp(amp)
    if not amp or not torch.cuda.is_available():
        wrapper.type = "CODOptimWrapper"
        return "float32"
    wrapper.type = "CODAmpOptimWrapper"
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if amp == "bf16" and not has_bf16:
        raise ValueError(
            f"amp='bf16': {torch.cuda.get_device_name()} has no bf16; use amp='fp16' or amp=True"
        )
    if has_bf16 and amp != "fp16":
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

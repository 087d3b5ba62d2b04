"""Parameter groups of the optimiser, and its steps without waiting for the device."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from mmengine import registry as root
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, DefaultOptimWrapperConstructor, OptimWrapper
from torch import Tensor, nn
from torch.optim import Optimizer


# In mmengine's own registry: the Runner looks there.
@root.OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MergedGroupsConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with one group for all parameters of equal settings, and without
    weight decay on what must not decay.

    mmengine does not look at ``norm_decay_mult`` and ``bias_decay_mult`` wherever an entry of
    ``custom_keys`` matches, as for the pretrained part of the backbone. Here they hold for every
    norm and bias, unless that entry has a ``decay_mult`` of its own; ``norm_decay_mult`` holds for
    embeddings (of positions, of the class token) and layer scales too, as is usual for
    transformers.

    mmengine makes a group of every parameter, over a thousand of them, and an optimiser launches
    its kernels group by group. The result is the same; a checkpoint of one cannot be resumed with
    the other. The shipped configs have it; ``optim_wrapper.constructor =
    "DefaultOptimWrapperConstructor"`` is mmengine's.
    """

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = "", **kwargs
    ) -> None:
        """Fills ``params`` with the groups of ``module``; merged once the whole model is in."""
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:
            return
        self._spare(params, module)
        merged: dict[tuple, dict[str, Any]] = {}
        for group in params:
            settings = tuple(sorted((k, v) for k, v in group.items() if k != "params"))
            if settings in merged:
                merged[settings]["params"] += group["params"]
            else:
                merged[settings] = dict(group, params=list(group["params"]))
        params[:] = merged.values()

    def _spare(self, params: list[dict[str, Any]], model: nn.Module) -> None:
        """Set the decay of norms, biases and embeddings."""
        names = {id(p): name for name, p in model.named_parameters()}
        custom = self.paramwise_cfg.get("custom_keys", {})
        # As mmengine: the longest key that occurs in the name is the one that counts.
        keys = sorted(sorted(custom), key=len, reverse=True)
        for group in params:
            name = names[id(group["params"][0])]
            key = next((k for k in keys if k in name), None)
            if key is not None and "decay_mult" in custom[key]:
                continue
            if key is None and not _is_embedding(name):
                continue  # mmengine has seen to it
            mult = self._decay_mult(name, group["params"][0])
            if mult is not None and self.base_wd is not None:
                group["weight_decay"] = self.base_wd * mult

    def _decay_mult(self, name: str, parameter: nn.Parameter) -> float | None:
        if name.endswith("bias"):
            return self.paramwise_cfg.get("bias_decay_mult")
        # A weight of one dimension is a norm's or a layer scale's.
        if parameter.ndim <= 1 or _is_embedding(name):
            return self.paramwise_cfg.get("norm_decay_mult")
        return None


EMBEDDINGS = ("pos_embed", "cls_token", "reg_token", "dist_token", "relative_position_bias_table")


def _is_embedding(name: str) -> bool:
    # By the parameter's own name: pos_embed may also be a module with convolutions of its own.
    return name.rpartition(".")[2].startswith(EMBEDDINGS)


@root.OPTIM_WRAPPERS.register_module()
class CODOptimWrapper(OptimWrapper):
    """mmengine's OptimWrapper, which the engine chooses for full precision; it clips as mmengine
    does, and leaves the norm on the device for the log to fetch.

    With ``accumulative_counts`` the last batches of an epoch make a step of their own, if they are
    fewer: their gradient is divided by their number, and none waits when the epoch's checkpoint is
    written, from which a run then goes on to the same result.
    """

    epoch_steps: int | None = None
    """Batches of an epoch; None in a loop by iterations, where groups go on until the end."""

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        """mmengine's, without its warnings: docs/training.md says what accumulation means."""
        self._inner_count, self._max_counts = init_counts, max_counts
        if self._accumulative_counts > 1:  # the schedule goes on with each batch
            warnings.filterwarnings("ignore", "Detected call of `scheduler.step", UserWarning)

    def _place(self, count: int) -> tuple[int, int]:
        """Place of a batch within its group, from 0, and how many the group has."""
        size, steps = self._accumulative_counts, self.epoch_steps or self._max_counts
        place = count % steps if steps > 0 else count
        begin = place - place % size
        return place - begin, min(size, steps - begin) if steps > 0 else size

    def scale_loss(self, loss: Tensor) -> Tensor:
        """A batch's share of the mean over its group."""
        return loss / self._place(self._inner_count)[1]

    def should_sync(self) -> bool:
        """Whether the coming backward pass is its group's last."""
        place, size = self._place(self._inner_count)
        return place + 1 == size

    def should_update(self) -> bool:
        """Whether the backward pass that was made was its group's last."""
        place, size = self._place(self._inner_count - 1)
        return place + 1 == size

    def is_waiting(self) -> bool:
        """Whether there are gradients that wait for further batches."""
        return self._inner_count > 0 and not self.should_update()

    def _clip_grad(self) -> None:
        params = [p for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None]
        norm = self.clip_func(params, **self.clip_grad_kwargs) if params else None
        if norm is not None:  # clipping by value gives none
            self.message_hub.update_scalar(f"train/{self.grad_name}", norm)


@root.OPTIM_WRAPPERS.register_module()
class CODAmpOptimWrapper(CODOptimWrapper, AmpOptimWrapper):
    """Likewise mmengine's AmpOptimWrapper, which the engine chooses for mixed precision."""


def lay_out_state(optimizer: Optimizer) -> None:
    """Give the state of every parameter its memory format, which a checkpoint need not share.

    A fused step reads parameter, gradient and state in the order they lie in memory and refuses
    those that differ.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                laid_out = torch.empty_like(parameter, dtype=value.dtype, device=value.device)
                state[key] = laid_out.copy_(value)


def amp_faults(cfg: Mapping[str, Any]) -> list[str]:
    """Faults of ``cfg.amp``, one sentence each."""
    amp = cfg.get("amp", True)
    if amp in (True, False, None, "fp16", "bf16"):
        return []
    return [f"amp={amp!r} is unknown; use True (bf16 or fp16, by the GPU), 'fp16', 'bf16' or False"]


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
    for fault in amp_faults(cfg):
        raise ValueError(fault)
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

"""Gradients averaged over processes all at once, instead of one by one while they come."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def average_gradients(
    named: Iterable[tuple[str, nn.Parameter]],
    group: dist.ProcessGroup | None = None,
    *,
    search: bool = False,
) -> int:
    """Replace every gradient by its mean over the processes of a group.

    DDP copies each gradient into a bucket as the backward pass makes it: a launch for every
    parameter, of which four complete experts have twelve hundred. Here a handful of launches does
    it for all, at the price that nothing is sent before the last gradient is there.

    Args:
        named: Names and parameters, the same in every process.
        group: Its processes; all of them by default.
        search: Whether a parameter may have no gradient in some process: it counts as zero there,
            and stays without where no process has one. Waits for the device.

    Returns:
        Bytes that this process sent.

    Raises:
        RuntimeError: A trained parameter has no gradient, and ``search`` is off.
    """
    trained = [(name, p) for name, p in named if p.requires_grad]
    if search:
        trained = _used_somewhere(trained, group)
    idle = [name for name, p in trained if p.grad is None]
    if idle:
        raise RuntimeError(
            f"{len(idle)} trained parameter(s) have no gradient, the first is {idle[0]}; set "
            "model_wrapper_cfg.find_unused_parameters=True"
        )
    sent = 0
    for dtype in sorted({p.grad.dtype for _, p in trained}, key=str):
        parameters = [p for _, p in trained if p.grad.dtype == dtype]
        lines = [_as_line(p.grad) for p in parameters]
        whole = torch.cat([line for line, _ in lines])
        _average(whole, group)
        pieces = whole.split([line.numel() for line, _ in lines])
        # Gradients are views of what was sent: no copy back.
        for p, piece, (_, strides) in zip(parameters, pieces, lines, strict=True):
            p.grad = piece.as_strided(p.shape, strides)
        sent += whole.numel() * whole.element_size()
    return sent


def _used_somewhere(
    trained: list[tuple[str, nn.Parameter]], group: dist.ProcessGroup | None
) -> list[tuple[str, nn.Parameter]]:
    """Those with a gradient in any process; where it is missing here, it is zero from now on."""
    device = next((p.device for _, p in trained), "cpu")
    used = torch.tensor([p.grad is not None for _, p in trained], dtype=torch.uint8, device=device)
    dist.all_reduce(used, dist.ReduceOp.MAX, group)
    kept = [item for item, there in zip(trained, used.tolist(), strict=True) if there]
    for _, p in kept:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    return kept


def _as_line(gradient: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """All values of a gradient in one dimension, and the strides by which they are its own again.

    In the order of its memory, so that channels last is not copied. That order is the parameter's
    (torch's contract for gradients), hence the same in every process.
    """
    last = gradient.ndim == 4 and gradient.is_contiguous(memory_format=torch.channels_last)
    if last and not gradient.is_contiguous():
        return gradient.as_strided((gradient.numel(),), (1,)), gradient.stride()
    gradient = gradient.contiguous()
    return gradient.view(-1), gradient.stride()


def _average(x: Tensor, group: dist.ProcessGroup | None) -> None:
    if dist.get_backend(group) == "nccl":
        dist.all_reduce(x, dist.ReduceOp.AVG, group)
    else:  # gloo has no average
        dist.all_reduce(x, dist.ReduceOp.SUM, group)
        x.div_(dist.get_world_size(group))

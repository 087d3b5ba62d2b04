"""Runs the experts in training: together, one after another, or computed twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from codmoe.models.build import check_choice
from codmoe.models.dispatch import PyramidBank
from codmoe.models.experts.base import Expert, checked, checked_losses
from codmoe.structures import ExpertOutput

EXECUTIONS = ("together", "sequential", "checkpoint")


class ExpertTraining(nn.Module):
    """Runs every chosen expert with its own loss.

    Args:
        execution: ``"together"`` keeps the activations of all experts until the backward pass;
            ``"sequential"`` finishes an expert's backward pass before the next one begins, at no
            cost, where no loss compares or mixes experts; ``"checkpoint"`` computes each expert a
            second time in the backward pass.
        normalization: None; ``"maps"`` divides an expert's losses by the number of maps it
            supervises, 1 + its side maps.
        weight: Factor on every loss.

    Raises:
        ValueError: ``execution`` or ``normalization`` is unknown.
    """

    def __init__(self, *, execution: str, normalization: str | None, weight: float):
        super().__init__()
        check_choice("expert_execution", execution, EXECUTIONS)
        check_choice("expert_loss_normalization", normalization, (None, "maps"))
        self.execution = execution
        self.normalization = normalization
        self.weight = weight

    def forward(
        self,
        experts: Mapping[str, Expert],
        bank: PyramidBank,
        rows: Mapping[str, Tensor | None],
        targets: Tensor,
        progress: float,
        scale_loss: Callable[[Tensor], Tensor] | None = None,
        datasets: Sequence[str | None] = (),
    ) -> tuple[dict[str, ExpertOutput], dict[str, Tensor]]:
        """Run and judge the experts.

        Args:
            experts: All experts by name.
            bank: Images and pyramids of the batch.
            rows: As of :func:`run_experts`.
            targets: Ground truth in {0, 1}, (N, 1, H, W).
            progress: Share of training done, in [0, 1].
            scale_loss: See :func:`forward_backward`.
            datasets: Name of each image's data set, for experts that learn from some alone.

        Returns:
            Outputs by expert, without gradient for ``"sequential"``, and losses by
            ``<expert>.loss_<part>``; none of an expert from whose loss nothing would learn.
        """
        outputs, losses = {}, {}
        # Pyramids of further scales are not made before those who read them run.
        for name in sorted(rows, key=lambda name: len({*experts[name].input_scales} - {1.0})):
            lessons = lessons_of(name, experts[name], rows[name], datasets)
            outputs[name], losses[name] = self._run(
                name, experts[name], bank, rows[name], lessons, targets, progress, scale_loss
            )
        merged = {key: value for name in rows for key, value in losses[name].items()}
        return {name: outputs[name] for name in rows}, merged

    def _run(
        self,
        name: str,
        expert: Expert,
        bank: PyramidBank,
        index: Tensor | None,
        lessons: list[int] | None,
        targets: Tensor,
        progress: float,
        scale_loss: Callable[[Tensor], Tensor] | None,
    ) -> tuple[ExpertOutput, dict[str, Tensor]]:
        images = bank.images if index is None else bank.images[index]
        target = targets if index is None else targets[index]
        scales = len(expert.input_scales)
        levels = [level for pyramid in bank.pyramids(expert, index) for level in pyramid]

        def pyramids_of(levels: Sequence[Tensor]) -> list[Sequence[Tensor]]:
            per_scale = len(levels) // scales
            return [levels[i * per_scale : (i + 1) * per_scale] for i in range(scales)]

        parameters = list(expert.parameters())
        if not any(x.requires_grad for x in [*parameters, *levels]):
            output = checked(expert, expert(images, pyramids_of(levels)))
            output.rows = index
            return output, {}  # nothing would learn from its loss

        def run(levels: Sequence[Tensor]) -> tuple[ExpertOutput, dict[str, Tensor]]:
            output = checked(expert, expert(images, pyramids_of(levels)))
            output.rows = index
            # An expert's loss is a mean over its own images; every image of the batch counts alike.
            own, truth = output, target
            if lessons:
                of = torch.tensor(lessons, device=target.device)
                own, truth = output.of_images(of), target[of]
            count = len(target) if lessons is None else len(lessons)
            factor = self.weight * (count / len(targets))
            if self.normalization == "maps":
                factor /= 1 + len(output.side_logits)
            # Of no image the loss of all, times 0: parameters without gradient would stop DDP.
            parts = checked_losses(expert, expert.loss(own, truth, progress))
            return output, {f"{name}.loss_{part}": factor * v for part, v in parts.items()}

        if self.execution == "checkpoint":
            return checkpointed(run, levels, module=expert)
        if self.execution == "sequential":
            output, losses = forward_backward(run, levels, parameters, scale_loss)
            return _prediction_of(output), losses
        return run(levels)


def lessons_of(
    name: str, expert: Expert, index: Tensor | None, datasets: Sequence[str | None]
) -> list[int] | None:
    """Which of its images an expert's own loss is of (``learns_from``); None for all. ``index`` are
    the rows of the batch that it was given, None for all.

    Raises:
        ValueError: It learns from some data sets alone, and the images say not which they are of.
    """
    if not expert.learns_from:
        return None
    if not datasets or None in datasets:
        raise ValueError(
            f"experts.{name}.learns_from={expert.learns_from} needs data_samples that say which "
            "data set each image is of; leave it out, or train on a DatasetGroup"
        )
    rows = range(len(datasets)) if index is None else index.tolist()
    return [i for i, row in enumerate(rows) if datasets[row] in expert.learns_from]


def _prediction_of(output: ExpertOutput) -> ExpertOutput:
    """The map alone, without graph: all that monitors read."""
    return ExpertOutput(logits=output.logits.detach(), rows=output.rows)


FP16_SCALE = 2.0**10
"""Loss scale of the inner backward pass under fp16 autocast, where nobody gives the optimiser's."""


class _Carrier(torch.autograd.Function):
    """Zero, with gradients that are known already.

    Parameters and pyramid levels are its inputs, so that DDP, the loss scaler, clipping and
    gradient accumulation see an ordinary backward pass.
    """

    @staticmethod
    def forward(ctx, gradients: list[Tensor | None], scale: Tensor | None, total: Tensor, *inputs):
        ctx.gradients, ctx.scale = gradients, scale
        ctx.dtypes = [x.dtype for x in inputs]
        return torch.zeros_like(total)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "backward through a sequentially run expert a second time: its gradients were "
                "handed on in the first; use expert_execution='together' for retain_graph"
            )
        factor = grad_output if ctx.scale is None else grad_output / ctx.scale
        there = [i for i, g in enumerate(gradients) if g is not None]
        # Half-precision ones as float32: with the loss scale still in them they may be large.
        wide = [g.float() if g.dtype.itemsize < 4 else g for g in (gradients[i] for i in there)]
        for i, scaled in zip(there, torch._foreach_mul(wide, factor), strict=True):
            gradients[i] = scaled.to(ctx.dtypes[i])
        return None, None, None, *gradients


def forward_backward(
    run: Callable[[list[Tensor]], tuple[Any, dict[str, Tensor]]],
    levels: Sequence[Tensor],
    parameters: Sequence[Tensor],
    scale_loss: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Any, dict[str, Tensor]]:
    """Runs an expert forward and backward; nothing of its graph is left.

    Args:
        run: Levels → (output, named losses); gradients flow to levels and parameters alone.
        levels: Pyramid levels that the expert reads; ``run`` gets them cut from their graph.
        parameters: The expert's parameters.
        scale_loss: Multiplies a loss with the optimiser's loss scale (``GradScaler.scale``). The
            inner backward pass then has the same range as an ordinary one: what overflows reaches
            the scaler as inf or NaN, and it skips the step and lowers the scale of both. Without
            it, fp16 autocast takes ``FP16_SCALE``, other precisions none.

    Returns:
        What ``run`` returned; of the losses, the first carries the gradient of their sum, and the
        others none. Only their sum with equal weights may be minimised, as mmengine does.
    """
    leaves = [level.detach().requires_grad_(level.requires_grad) for level in levels]
    inputs = [(outer, inner) for outer, inner in zip(levels, leaves, strict=True)]
    inputs = [pair for pair in inputs if pair[0].requires_grad]
    inputs += [(p, p) for p in parameters if p.requires_grad]
    if not inputs or not torch.is_grad_enabled():
        return run(list(levels))
    output, losses = run(leaves)
    first, *others = losses
    total = sum((losses[name] for name in others), start=losses[first])
    device = total.device.type
    scale = None
    if scale_loss is None and _is_fp16(device):
        scale = torch.full_like(total, FP16_SCALE)
    elif scale_loss is not None:
        scale = scale_loss(torch.ones_like(total))
    # As an ordinary backward pass, which mmengine starts outside of autocast.
    with torch.autocast(device, enabled=False):
        gradients = torch.autograd.grad(
            total if scale is None else total * scale,
            [inner for _, inner in inputs],
            allow_unused=True,
        )
    carrier = _Carrier.apply(list(gradients), scale, total.detach(), *(o for o, _ in inputs))
    losses = {name: value.detach() for name, value in losses.items()}
    losses[first] = losses[first] + carrier
    return output, losses


def _is_fp16(device: str) -> bool:
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16


@contextmanager
def statistics_untouched(module: nn.Module) -> Iterator[None]:
    """What runs in here updates copies of the batch-norm statistics of ``module``, not its own.

    Copies, because batch norm without statistics would save other tensors for its backward pass
    than the first time, which torch's checkpointing refuses.
    """
    norms = [m for m in module.modules() if isinstance(m, _NormBase) and m.training]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        copies = {k: None if b is None else b.clone() for k, b in norm._buffers.items()}
        norm._buffers.update(copies)
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)


def checkpointed(function: Callable[..., Any], *args, module: nn.Module) -> Any:
    """``function(*args)`` without keeping its activations; they are computed again in the backward
    pass, with the same random numbers, and leave the batch-norm statistics of ``module`` alone.
    """

    def contexts():
        return nullcontext(), statistics_untouched(module)

    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)


def backbone_pass(
    backbone: nn.Module, run: Callable[..., list[Tensor]], *args: Any
) -> list[Tensor]:
    """``run(*args)``, a pass of the backbone or of a part, of whose activations little is kept.

    Block by block where timm's model offers that (PVT, Swin, ConvNeXt, ViT) and has no batch norm,
    whose statistics timm would update twice; otherwise the whole pass at once, which needs in the
    backward pass the memory that it saved in the forward pass, but for this pass alone.
    """
    if not torch.is_grad_enabled() or not any(p.requires_grad for p in backbone.parameters()):
        return run(*args)
    switches = block_switches(backbone)
    if not switches:
        return checkpointed(run, *args, module=backbone)
    for module in switches:
        setattr(module, "grad_checkpointing", True)  # noqa: B010
    try:
        return run(*args)
    finally:
        for module in switches:
            setattr(module, "grad_checkpointing", False)  # noqa: B010


def block_switches(backbone: nn.Module) -> list[nn.Module]:
    """timm's modules that checkpoint their blocks when told to, the innermost ones."""
    if any(isinstance(module, _NormBase) for module in backbone.modules()):
        return []
    found = [m for m in backbone.modules() if getattr(m, "grad_checkpointing", None) is False]
    return [m for m in found if not any(inner in found for inner in m.modules() if inner is not m)]

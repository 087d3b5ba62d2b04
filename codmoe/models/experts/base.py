"""The contract that every expert meets."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from codmoe.models.losses.segmentation import StructureLoss
from codmoe.structures import ExpertOutput


class Expert(nn.Module, ABC):
    """A complete decoder from pyramid to mask, with its own loss.

    To add one: subclass, register, implement :meth:`forward`; override :meth:`loss` if the paper
    has one of its own. The file is found by its ``type=`` once
    ``codmoe/models/experts/__init__.py`` or the config's ``custom_imports`` names it.

    Args:
        in_channels: Channels of the pyramid at strides 4, 8, 16, 32; the model fills this in.
        input_scale: Scale of the image that the expert reads, 1.0 being the one that all share. At
            1.25 it sees finer detail, at 0.75 more context in one receptive field. Another pass of
            the backbone is made for it, for the images routed here alone, and once where several
            experts read the same scale. Logits lie on the frame of the image at any scale.

    Raises:
        ValueError: ``in_channels`` are not four, or ``input_scale`` is no positive number.
    """

    input_scales: tuple[float, ...] = (1.0,)
    """Image scales whose pyramids this expert reads, in the order in which it is given them."""

    read_by_model: ClassVar[dict[str, Any]] = dict(own_blocks=int, learns_from=tuple[str, ...])
    """Keys of an expert's config that the model reads, and their types. ``own_blocks`` gives it the
    last blocks of the backbone (stages, of a hierarchical one) as its own, and all that comes after
    them. They begin as the backbone's; the blocks before stay shared, and are run once for all
    experts of one image scale. An expert that has an ``input_scale`` of its own makes its own pass
    anyway, so that they cost it parameters alone. ``learns_from`` names data sets, whose images
    alone count in its own loss; by default all do."""

    backbone: nn.Module | None
    """Its own last blocks (:meth:`Backbone.ending`), or None."""

    learns_from: tuple[str, ...] = ()
    """Data sets whose images its own loss is of; empty for all."""

    loss_arguments: ClassVar[tuple[str, ...]] = ()
    """Arguments that :meth:`loss` alone reads: with others an expert predicts the same."""

    def __init__(self, *, in_channels: Sequence[int], input_scale: float = 1.0):
        super().__init__()
        if len(in_channels) != 4:
            raise ValueError(
                f"{type(self).__name__}: in_channels={list(in_channels)} needs four numbers, the "
                "channels at strides 4, 8, 16, 32"
            )
        self.in_channels = tuple(in_channels)
        self.input_scales = self.check_scales("input_scale", (input_scale,))
        self.backbone = None
        self.structure_loss = StructureLoss()

    def check_scales(self, key: str, scales: Sequence[float]) -> tuple[float, ...]:
        """The image scales as floats; ``key`` is the argument to blame.

        Raises:
            ValueError: One of them is no positive finite number.
        """
        for scale in scales:
            number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
            if not number or not 0 < scale < math.inf:
                raise ValueError(
                    f"{type(self).__name__}: {key}={scale!r} must be a positive number; 1.0 reads "
                    "the image as all experts do, 1.5 half as large again"
                )
        return tuple(float(scale) for scale in scales)

    @abstractmethod
    def forward(self, images: Tensor, pyramids: Sequence[Sequence[Tensor]]) -> ExpertOutput:
        """Predict.

        Args:
            images: Normalised images, (M, 3, H, W).
            pyramids: One pyramid per entry of ``input_scales``, in that order; each is four maps
                (M, C_i, h_i, w_i).
        """

    def loss(self, output: ExpertOutput, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Structure loss on the prediction and on every side map, equally weighted.

        Args:
            output: What :meth:`forward` returned for M images.
            target: Ground truth in {0, 1}, (M, 1, H, W).
            progress: Share of training done, in [0, 1].

        Returns:
            Named scalars; their sum is minimised.
        """
        names = ["structure", *(f"structure_side{i}" for i in range(len(output.side_logits)))]
        values = self.structure_loss.of_maps([output.logits, *output.side_logits], target)
        return dict(zip(names, values, strict=True))


def check_signature(expert: Expert) -> None:
    """Raises:
    ValueError: An expert's ``forward`` takes other arguments.
    """
    try:
        inspect.signature(expert.forward).bind(None, None)
    except TypeError as error:
        name = type(expert).__name__
        raise ValueError(f"{name}.forward is called with (images, pyramids): {error}") from error


def checked(expert: nn.Module, output: Any) -> ExpertOutput:
    """What an expert returned.

    Raises:
        ValueError: It is no :class:`ExpertOutput` of maps (M, 1, h, w).
    """
    logits = output.logits if isinstance(output, ExpertOutput) else None
    if isinstance(logits, Tensor) and logits.ndim == 4 and logits.shape[1] == 1:
        return output
    told = type(output if logits is None else logits).__name__
    if isinstance(logits, Tensor):
        told = f"logits {tuple(logits.shape)}"
    raise ValueError(
        f"{type(expert).__name__}.forward returned {told}; return "
        "ExpertOutput(logits=...), one map for each of M images, (M, 1, h, w)"
    )


def checked_losses(expert: nn.Module, losses: Any) -> Mapping[str, Tensor]:
    """What an expert's ``loss`` returned.

    Raises:
        ValueError: It is no dict of scalars, or nothing that learns has a gradient from them.
    """
    if not isinstance(losses, Mapping) or not losses:
        told = "no loss" if isinstance(losses, Mapping) else type(losses).__name__
    else:
        wrong = {k: v for k, v in losses.items() if not isinstance(v, Tensor) or v.ndim}
        if not wrong:
            learns = any(p.requires_grad for p in expert.parameters()) and torch.is_grad_enabled()
            if learns and not any(loss.requires_grad for loss in losses.values()):
                raise ValueError(
                    f"{type(expert).__name__}: its losses have no gradient, so it would not learn; "
                    "compute logits and losses without detach() and torch.no_grad()"
                )
            return losses
        name, value = next(iter(wrong.items()))
        told = (
            f"{name!r}: {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}"
        )
    raise ValueError(
        f"{type(expert).__name__}.loss returned {told}; return dict(name=scalar), the sum of which "
        "is minimised, each a mean over the images"
    )


def check_output_stride(expert: Expert, value: int) -> None:
    """Raises:
    ValueError: ``output_stride`` is neither 8 nor 4.
    """
    if value not in (4, 8):
        raise ValueError(
            f"{type(expert).__name__}: output_stride={value!r} is unknown; use 8, as in the paper, "
            "or 4"
        )

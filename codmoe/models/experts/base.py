"""The contract that every expert meets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

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
    """

    input_scales: ClassVar[tuple[float, ...]] = (1.0,)
    """Image scales whose pyramids this expert reads. 1.0 is shared by all experts; others are made
    only for the images routed here."""

    gives_confidence: bool = True
    """Whether :meth:`forward` estimates its confidence, if it can. Switched off by who evaluates
    with a combiner that does not read it."""

    def __init__(self, *, in_channels: Sequence[int]):
        super().__init__()
        if len(in_channels) != 4:
            raise ValueError(
                f"{type(self).__name__}: in_channels={list(in_channels)} needs four numbers, the "
                "channels at strides 4, 8, 16, 32"
            )
        self.in_channels = tuple(in_channels)
        self.structure_loss = StructureLoss()

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

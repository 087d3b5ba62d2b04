"""A plain feature pyramid network: the head that four experts and a router have to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codmoe.models.experts.base import Expert
from codmoe.models.layers import conv_bn, resize_to
from codmoe.registry import MODELS
from codmoe.structures import ExpertOutput

FUSIONS = ("concat", "sum")


@MODELS.register_module()
class FPNExpert(Expert):
    """Feature pyramid (Lin et al., CVPR 2017) with the semantic head of Panoptic FPN (Kirillov et
    al., CVPR 2019) in its simplest form: no attention, no side maps, no refinement.

    1×1 laterals, added top-down; a 3×3 on each level; all levels at stride 4, concatenated or
    summed; a 3×3 and a 1×1.

    Args:
        channels: Width. 256 gives 5.0 M parameters on PVT-v2-B2, 128 gives 1.3 M.
        fuse: ``"concat"`` or ``"sum"`` of the four levels.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: int = 256,
        fuse: str = "concat",
        input_scale: float = 1.0,
    ):
        super().__init__(in_channels=in_channels, input_scale=input_scale)
        if fuse not in FUSIONS:
            raise ValueError(f"FPNExpert: fuse={fuse!r} is unknown; use 'concat' or 'sum'")
        self.fuse = fuse
        self.laterals = nn.ModuleList(conv_bn(c, channels, act=False) for c in in_channels)
        self.smooth = nn.ModuleList(conv_bn(channels, channels, 3) for _ in in_channels)
        width = channels * (len(in_channels) if fuse == "concat" else 1)
        self.head = nn.Sequential(conv_bn(width, channels, 3), nn.Conv2d(channels, 1, 1))

    def forward(self, images: Tensor, pyramids: Sequence[Sequence[Tensor]]) -> ExpertOutput:
        """See :class:`Expert`; logits at stride 4."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, pyramids[0], strict=True)]
        for i in range(len(levels) - 2, -1, -1):
            levels[i] = levels[i] + resize_to(levels[i + 1], levels[i])
        levels = [
            resize_to(conv(level), levels[0])
            for conv, level in zip(self.smooth, levels, strict=True)
        ]
        fused = torch.cat(levels, dim=1) if self.fuse == "concat" else sum(levels)
        return ExpertOutput(logits=self.head(fused))

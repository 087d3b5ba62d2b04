"""SINet: search, then identify (Fan et al., Concealed Object Detection, TPAMI 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from codmoe.models.experts.base import Expert, check_output_stride
from codmoe.models.layers import PartialDecoder, ReceptiveFieldBlock, conv_bn, resize_to
from codmoe.registry import MODELS
from codmoe.structures import ExpertOutput


class GroupReversalBlock(nn.Module):
    """Interleaves a one-channel guide with ``groups`` groups of the features; refines both.

    Features (N, C, h, w) and guide (N, 1, h, w) keep their shapes. The interleaved tensor, in which
    the guide is repeated ``groups`` times, is never made: a convolution of it is one of the
    features plus one of the guide with the sum of the weights that met its repetitions.
    """

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.groups = groups
        self.conv = nn.Sequential(nn.Conv2d(channels + groups, channels, 3, padding=1), nn.ReLU())
        self.score = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        conv = cast(nn.Conv2d, self.conv[0])
        grouped = conv.weight.unflatten(1, (self.groups, -1))
        features, guides = grouped[:, :, :-1].flatten(1, 2), grouped[:, :, -1].sum(1, keepdim=True)
        mixed = F.conv2d(x, features, conv.bias, padding=1) + F.conv2d(guide, guides, padding=1)
        x = x + self.conv[1](mixed)
        return x, guide + self.score(x)

    def evaluation_form(self) -> MergedGuideBlock:
        """An equal block with its weights in order; see :func:`frozen_copy`."""
        return MergedGuideBlock(self)


class MergedGuideBlock(nn.Module):
    """What :class:`GroupReversalBlock` computes, in one convolution whose weights lie ready.

    The guide is given ``WIDTH`` channels, all but one of weight zero: tensor cores take channels in
    eights.
    """

    WIDTH = 8

    def __init__(self, block: GroupReversalBlock):
        super().__init__()
        conv, self.score = cast(nn.Conv2d, block.conv[0]), block.score
        channels = conv.out_channels
        grouped = conv.weight.unflatten(1, (block.groups, -1))
        features, guide = grouped[:, :, :-1].flatten(1, 2), grouped[:, :, -1].sum(1, keepdim=True)
        zeros = guide.new_zeros(channels, self.WIDTH - 1, 3, 3)
        self.conv = skip_init(nn.Conv2d, channels + self.WIDTH, channels, 3, padding=1)
        self.conv.weight = nn.Parameter(torch.cat([features, guide, zeros], dim=1), False)
        self.conv.bias = conv.bias

    def forward(self, x: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`GroupReversalBlock`."""
        guides = guide.expand(-1, self.WIDTH, -1, -1)
        x = x + F.relu(self.conv(torch.cat([x, guides], dim=1)))
        return x, guide + self.score(x)


class GroupReversalStage(nn.Module):
    """Three blocks of 1, C/8 and C groups, led by what the incoming map has *not* found."""

    def __init__(self, channels: int):
        super().__init__()
        self.blocks = nn.ModuleList(
            GroupReversalBlock(channels, groups) for groups in (1, channels // 8, channels)
        )

    def forward(self, x: Tensor, coarse: Tensor) -> Tensor:
        """Features (N, C, h, w) and logits of any size → refined logits (N, 1, h, w)."""
        coarse = resize_to(coarse, x)
        guide = 1 - coarse.sigmoid()
        for block in self.blocks:
            x, guide = block(x, guide)
        return guide + coarse


@MODELS.register_module()
class SINetExpert(Expert):
    """Search with a neighbour-connection decoder, identify by group reversal from deep to shallow.

    Args:
        channels: Width, a multiple of 8. 144 gives 14.4 M parameters on PVT-v2-B2; the paper's is
            32.
        output_stride: 8 as in the paper; 4, a deviation, identifies once more, on f1 beside the
            features of f2, at a quarter of the width.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: int = 144,
        input_scale: float = 1.0,
        output_stride: int = 8,
    ):
        super().__init__(in_channels=in_channels, input_scale=input_scale)
        check_output_stride(self, output_stride)
        if channels % 8:
            raise ValueError(f"SINetExpert: channels={channels} must be a multiple of 8")
        self.receptive = nn.ModuleList(ReceptiveFieldBlock(c, channels) for c in in_channels[1:])
        self.search = PartialDecoder(channels, chained=True)
        self.identify = nn.ModuleList(GroupReversalStage(channels) for _ in range(3))
        self.fine: GroupReversalStage | None = None
        if output_stride == 4:
            width = max(channels // 32, 1) * 8
            self.fine_feature = conv_bn(in_channels[0] + channels, width, 3)
            self.fine = GroupReversalStage(width)

    def forward(self, images: Tensor, pyramids: Sequence[Sequence[Tensor]]) -> ExpertOutput:
        """See :class:`Expert`; logits at ``output_stride``, side maps: search, then each stride
        from 32 on.
        """
        features = [block(f) for block, f in zip(self.receptive, pyramids[0][1:], strict=True)]
        maps = [self.search(*features)]
        for stage, feature in zip(self.identify, reversed(features), strict=True):
            maps.append(stage(feature, maps[-1]))
        if self.fine is not None:
            f1 = pyramids[0][0]
            beside = torch.cat([f1, resize_to(features[0], f1)], dim=1)
            maps.append(self.fine(self.fine_feature(beside), maps[-1]))
        return ExpertOutput(logits=maps[-1], side_logits=maps[:-1])

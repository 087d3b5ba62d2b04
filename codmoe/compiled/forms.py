"""Forms of modules that compute the same, faster where a compiler fuses them on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codmoe.models.experts.sinet import MergedGuideBlock
from codmoe.models.experts.ujsc import DilatedSum


class OneChannel(nn.Module):
    """A sum of 3 × 3 convolutions to one channel: one product to their taps, and a shifted sum.

    A convolution to one channel does the work of one column of a tile of tensor cores in all of
    it. The shifted sum is many operations where nobody compiles.

    Args:
        convs: With bias, and padded to keep the size.
    """

    def __init__(self, convs: Sequence[nn.Conv2d]):
        super().__init__()
        taps = torch.cat([conv.weight[0].flatten(1).T for conv in convs])
        self.taps = nn.Parameter(F.pad(taps, (0, 0, 0, -len(taps) % 8))[..., None, None], False)
        biases = [cast(Tensor, conv.bias) for conv in convs]
        self.bias = nn.Parameter(torch.stack(biases).sum(0), False)
        self.reaches = [conv.dilation[0] for conv in convs]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) → (N, 1, h, w)."""
        height, width = x.shape[-2:]
        maps = F.conv2d(x, self.taps)
        total = self.bias.float().view(1, 1, 1, 1)
        for number, reach in enumerate(self.reaches):
            padded = F.pad(maps[:, 9 * number : 9 * number + 9], (reach,) * 4).float()
            for tap in range(9):
                row, column = tap // 3 * reach, tap % 3 * reach
                shifted = padded[:, tap : tap + 1, row : row + height, column : column + width]
                total = total + shifted
        return total.to(maps.dtype)


def merge_heads(module: nn.Module) -> None:
    """Make the convolutions to one channel of UJSC and SINet :class:`OneChannel`, in a copy."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            convs = [cast(nn.Conv2d, conv) for conv in getattr(child, "branches", ())]
            if type(child) is DilatedSum and convs[0].out_channels == 1:
                setattr(parent, name, OneChannel(convs))
        if type(parent) is MergedGuideBlock:
            parent.add_module("score", OneChannel([parent.score]))

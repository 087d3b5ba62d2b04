"""Forms of modules that compute the same, faster where a compiler fuses them on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.models.pvt_v2 import MlpWithDepthwiseConv
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


GELU = (1.59565627, 0.07293758, -2.4971887e-4, -6.1162912e-5, 2.2382175e-6)
"""Of a polynomial p in x²: ln Φ(x) − ln Φ(−x), the logit of the normal distribution, over x."""


def gelu(x: Tensor) -> Tensor:
    """GELU but for 4e-6, as x · sigmoid(x · p(x²)): a third of the instructions of its erf."""
    square: Any = x.square()
    polynomial = GELU[-1]
    for factor in GELU[-2::-1]:
        polynomial = polynomial * square + factor
    return x * (x * polynomial).sigmoid()


class SummedMlp(nn.Module):
    """PVT-v2's feed-forward block, its 3 × 3 depthwise convolution and GELU in one kernel: a sum of
    nine shifted maps, in float32.

    Args:
        block: With GELU and no other activation.
    """

    def __init__(self, block: MlpWithDepthwiseConv):
        super().__init__()
        self.fc1, self.fc2 = block.fc1, block.fc2
        conv = cast(Any, block.dwconv)
        self.taps = nn.Parameter(conv.weight.float().flatten(1).T.contiguous(), False)
        self.bias = nn.Parameter(conv.bias.float(), False)

    def forward(self, x: Tensor, feat_size: Sequence[int]) -> Tensor:
        """Tokens (N, h·w, C) → (N, h·w, C)."""
        x = self.fc1(x)
        height, width = feat_size
        padded = F.pad(x.unflatten(1, (height, width)), (0, 0, 1, 1, 1, 1))
        total: Tensor = self.bias
        for tap in range(9):
            row, column = divmod(tap, 3)
            shifted = padded[:, row : row + height, column : column + width]
            total = total + shifted.float() * self.taps[tap]
        return self.fc2(gelu(total).to(x.dtype).flatten(1, 2))


def sum_depthwise(module: nn.Module) -> None:
    """Make PVT-v2's feed-forward blocks :class:`SummedMlp`, in a copy."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if (
                type(child) is MlpWithDepthwiseConv
                and isinstance(child.relu, nn.Identity)
                and type(child.act) is nn.GELU
                and child.act.approximate == "none"
            ):
                setattr(parent, name, SummedMlp(child))


class ShortGELU(nn.Module):
    """:func:`gelu` in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return gelu(x.float()).to(x.dtype)


def shorten_gelu(module: nn.Module) -> None:
    """Make GELUs :class:`ShortGELU`, in a copy."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.GELU and child.approximate == "none":
                setattr(parent, name, ShortGELU())


FORMS: list[Callable[[nn.Module], None]] = [merge_heads]
"""What is done with copies of which compiled code is made for a GPU."""

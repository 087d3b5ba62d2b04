"""PraNet: parallel reverse attention (Fan et al., MICCAI 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from codmoe.models.experts.base import Expert, check_output_stride
from codmoe.models.layers import PartialDecoder, ReceptiveFieldBlock, conv_bn, resize_to
from codmoe.registry import MODELS
from codmoe.structures import ExpertOutput


class ReverseAttention(nn.Module):
    """Erases what is found already, and predicts the residual of the rest.

    Args:
        in_channels: Channels of the raw backbone level.
        channels: Inner width.
        kernel: Kernel of the inner convolutions.
        depth: Number of inner convolutions.
        head_kernel: Kernel of the last convolution to one channel.
        norm: Whether batch norm ends the residual, as in the paper.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        kernel: int,
        depth: int,
        head_kernel: int,
        norm: bool = True,
    ):
        super().__init__()
        self.reduce = conv_bn(in_channels, channels, 1, act=False)
        self.refine = nn.Sequential(*(conv_bn(channels, channels, kernel) for _ in range(depth)))
        if norm:
            self.head = conv_bn(channels, 1, head_kernel, act=False)
        else:
            self.head = nn.Conv2d(channels, 1, head_kernel, padding=head_kernel // 2)

    def forward(self, feature: Tensor, coarse: Tensor) -> Tensor:
        """Level (N, C, h, w) and logits of any size → logits (N, 1, h, w)."""
        coarse = resize_to(coarse, feature)
        return self.head(self.refine(self.reduce((1 - coarse.sigmoid()) * feature))) + coarse


@MODELS.register_module()
class PraNetExpert(Expert):
    """A parallel partial decoder gives a global map; reverse attention refines it level by level.

    Args:
        channels: Width of the partial decoder. 128 gives 14.9 M parameters on PVT-v2-B2; the
            paper's is 32.
        deep_channels: Width of reverse attention at stride 32, 256 in the paper.
        shallow_channels: Width of reverse attention at strides 16, 8 and 4, 64 in the paper.
        residual_norm: Whether batch norm ends each residual, as in the paper. False, a deviation,
            makes it a plain convolution: the scale of a normalised map of one channel is one
            number, which hardly moves in a short training.
        output_stride: 8 as in the paper; 4, a deviation, refines once more, on the raw f1.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: int = 128,
        deep_channels: int = 256,
        shallow_channels: int = 64,
        input_scale: float = 1.0,
        residual_norm: bool = True,
        output_stride: int = 8,
    ):
        super().__init__(in_channels=in_channels, input_scale=input_scale)
        check_output_stride(self, output_stride)
        c1, c2, c3, c4 = in_channels
        self.receptive = nn.ModuleList(ReceptiveFieldBlock(c, channels) for c in (c2, c3, c4))
        self.decoder = PartialDecoder(channels, chained=False)
        deep = partial(ReverseAttention, kernel=5, depth=3, head_kernel=1, norm=residual_norm)
        shallow = partial(ReverseAttention, kernel=3, depth=2, head_kernel=3, norm=residual_norm)
        self.reverse = nn.ModuleList([deep(c4, deep_channels)])
        for channels_in in (c3, c2) if output_stride == 8 else (c3, c2, c1):
            self.reverse.append(shallow(channels_in, shallow_channels))

    def forward(self, images: Tensor, pyramids: Sequence[Sequence[Tensor]]) -> ExpertOutput:
        """See :class:`Expert`; logits at ``output_stride``, side maps: global, then each stride
        from 32 on.
        """
        levels = pyramids[0]
        features = [block(f) for block, f in zip(self.receptive, levels[1:], strict=True)]
        maps = [self.decoder(*features)]
        # From f4 on: to f2, or to f1.
        for attention, level in zip(self.reverse, reversed(levels), strict=False):
            maps.append(attention(level, maps[-1]))
        return ExpertOutput(logits=maps[-1], side_logits=maps[:-1])

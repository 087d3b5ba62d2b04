"""Building blocks that several experts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that normalises a single value per channel with its running statistics.

    Sparse routing can leave one image, whose deepest map is 1 × 1 at half scale: such a batch has
    no variance, and torch refuses it in training.

    Batches are not counted: that is a kernel for each of 243 layers a step, and only a momentum of
    None would read the count.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) → (N, C, h, w)."""
        from_batch = self.training and x.numel() > x.shape[1]
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=from_batch,
            momentum=0.0 if self.momentum is None else self.momentum,
            eps=self.eps,
        )


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int] = 1,
    *,
    dilation: int = 1,
    stride: int = 1,
    act: bool = True,
) -> ConvModule:
    """Convolution with "same" padding, batch norm and, with ``act``, ReLU: mmcv's ConvModule."""
    sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
    return ConvModule(
        in_channels,
        out_channels,
        sizes,
        stride=stride,
        padding=tuple(dilation * (k - 1) // 2 for k in sizes),
        dilation=dilation,
        norm_cfg=dict(type=BatchNorm),
        act_cfg=dict(type="ReLU") if act else None,
    )


class PaddedConv(nn.Module):
    """A convolution with channels of zeros up to the next multiple of 8, which tensor cores take
    without a copy; for evaluation.

    Args:
        conv: The convolution, ungrouped.
        outputs: Whether outputs are padded, too: whoever reads them has weights of zero for these.
    """

    def __init__(self, conv: nn.Conv2d, *, outputs: bool):
        super().__init__()
        out, inner = conv.weight.shape[:2]
        more = -out % 8 if outputs else 0
        self.weight = nn.Parameter(F.pad(conv.weight, (0, 0, 0, 0, 0, -inner % 8, 0, more)), False)
        bias = conv.weight.new_zeros(out) if conv.bias is None else conv.bias
        self.bias = nn.Parameter(F.pad(bias, (0, more)), False)
        self.stride, self.padding = conv.stride, conv.padding

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w), with channels of zeros or without → (N, C', h', w')."""
        more = self.weight.shape[1] - x.shape[1]
        x = F.pad(x, (0, 0, 0, 0, 0, more)) if more else x
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


def pad_channels(module: ConvModule, *, outputs: bool) -> None:
    """Make the convolution of a module a :class:`PaddedConv`, in place; outputs are padded only
    where its batch norm is folded away.
    """
    folded = not module.with_norm or isinstance(module.norm, nn.Identity)
    module.conv = PaddedConv(module.conv, outputs=outputs and folded)


def resize_to(x: Tensor, reference: Tensor | Sequence[int]) -> Tensor:
    """Bilinear resize of (N, C, h, w) to the spatial size of ``reference``; a no-op if it fits."""
    size = tuple(reference.shape[-2:]) if isinstance(reference, Tensor) else tuple(reference)
    height, width = x.shape[-2:]
    if (height, width) == size:
        return x
    if torch.compiler.is_dynamo_compiling() and x.requires_grad:
        # Of the plain resize the compiler would add up the gradient by atomic operations, in a
        # buffer for each of four neighbours.
        if size == (2 * height, 2 * width):
            return Doubled.apply(x)
        if x.shape[1] == 1:
            return resize_map(x, size).to(x.dtype)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class Doubled(torch.autograd.Function):
    """Bilinear resize of (N, C, h, w) to (N, C, 2h, 2w), whose gradient is gathered: of each pixel
    from the four by four that read it, in float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """(N, C, h, w) → (N, C, 2h, 2w)."""
        ctx.dtype, ctx.last = x.dtype, x.is_contiguous(memory_format=torch.channels_last)
        size = 2 * x.shape[-2], 2 * x.shape[-1]
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """(N, C, 2h, 2w) → (N, C, h, w)."""
        # In the order of memory: what the compiler keeps on the way then lies as the map does.
        total = gradient.movedim(1, 3) if ctx.last else gradient
        total = total.to(torch.promote_types(gradient.dtype, torch.float32))
        for dim in (2, 1) if ctx.last else (3, 2):
            side = total.shape[dim]
            even = torch.arange(0, side, 2, device=total.device)
            before = total.index_select(dim, (even - 1).clamp(min=0))
            after = total.index_select(dim, (even + 2).clamp(max=side - 1))
            first, second = total.unflatten(dim, (-1, 2)).unbind(dim + 1)
            total = 0.75 * (first + second) + 0.25 * (before + after)
        return (total.movedim(3, 1) if ctx.last else total).to(ctx.dtype)


def resize_map(x: Tensor, size: Sequence[int]) -> Tensor:
    """:func:`resize_to` of maps of one channel, (N, 1, h, w) → (N, 1, *size), in float32.

    As products with a matrix for each side, so that the backward pass is products, too. That of a
    bilinear resize adds up pixel by pixel.
    """
    size = tuple(size)
    if tuple(x.shape[-2:]) == size:
        return x.float()
    with torch.autocast(x.device.type, enabled=False):
        rows, columns = (
            F.interpolate(torch.eye(own, device=x.device)[None], size=new, mode="linear")[0]
            for own, new in zip(x.shape[-2:], size, strict=True)
        )
        return rows.T @ x.float() @ columns


class ReceptiveFieldBlock(nn.Module):
    """Four parallel branches of growing receptive field (Liu et al., RFBNet, ECCV 2018), as used by
    PraNet and SINet: 1×1; then 1×k, k×1 and a 3×3 of dilation k for k = 3, 5, 7; with a residual.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.branches = nn.ModuleList([conv_bn(in_channels, channels, 1, act=False)])
        for k in (3, 5, 7):
            self.branches.append(
                nn.Sequential(
                    conv_bn(in_channels, channels, 1, act=False),
                    conv_bn(channels, channels, (1, k), act=False),
                    conv_bn(channels, channels, (k, 1), act=False),
                    conv_bn(channels, channels, 3, dilation=k, act=False),
                )
            )
        self.fuse = conv_bn(4 * channels, channels, 3, act=False)
        self.residual = conv_bn(in_channels, channels, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) → (N, channels, h, w)."""
        branches = torch.cat([branch(x) for branch in self.branches], dim=1)
        return F.relu(self.fuse(branches) + self.residual(x))


class PartialDecoder(nn.Module):
    """Fuses strides 8, 16, 32 into one map by multiplying each level with its upsampled neighbours
    (Wu et al., Cascaded Partial Decoder, CVPR 2019).

    Args:
        channels: Channels of each of the three inputs.
        chained: Whether stride 8 is multiplied with the already fused stride-16 product (SINet-V2's
            neighbour connection) instead of with stride 32 itself (PraNet's parallel decoder).
    """

    def __init__(self, channels: int, *, chained: bool):
        super().__init__()
        c = channels
        self.chained = chained
        self.deep_to_mid = conv_bn(c, c, 3, act=False)
        self.deep_to_shallow = conv_bn(c, c, 3, act=False)
        self.mid_to_shallow = conv_bn(c, c, 3, act=False)
        self.deep_beside = conv_bn(c, c, 3, act=False)
        self.fuse_mid = conv_bn(2 * c, 2 * c, 3, act=False)
        self.mid_beside = conv_bn(2 * c, 2 * c, 3, act=False)
        self.fuse_shallow = conv_bn(3 * c, 3 * c, 3, act=False)
        self.head = nn.Sequential(conv_bn(3 * c, 3 * c, 3, act=False), nn.Conv2d(3 * c, 1, 1))

    def forward(self, shallow: Tensor, mid: Tensor, deep: Tensor) -> Tensor:
        """Three (N, C, h, w) maps at strides 8, 16, 32 → logits (N, 1, h8, w8)."""
        mid_product = self.deep_to_mid(resize_to(deep, mid)) * mid
        carried = mid_product if self.chained else deep
        shallow_product = (
            self.deep_to_shallow(resize_to(carried, shallow))
            * self.mid_to_shallow(resize_to(mid, shallow))
            * shallow
        )
        mid_fused = self.fuse_mid(
            torch.cat([mid_product, self.deep_beside(resize_to(deep, mid))], dim=1)
        )
        fused = torch.cat([shallow_product, self.mid_beside(resize_to(mid_fused, shallow))], dim=1)
        return self.head(self.fuse_shallow(fused))

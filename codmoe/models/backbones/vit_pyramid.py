"""Plain vision transformers as a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from codmoe.models.backbones.base import STRIDES, Backbone, create_timm, laid_out_as
from codmoe.models.layers import resize_to
from codmoe.registry import MODELS


@MODELS.register_module()
class ViTPyramid(Backbone):
    """A plain ViT through a simple feature pyramid (Li et al., ViTDet, ECCV 2022).

    The token map is carried to four scales by transposed convolutions and pooling, then resized to
    exactly stride 4, 8, 16, 32: a patch of 14 pixels gives strides 3.5, 7, 14, 28 by itself, and
    the experts count on the contract.

    Args:
        name: timm name of a plain ViT, e.g. ``"vit_small_patch14_dinov2"``.
        pretrained: Whether to fetch timm's weights from the hub.
        checkpoint: Local weights file in timm's key names instead of the download.
        image_size: Side in pixels that the position embedding is laid out for; a multiple of the
            patch size (448 = 32 × 14). Other sizes are interpolated at run time.
        channels: Channels of the four maps; the default is PVT-v2-B2's, so experts keep their size.
        layers: Blocks whose tokens feed the four levels, shallow to deep; None takes the last block
            for all four, as ViTDet does.
        timm_args: Further arguments of ``timm.create_model``.
    """

    def __init__(
        self,
        *,
        name: str,
        pretrained: bool = False,
        checkpoint: str | None = None,
        image_size: int = 448,
        channels: Sequence[int] = (64, 128, 320, 512),
        layers: Sequence[int] | None = None,
        timm_args: dict | None = None,
    ):
        super().__init__()
        self.name = name
        if len(channels) != len(STRIDES):
            raise ValueError(f"backbone.channels={channels} needs four numbers, one a stride")
        first, second, third, fourth = channels
        self.channels = (first, second, third, fourth)
        body: Any = create_timm(
            name,
            pretrained=pretrained,
            checkpoint=checkpoint,
            num_classes=0,
            img_size=image_size,
            dynamic_img_size=True,
            **(timm_args or {}),
        )
        self.body = body
        self.size_divisor = body.patch_embed.patch_size[0]
        depth = len(body.blocks)
        self.layers = list(layers) if layers is not None else [depth - 1] * len(STRIDES)
        if len(self.layers) != len(STRIDES) or not all(0 <= i < depth for i in self.layers):
            raise ValueError(
                f"backbone.layers={layers} needs four block numbers from 0 to {depth - 1}"
            )
        self.scales = nn.ModuleList(_scale(body.embed_dim, s) for s in STRIDES)
        widths = [body.embed_dim // d for d in (4, 2, 1, 1)]
        self.outputs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, out, 1, bias=False),
                LayerNorm2d(out),
                nn.Conv2d(out, out, 3, padding=1, bias=False),
                LayerNorm2d(out),
            )
            for width, out in zip(widths, self.channels, strict=True)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """See :class:`Backbone`."""
        wanted = sorted(set(self.layers))
        body: Any = self.body
        maps = body.forward_intermediates(
            images, indices=wanted, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return _pyramid_of(self, images, dict(zip(wanted, maps, strict=True)))

    def begin(self, images: Tensor, own_blocks: int) -> list[Tensor]:
        """See :class:`Backbone`; the images, then the tokens of early levels and of the last block
        before the end, without the final norm.
        """
        body: Any = self.body
        last = self._first_own(own_blocks) - 1
        wanted = sorted({layer for layer in self.layers if layer < last} | {last})
        found = body.forward_intermediates(
            images,
            indices=wanted,
            norm=False,
            output_fmt="NLC",
            intermediates_only=True,
            return_prefix_tokens=True,
            stop_early=True,
        )
        if body.num_prefix_tokens:  # timm cuts off the class token, which blocks to come read
            found = [torch.cat([prefix, tokens], dim=1) for tokens, prefix in found]
        return [images, *found]

    def ending(self, own_blocks: int) -> nn.Module:
        """See :class:`Backbone`."""
        return ViTEnding(self, self._first_own(own_blocks))

    def _first_own(self, own_blocks: int) -> int:
        depth = len(self.body.blocks)
        self.check_own_blocks(own_blocks, depth - 1, "blocks")
        return depth - own_blocks


class ViTEnding(nn.Module):
    """The last blocks of a :class:`ViTPyramid` and what makes four maps of their tokens."""

    def __init__(self, backbone: ViTPyramid, first: int):
        super().__init__()
        body: Any = backbone.body
        self.body = nn.ModuleDict(dict(blocks=body.blocks[first:], norm=body.norm))
        self.scales, self.outputs = backbone.scales, backbone.outputs
        self.first, self.layers = first, backbone.layers
        self.prefix, self.patch = body.num_prefix_tokens, backbone.size_divisor

    def forward(self, begun: Sequence[Tensor]) -> list[Tensor]:
        """See :meth:`Backbone.ending`."""
        images, *early = begun
        early_layers = sorted({n for n in self.layers if n < self.first - 1} | {self.first - 1})
        tokens = dict(zip(early_layers, early, strict=True))
        x = early[-1]
        for number, block in enumerate(self.body["blocks"].children(), self.first):
            tokens[number] = x = block(x)
        height, width = (side // self.patch for side in images.shape[-2:])
        maps = {}
        for layer in set(self.layers):
            normed = self.body["norm"](tokens[layer])[:, self.prefix :]
            maps[layer] = normed.transpose(1, 2).unflatten(2, (height, width)).contiguous()
        return _pyramid_of(self, images, maps)


def _pyramid_of(
    part: ViTPyramid | ViTEnding, images: Tensor, maps: Mapping[int, Tensor]
) -> list[Tensor]:
    """Four levels of the maps of some blocks, by their numbers."""
    pyramid = []
    for layer, scale, output, stride in zip(
        part.layers, part.scales, part.outputs, STRIDES, strict=True
    ):
        height, width = (-(-side // stride) for side in images.shape[-2:])
        pyramid.append(output(resize_to(scale(maps[layer]), (height, width))))
    return laid_out_as(images, pyramid)


def _scale(dim: int, stride: int) -> nn.Module:
    """From the token map (stride about 16) to about ``stride``."""
    if stride == 4:
        return nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 2, 2, stride=2),
            LayerNorm2d(dim // 2),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, dim // 4, 2, stride=2),
        )
    if stride == 8:
        return nn.ConvTranspose2d(dim, dim // 2, 2, stride=2)
    # Rounded up: otherwise an odd token map would lose its last row and column.
    return nn.Identity() if stride == 16 else nn.MaxPool2d(2, ceil_mode=True)

"""UJSC: uncertainty-aware joint salient and camouflaged object detection (Li et al., CVPR 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from codmoe.models.experts.base import Expert
from codmoe.models.layers import conv_bn, resize_to
from codmoe.registry import MODELS
from codmoe.structures import ExpertOutput


class DilatedSum(nn.Module):
    """Sum of four dilated 3×3 convolutions, as in DeepLab-v2."""

    def __init__(self, in_channels: int, out_channels: int, dilations: Sequence[int]):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels, 3, padding=d, dilation=d) for d in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) → (N, out_channels, h, w)."""
        return sum(branch(x) for branch in self.branches)


class PositionAttention(nn.Module):
    """Self-attention over positions with a gate that starts at zero (DANet, CVPR 2019)."""

    def __init__(self, channels: int):
        super().__init__()
        inner = max(channels // 8, 1)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) → (N, C, h, w)."""
        query, key, value = (
            m(x).flatten(2).transpose(1, 2) for m in (self.query, self.key, self.value)
        )
        attended = self._attend(query, key, value)
        return self.gamma * attended.transpose(1, 2).reshape_as(x) + x

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # DANet does not divide by the root of the width; scale=1 keeps to it.
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)


class ChannelAttentionResidual(nn.Module):
    """Two 3×3 convolutions, a squeeze gate and a residual (Zhang et al., RCAN, ECCV 2018)."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        inner = max(channels // reduction, 4)
        self.body = nn.Sequential(
            conv_bn(channels, channels, 3), conv_bn(channels, channels, 3, act=False)
        )
        self.gate = nn.Sequential(
            nn.Conv2d(channels, inner, 1), nn.ReLU(), nn.Conv2d(inner, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) → (N, C, h, w)."""
        y = self.body(x)
        return y * self.gate(y.mean((2, 3), keepdim=True)) + x


class FusionDecoder(nn.Module):
    """Fuses four levels from deep to shallow: concatenate, channel attention, reduce.

    Args:
        channels: Width of every level.
        dense: Whether a stage reads the results of all stages before it, and the deepest level, as
            in the released code, or that of the last one alone.
    """

    def __init__(self, channels: int, *, dense: bool = False):
        super().__init__()
        self.dense = dense
        widths = [channels * (i + 2 if dense else 2) for i in range(3)]
        self.stages = nn.ModuleList(
            nn.Sequential(ChannelAttentionResidual(width), conv_bn(width, channels, 3))
            for width in widths
        )
        self.head = DilatedSum(channels, 1, (6, 12, 18, 24))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Maps (N, C, ·, ·) from shallow to deep → logits (N, 1, h, w) at the first one's size."""
        done = [levels[-1]]
        for stage, level in zip(self.stages, reversed(levels[:-1]), strict=True):
            before = done if self.dense else done[-1:]
            done.append(stage(torch.cat([*(resize_to(x, level) for x in before), level], dim=1)))
        return self.head(done[-1])


class HolisticAttention(nn.Module):
    """Gates a feature by a blurred, min-max normalised map maxed with itself (CPD, CVPR 2019).

    Args:
        size: Side of the Gaussian in pixels of the map, odd.
        sigma: Its standard deviation in pixels.
    """

    def __init__(self, size: int = 31, sigma: float = 4.0):
        super().__init__()
        x = torch.arange(size, dtype=torch.float32) - size // 2
        kernel = torch.exp(-x.square() / (2 * sigma**2))
        self.kernel: Tensor
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)

    def forward(self, logits: Tensor, feature: Tensor) -> Tensor:
        """Logits (N, 1, ·, ·) and feature (N, C, h, w) → gated feature (N, C, h, w)."""
        probability = resize_to(logits, feature).sigmoid()
        size = self.kernel.numel()
        kernel = self.kernel.to(probability.dtype)
        soft = F.conv2d(probability, kernel.view(1, 1, 1, size), padding=(0, size // 2))
        soft = F.conv2d(soft, kernel.view(1, 1, size, 1), padding=(size // 2, 0))
        low, high = soft.amin((2, 3), keepdim=True), soft.amax((2, 3), keepdim=True)
        soft = (soft - low) / (high - low).clamp(min=1e-4)
        return feature * torch.maximum(soft, probability)


@MODELS.register_module()
class UJSCExpert(Expert):
    """Two decoders, the second after holistic attention, and an adversarial loss.

    The original re-runs two stages of its ResNet on the attended stride-8 feature. The pyramid here
    is shared by all experts, so two strided blocks carry that feature on to strides 16 and 32,
    where it joins the pyramid's own.

    Where a prediction is to be trusted, ``confidence(images, logits.sigmoid()).sigmoid()`` says; it
    is not computed by itself, for nothing in the mixture reads it.

    Args:
        channels: Width. 128, or 96 with ``dense``, gives 15 M parameters on PVT-v2-B2 and is the
            default; the paper's is 32.
        confidence_channels: Width of the discriminator.
        adversarial_weight: λ of the decoder's adversarial term, 0.1 in the paper.
        dense: Whether every stage of a decoder reads all stages before it, as in the released code,
            or the last one alone.
        input_scale: See :class:`Expert`. The discriminator sees the image at scale 1.
    """

    loss_arguments = ("adversarial_weight",)

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: int | None = None,
        confidence_channels: int = 64,
        adversarial_weight: float = 0.1,
        dense: bool = False,
        input_scale: float = 1.0,
    ):
        super().__init__(in_channels=in_channels, input_scale=input_scale)
        if channels is None:
            channels = 96 if dense else 128
        self.adversarial_weight = adversarial_weight
        c = channels
        self.reduce = nn.ModuleList(DilatedSum(i, c, (3, 6, 12, 18)) for i in in_channels)
        self.position = nn.ModuleList(PositionAttention(c) for _ in range(2))
        self.initial = FusionDecoder(c, dense=dense)
        self.holistic = HolisticAttention()
        self.carry = nn.ModuleList(
            nn.Sequential(conv_bn(c, c, 3, stride=2), conv_bn(c, c, 3)) for _ in range(2)
        )
        self.join = nn.ModuleList(conv_bn(2 * c, c, 3) for _ in range(2))
        self.refined = FusionDecoder(c, dense=dense)
        self.confidence = ConfidenceEstimator(confidence_channels)

    def forward(self, images: Tensor, pyramids: Sequence[Sequence[Tensor]]) -> ExpertOutput:
        """See :class:`Expert`; logits at stride 4, one side map (initial)."""
        f1, f2, f3, f4 = (reduce(f) for reduce, f in zip(self.reduce, pyramids[0], strict=True))
        f3, f4 = self.position[0](f3), self.position[1](f4)
        initial = self.initial([f1, f2, f3, f4])
        g2 = self.holistic(initial, f2)
        g3 = self.join[0](torch.cat([resize_to(self.carry[0](g2), f3), f3], dim=1))
        g4 = self.join[1](torch.cat([resize_to(self.carry[1](g3), f4), f4], dim=1))
        logits = self.refined([f1, g2, g3, g4])
        return ExpertOutput(logits=logits, side_logits=[initial], extra=dict(images=images))

    def loss(self, output: ExpertOutput, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Structure loss on both maps, adversarial term of the decoder, loss of the discriminator.

        See :class:`Expert`. One optimizer serves both sides: neither term reaches the other's
        parameters.
        """
        losses = super().loss(output, target, progress)
        images, maps = output.extra["images"], output.logits.sigmoid()
        losses["adversarial"] = self.adversarial_weight * self.confidence.adversarial_loss(
            images, maps
        )
        losses["confidence"] = self.confidence.own_loss(images, maps, target)
        return losses


class ConfidenceEstimator(nn.Module):
    """Fully convolutional discriminator over image and map, five convolutions.

    Group norm instead of the paper's batch norm: the network sees predictions and ground truths in
    turn, whose statistics a running mean would mix up.

    Args:
        channels: Width, 64 in the paper.
    """

    def __init__(self, channels: int = 64):
        super().__init__()
        layers: list[nn.Module] = []
        for i, stride in enumerate((2, 2, 1, 1)):
            layers += [
                nn.Conv2d(4 if i == 0 else channels, channels, 3, stride=stride, padding=1),
                nn.GroupNorm(math.gcd(8, channels), channels),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, images: Tensor, maps: Tensor) -> Tensor:
        """Images (N, 3, H, W) and probabilities (N, 1, h, w) → logits (N, 1, H/4, W/4)."""
        return self.layers(torch.cat([images, resize_to(maps, images)], dim=1))

    def adversarial_loss(self, images: Tensor, maps: Tensor) -> Tensor:
        """How far the maps are from being taken for ground truth.

        The discriminator's parameters are held fixed and the maps are not: the gradient goes to the
        decoder that made them. (The released code detaches the maps, so its decoder learns
        nothing.)
        """
        # As parameters, which compiled code tells from other tensors.
        fixed: dict[str, Tensor] = {
            name: nn.Parameter(p.detach(), requires_grad=False)
            for name, p in self.named_parameters()
        }
        judged = functional_call(self, fixed, (images, maps))
        return F.binary_cross_entropy_with_logits(judged.float(), torch.ones_like(judged).float())

    def own_loss(self, images: Tensor, maps: Tensor, target: Tensor) -> Tensor:
        """Tells predictions (0, detached) from ground truth (1)."""
        fake = self(images, maps.detach()).float()
        real = self(images, target).float()
        return 0.5 * (
            F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
            + F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
        )

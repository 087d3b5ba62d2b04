"""ZoomNet: mixed-scale zooming (Pang et al., Zoom In and Out, CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codmoe.models.experts.base import Expert
from codmoe.models.layers import conv_bn, resize_to
from codmoe.models.losses.segmentation import UncertaintyAwareLoss
from codmoe.registry import MODELS
from codmoe.structures import ExpertOutput


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1×1, three dilated 3×3 and a global branch, concatenated."""

    def __init__(self, in_channels: int, channels: int, dilations: Sequence[int] = (2, 5, 7)):
        super().__init__()
        self.branches = nn.ModuleList([conv_bn(in_channels, channels, 1)])
        self.branches.extend(conv_bn(in_channels, channels, 3, dilation=d) for d in dilations)
        # No batch norm here: sparse routing can leave one image, and one value a channel has none.
        self.pooled = nn.Sequential(nn.Conv2d(in_channels, channels, 1), nn.ReLU())
        self.fuse = conv_bn((len(dilations) + 2) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) → (N, channels, h, w)."""
        pooled = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return self.fuse(torch.cat([branch(x) for branch in self.branches] + [pooled], dim=1))


class ScaleIntegrationUnit(nn.Module):
    """Mixes large, middle and small scale onto the middle one by a per-pixel three-way softmax."""

    def __init__(self, channels: int):
        super().__init__()
        c = channels
        self.large_before = conv_bn(c, c, 5)
        self.large_after = conv_bn(c, c, 3)
        self.middle = conv_bn(c, c, 3)
        self.small_before = conv_bn(c, c, 3)
        self.small_after = conv_bn(c, c, 3)
        self.attention = nn.Sequential(
            conv_bn(3 * c, c, 1), conv_bn(c, c, 3), conv_bn(c, c, 3), nn.Conv2d(c, 3, 1)
        )

    def forward(self, small: Tensor, middle: Tensor, large: Tensor) -> Tensor:
        """Three (N, C, ·, ·) maps → (N, C, h, w) at the middle one's size."""
        size = middle.shape[-2], middle.shape[-1]
        large = self.large_before(large)
        scales = [
            self.large_after(self._shrink(large, size)),
            self.middle(middle),
            self.small_after(resize_to(self.small_before(small), size)),
        ]
        weights = self.attention(torch.cat(scales, dim=1)).softmax(dim=1)
        return sum(w * s for w, s in zip(weights.split(1, dim=1), scales, strict=True))

    def _shrink(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.adaptive_max_pool2d(x, size) + F.adaptive_avg_pool2d(x, size)


class HierarchicalMixedUnit(nn.Module):
    """Groups of channels that pass a part of themselves on to the next, gated per channel.

    Each group's chunk, with what the group before it handed on, is convolved into three parts of
    C/2 channels, as in the paper: one is emitted, one handed on, one feeds the gate. The last group
    hands nothing on.
    """

    def __init__(self, channels: int, *, groups: int):
        super().__init__()
        hidden = channels // 2
        self.groups = groups
        self.expand = conv_bn(channels, groups * hidden, 1)
        self.interact = nn.ModuleList(
            conv_bn(
                hidden if i == 0 else 2 * hidden, 2 * hidden if i == groups - 1 else 3 * hidden, 3
            )
            for i in range(groups)
        )
        self.gate = nn.Sequential(
            nn.Conv2d(groups * hidden, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, groups * hidden, 1),
            nn.Softmax(dim=1),
        )
        self.fuse = conv_bn(groups * hidden, channels, 3, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) → (N, C, h, w)."""
        emitted: list[Tensor] = []
        gates: list[Tensor] = []
        handed_on: Tensor | None = None
        for chunk, conv in zip(self.expand(x).chunk(self.groups, 1), self.interact, strict=True):
            if handed_on is not None:
                chunk = torch.cat([chunk, handed_on], dim=1)
            parts = conv(chunk)
            if len(emitted) < self.groups - 1:
                out, handed_on, gate = parts.chunk(3, dim=1)
            else:
                out, gate = parts.chunk(2, dim=1)
            emitted.append(out)
            gates.append(gate)
        gate = self.gate(torch.cat(gates, dim=1).mean((2, 3), keepdim=True))
        return F.relu(self.fuse(torch.cat(emitted, dim=1) * gate) + x)


@MODELS.register_module()
class ZoomNetExpert(Expert):
    """Looks at the image at three scales through the one shared backbone.

    The paper's two further scales cost 0.25 + 2.25 = 2.5 times the backbone on top, for routed
    images only.

    Args:
        channels: Width. 128 gives 15.4 M parameters on PVT-v2-B2; the paper's is 64.
        groups: Groups of the hierarchical mixed units.
        ual_weight: Final weight of the uncertainty-awareness loss.
        ual_start: Share of that loss's ramp that is done when training begins; 1.0 in a stage that
            goes on from one in which it was done.
        segmentation_loss: ``"bce"`` as in the paper, or ``"structure"`` as the other experts use.
        input_scales: The three image scales in ascending order; the map has the middle one's size.
    """

    input_scales: tuple[float, ...] = (0.5, 1.0, 1.5)
    loss_arguments = ("ual_weight", "ual_start", "segmentation_loss")

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: int = 128,
        groups: int = 6,
        ual_weight: float = 1.0,
        ual_start: float = 0.0,
        segmentation_loss: str = "bce",
        input_scales: Sequence[float] = (0.5, 1.0, 1.5),
    ):
        super().__init__(in_channels=in_channels)
        self.input_scales = self.check_scales("input_scales", input_scales)
        # Distinct, too: who makes the pyramids makes one a scale.
        if len(self.input_scales) != 3 or list(self.input_scales) != sorted(set(self.input_scales)):
            raise ValueError(
                f"ZoomNetExpert: input_scales={tuple(input_scales)} must be three in ascending "
                "order, e.g. (0.5, 1.0, 1.5)"
            )
        if segmentation_loss not in ("bce", "structure"):
            raise ValueError(
                f"ZoomNetExpert: segmentation_loss={segmentation_loss!r} is unknown; use 'bce' or "
                "'structure'"
            )
        self.segmentation_loss = segmentation_loss
        c = channels
        self.reduce = nn.ModuleList(conv_bn(level, c, 3) for level in in_channels[:-1])
        self.reduce.append(ASPP(in_channels[-1], c))
        self.integrate = nn.ModuleList(ScaleIntegrationUnit(c) for _ in in_channels)
        self.mix = nn.ModuleList(HierarchicalMixedUnit(c, groups=groups) for _ in in_channels)
        # Without the paper's ReLU before the last convolution, which learnt slowly in miniature
        # (projects/earlier_studies.md): where it cuts a feature off, the logit is the bias alone.
        inner = max(c // 2, 8)
        self.head = nn.Sequential(conv_bn(c, inner, 3, act=False), nn.Conv2d(inner, 1, 1))
        self.uncertainty_loss = UncertaintyAwareLoss(weight=ual_weight, start=ual_start)

    def forward(self, images: Tensor, pyramids: Sequence[Sequence[Tensor]]) -> ExpertOutput:
        """See :class:`Expert`; logits at stride 2 of the middle scale, upsampled before the last
        two convolutions.
        """
        x: Tensor | None = None
        for level in reversed(range(4)):
            small, middle, large = (self.reduce[level](pyramid[level]) for pyramid in pyramids)
            merged = self.integrate[level](small, middle, large)
            x = self.mix[level](merged if x is None else merged + resize_to(x, merged))
        assert x is not None
        height, width = x.shape[-2:]
        return ExpertOutput(logits=self.head(resize_to(x, (2 * height, 2 * width))))

    def loss(self, output: ExpertOutput, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Segmentation and uncertainty-awareness loss on the one output; see :class:`Expert`."""
        if self.segmentation_loss == "structure":
            losses = super().loss(output, target, progress)
        else:
            logits = resize_to(output.logits, target).float()
            losses = dict(bce=F.binary_cross_entropy_with_logits(logits, target.float()))
        losses["uncertainty"] = self.uncertainty_loss(output.logits, progress)
        return losses

"""The evidence router: texture, edge, context and frequency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from codmoe.messages import suggest
from codmoe.models.layers import BatchNorm, PaddedConv, conv_bn, pad_channels, resize_to
from codmoe.models.routers.base import Router
from codmoe.registry import MODELS

LUMA = (0.299, 0.587, 0.114)


def luminance(images: Tensor) -> Tensor:
    """Weighted channel mean of normalised images, (N, 3, H, W) → (N, 1, H, W) in float32."""
    # Numbers and not a tensor of them, which would be copied to the device at each call.
    red, green, blue = (w * c for w, c in zip(LUMA, images.float().split(1, dim=1), strict=True))
    return red + green + blue


def local_deviation(x: Tensor, kernel: int = 7) -> Tensor:
    """Standard deviation in a sliding window, same shape as ``x``, computed in float32."""
    x = x.float()
    variance = window_mean(x.square(), kernel) - window_mean(x, kernel).square()
    return variance.clamp(min=1e-6).sqrt()


def window_mean(x: Tensor, kernel: int) -> Tensor:
    """Mean in a sliding window without what lies outside, same shape as ``x``.

    Rows, then columns: the window is a rectangle at the border, too, so that is the same mean, for
    2k values read instead of k².
    """
    half = kernel // 2
    x = F.avg_pool2d(x, (kernel, 1), 1, (half, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, kernel), 1, (0, half), count_include_pad=False)


def mean_and_deviation(x: Tensor) -> Tensor:
    """Global mean and standard deviation of each channel, (N, C, h, w) → (N, 2C)."""
    x = x.float()
    return torch.cat([x.mean((2, 3)), x.var((2, 3), unbiased=False).clamp(min=1e-6).sqrt()], dim=1)


def convolving(images: Tensor, half: torch.dtype | None) -> torch.autocast:
    """Context in which convolutions are done in ``half``; None: as everything else."""
    # Without the cache of casts, which would be filled while a CUDA graph is captured.
    return torch.autocast(images.device.type, half, half is not None, cache_enabled=False)


class TextureBranch(nn.Module):
    """Local statistics of strides 4 and 8 and of the image: is object and ground one texture?"""

    def __init__(self, in_channels: Sequence[int], width: int):
        super().__init__()
        c1, c2 = in_channels[:2]
        self.image = conv_bn(2, width // 4, 3, stride=2)
        self.fine = conv_bn(2 * c1 + width // 4, width, 3, stride=2)
        self.coarse = conv_bn(2 * c2 + width, width, 3)
        self.mix = conv_bn(width, width, 3, stride=2)
        self.out = nn.Linear(2 * width, width)

    def forward(
        self, images: Tensor, pyramid: Sequence[Tensor], half: torch.dtype | None = None
    ) -> Tensor:
        """→ (N, width); convolutions in ``half``."""
        f1, f2 = pyramid[:2]
        grey = F.avg_pool2d(luminance(images), 2, ceil_mode=True)
        with convolving(images, half):
            x = resize_to(self.image(torch.cat([grey, local_deviation(grey)], dim=1)), f1)
            x = self.fine(self._beside(f1, x))
            x = self.mix(self.coarse(self._beside(f2, resize_to(x, f2))))
        return self.out(mean_and_deviation(x).to(self.out.weight.dtype))

    def pad(self) -> None:
        """Pad channels where the width leaves no multiple of 8; see :class:`PaddedConv`."""
        pad_channels(self.image, outputs=True)
        pad_channels(self.fine, outputs=False)

    @staticmethod
    def _beside(level: Tensor, x: Tensor) -> Tensor:
        return torch.cat([level.to(x.dtype), local_deviation(level).to(x.dtype), x], dim=1)


class EdgeBranch(nn.Module):
    """Fixed Sobel and Laplacian responses at three scales, learned convolutions on top."""

    def __init__(self, in_channels: Sequence[int], width: int):
        super().__init__()
        sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
        laplacian = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
        kernels = torch.stack([sobel, sobel.T, laplacian]).unsqueeze(1)
        self.kernels: Tensor
        self.register_buffer("kernels", kernels, persistent=False)
        self.scales = 3
        self.layers = nn.Sequential(
            conv_bn(4 * self.scales, width // 4, 3, stride=2),
            conv_bn(width // 4, width // 2, 3, stride=2),
            conv_bn(width // 2, width, 3, stride=2),
        )
        self.out = nn.Linear(2 * width, width)

    def responses(self, images: Tensor) -> Tensor:
        """Horizontal, vertical, their magnitude, Laplacian at each scale, (N, 12, H/2, W/2)."""
        maps = []
        grey = luminance(images)
        size = None
        for _ in range(self.scales):
            grey = F.avg_pool2d(grey, 2, ceil_mode=True)
            size = size or grey.shape[-2:]
            x = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), self.kernels)
            magnitude = (x[:, :1].square() + x[:, 1:2].square() + 1e-6).sqrt()
            maps.append(resize_to(torch.cat([x, magnitude], dim=1), size))
        return torch.cat(maps, dim=1)

    def forward(
        self, images: Tensor, pyramid: Sequence[Tensor], half: torch.dtype | None = None
    ) -> Tensor:
        """→ (N, width); convolutions in ``half``."""
        responses = self.responses(images)
        with convolving(images, half):
            x = self.layers(responses)
        return self.out(mean_and_deviation(x).to(self.out.weight.dtype))

    def pad(self) -> None:
        """As :meth:`TextureBranch.pad`."""
        for layer in self.layers:
            pad_channels(cast(ConvModule, layer), outputs=layer is not self.layers[-1])


class ContextBranch(nn.Module):
    """Attention pooling over strides 16 and 32: what is in the scene, and how large."""

    def __init__(self, in_channels: Sequence[int], width: int, heads: int = 4):
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(c, width) for c in in_channels[2:])
        self.level = nn.Parameter(torch.zeros(2, 1, width))
        self.query = nn.Parameter(torch.randn(1, 2, width) * 0.02)
        self.mix = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.pool = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(2 * width, width)

    def forward(
        self, images: Tensor, pyramid: Sequence[Tensor], half: torch.dtype | None = None
    ) -> Tensor:
        """→ (N, width)."""
        tokens = []
        for i, (project, level) in enumerate(zip(self.project, pyramid[2:], strict=True)):
            # 14 × 14 tokens tell the scene; the attention's cost grows with their square.
            level = self._shrink(level, (min(level.shape[-2], 14), min(level.shape[-1], 14)))
            tokens.append(project(level.flatten(2).transpose(1, 2)) + self.level[i])
        tokens = self.norm(self.mix(torch.cat(tokens, dim=1)))
        query = self.query.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
        pooled, _ = self.pool(query, tokens, tokens, need_weights=False)
        return self.out(pooled.flatten(1))

    def _shrink(self, level: Tensor, size: tuple[int, int]) -> Tensor:
        return F.adaptive_avg_pool2d(level, size)


class FrequencyBranch(nn.Module):
    """Radial and directional statistics of the 2-D spectrum of luminance.

    Args:
        in_channels: Not read; every branch is built alike.
        width: Output features.
        size: Side in pixels to which luminance is resized first, so that bins mean the same for
            every image size.
        radial: Number of frequency rings, linear from 0 to Nyquist.
        directional: Number of orientation sectors over 180°.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        width: int,
        *,
        size: int = 128,
        radial: int = 24,
        directional: int = 12,
    ):
        super().__init__()
        self.size = size
        fy = torch.fft.fftfreq(size).view(-1, 1).expand(size, size // 2 + 1)
        fx = torch.fft.rfftfreq(size).view(1, -1).expand(size, size // 2 + 1)
        radius = (fx.square() + fy.square()).sqrt()
        ring = (radius / 0.5 * radial).long()
        angle = torch.atan2(fy, fx) % math.pi
        sector = (angle / math.pi * directional).long().clamp(max=directional - 1)
        inside = (radius > 0) & (ring < radial)  # without the mean and the corners beyond Nyquist
        cell = (sector * radial + ring.clamp(max=radial - 1))[inside]
        self.inside: Tensor
        self.bins: Tensor
        self.window: Tensor
        self.register_buffer("inside", inside.flatten().nonzero().squeeze(1), persistent=False)
        cells = torch.zeros(len(cell), directional * radial)
        cells[torch.arange(len(cell)), cell] = 1
        self.register_buffer("bins", cells / cells.sum(0).clamp(min=1), persistent=False)
        window = torch.hann_window(size, periodic=False)
        self.register_buffer("window", window.view(1, -1) * window.view(-1, 1), persistent=False)
        features = directional * radial + directional + radial
        self.radial, self.directional = radial, directional
        self.layers = nn.Sequential(
            nn.LayerNorm(features),
            nn.Linear(features, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
        )

    def statistics(self, images: Tensor) -> Tensor:
        """Mean log power per (sector, ring), per sector and per ring, (N, features)."""
        size = (self.size, self.size)
        # Antialiased: aliasing would write high frequencies into low bins.
        grey = F.interpolate(luminance(images), size, mode="bilinear", antialias=True)
        grey = (grey - grey.mean((2, 3), keepdim=True)) * self.window
        power = torch.fft.rfft2(grey[:, 0]).abs().square().flatten(1)[:, self.inside]
        cells = torch.log(power + 1e-3) @ self.bins
        grid = cells.view(-1, self.directional, self.radial)
        return torch.cat([cells, grid.mean(2), grid.mean(1)], dim=1)

    def forward(
        self, images: Tensor, pyramid: Sequence[Tensor], half: torch.dtype | None = None
    ) -> Tensor:
        """→ (N, width)."""
        return self.layers(self.statistics(images))


BRANCHES = dict(
    texture=TextureBranch, edge=EdgeBranch, context=ContextBranch, frequency=FrequencyBranch
)


class Familiarity(nn.Module):
    """How like the images of training an image is: 1 for most of those, towards 0 far from all.

    It knows mean and deviation of each number of evidence on images that training validated on
    (:class:`FamiliarityHook`), and the distance that 95 % of them keep within. Beyond it
    familiarity falls exponentially. Before anything was learnt it is 1.

    Args:
        features: Numbers of evidence of an image.
        sharpness: Familiarity at 1 + d times that distance is exp(−sharpness · d).
    """

    quantile = 0.95

    def __init__(self, features: int, sharpness: float):
        super().__init__()
        self.sharpness = sharpness
        self.kept: list[Tensor] | None = None
        """Evidence of what runs through, where somebody collects it."""
        self.mean: Tensor
        self.deviation: Tensor
        self.edge: Tensor
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.register_buffer("edge", torch.zeros(()))  # 0: nothing was learnt yet

    def distance(self, evidence: Tensor) -> Tensor:
        """Root mean square of the deviations from the mean, (N, F) → (N,)."""
        return ((evidence - self.mean) / self.deviation).square().mean(1).sqrt()

    def forward(self, evidence: Tensor) -> Tensor:
        """(N, F) → (N,), in (0, 1]."""
        if self.kept is not None:
            self.kept.append(evidence.detach())
        excess = (self.distance(evidence) / self.edge.clamp(min=1e-6) - 1).clamp(min=0)
        return torch.where(self.edge > 0, (-self.sharpness * excess).exp(), 1.0)

    def learn(self, evidence: Tensor) -> None:
        """Takes images for known, (M, F); of one image nothing is learnt."""
        if len(evidence) < 2:  # it deviates from nothing
            return
        self.mean.copy_(evidence.mean(0))
        self.deviation.copy_(evidence.std(0).clamp(min=1e-3))
        self.edge.copy_(self.distance(evidence).quantile(self.quantile))


@MODELS.register_module()
class EvidenceRouter(Router):
    """Four branches of evidence, read from the image *and* the pyramid, fused by an MLP.

    A router that sees stride-32 features alone is blind to texture, which is what camouflage is
    about.

    Args:
        width: Features per branch. 344 gives 8.0 M parameters on PVT-v2-B2 with four experts.
        branches: ``{"texture": False}`` leaves that branch's features out, for an ablation.
        noise: Standard deviation of the noise on the logits in training.
        noise_end: Share of training at which it has fallen to zero, above 0.
        detach: Whether the pyramid is detached, so that the router does not train the backbone.
        fallback: Above 0, weights fall back to equal ones on images unlike those of training, as
            fast as this says (``sharpness`` of :class:`Familiarity`): the logits are multiplied by
            the image's familiarity. With ``top_k`` of all experts that is their mean.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        expert_names: Sequence[str],
        top_k: int,
        width: int = 344,
        branches: dict[str, bool] | None = None,
        noise: float = 1.0,
        noise_end: float = 0.8,
        detach: bool = False,
        fallback: float = 0.0,
    ):
        super().__init__(in_channels=in_channels, expert_names=expert_names, top_k=top_k)
        if fallback < 0:
            raise ValueError(f"router.fallback={fallback} must be 0, for none, or above")
        for name in branches or {}:
            if name not in BRANCHES:
                raise ValueError(f"router.branches: no branch {name!r}; {suggest(name, BRANCHES)}")
        used = [name for name in BRANCHES if (branches or {}).get(name, True)]
        if not used:
            raise ValueError("router.branches switches every branch off; leave at least one on")
        if noise_end <= 0:
            raise ValueError(f"router.noise_end={noise_end} must be above 0; noise=0 is no noise")
        self.noise, self.noise_end = noise, noise_end
        self.detach = detach
        self.branches = nn.ModuleDict({name: BRANCHES[name](in_channels, width) for name in used})
        # Over the batch and not over the features, so that what all images share (every photograph
        # has a falling spectrum) cannot drown what tells them apart; see
        # projects/earlier_studies.md.
        self.norms = nn.ModuleDict({name: BatchNorm(width) for name in used})
        self.fuse = nn.Sequential(
            nn.Linear(len(used) * width, width), nn.GELU(), nn.Linear(width, len(expert_names))
        )
        features = len(used) * width
        self.familiarity = Familiarity(features, fallback) if fallback else None
        # Every expert starts with the same chance.
        last = cast(nn.Linear, self.fuse[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def score(self, images: Tensor, pyramid: Sequence[Tensor]) -> Tensor:
        """See :class:`Router`."""
        return self._fused(self.evidence(images, pyramid))

    def convolve_in(self, dtype: torch.dtype) -> None:
        """See :class:`Router`; weights are cast once, and channels padded for tensor cores."""
        super().convolve_in(dtype)
        for branch in self.branches.values():
            if isinstance(branch, (TextureBranch, EdgeBranch)):
                branch.pad()
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, PaddedConv)):
                module.to(dtype)

    def without(self, images: Tensor, pyramid: Sequence[Tensor]) -> dict[str, Tensor]:
        """Logits (N, E) with one branch after the other switched off, by its name.

        A branch that is off says what it says of an average image of the training.
        """
        evidence = self.evidence(images, pyramid)
        average = {n: cast(BatchNorm, self.norms[n]).bias.expand_as(x) for n, x in evidence.items()}
        return {name: self._fused({**evidence, name: average[name]}) for name in evidence}

    def evidence(self, images: Tensor, pyramid: Sequence[Tensor]) -> dict[str, Tensor]:
        """Normalised features (N, width) in float32 of each branch, by its name."""
        if self.detach:
            pyramid = [level.detach() for level in pyramid]
        # Statistics and FFT need float32: a half-precision FFT wants powers of two, and squares
        # overflow. Convolutions, most of the operations, need not, as what they give is averaged.
        device, half = images.device.type, self.convolution_dtype
        if not images.is_meta and torch.is_autocast_enabled(device):
            half = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            images, pyramid = images.float(), [level.float() for level in pyramid]
            return {
                name: self.norms[name](branch(images, pyramid, half)[..., None, None]).flatten(1)
                for name, branch in self.branches.items()
            }

    def _fused(self, evidence: dict[str, Tensor]) -> Tensor:
        fused = torch.cat(list(evidence.values()), dim=1)
        with torch.autocast(fused.device.type, enabled=False):
            logits = self.fuse(fused)
            if self.familiarity is None:
                return logits
            # In training the choice is learnt as it is.
            return logits if self.training else logits * self.familiarity(fused)[:, None]

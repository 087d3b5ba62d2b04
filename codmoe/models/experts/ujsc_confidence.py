"""UJSC's confidence estimation: a discriminator that learns where a prediction is to be trusted."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from codmoe.models.layers import resize_to


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
        judged = self._held_fixed(images, maps)
        return F.binary_cross_entropy_with_logits(judged.float(), torch.ones_like(judged).float())

    def confidence(self, images: Tensor, maps: Tensor) -> Tensor:
        """Where the maps are to be trusted, in [0, 1], (N, 1, H/4, W/4), without any gradient."""
        # Autocast caches the half-precision copy of a parameter; in some versions of torch the copy
        # that `no_grad` makes is cut from its parameter, and `own_loss` would then teach nothing.
        judge = self._held_fixed if torch.is_grad_enabled() else self
        with torch.no_grad():
            return judge(images, maps).sigmoid()

    def own_loss(self, images: Tensor, maps: Tensor, target: Tensor) -> Tensor:
        """Tells predictions (0, detached) from ground truth (1)."""
        fake = self(images, maps.detach()).float()
        real = self(images, target).float()
        return 0.5 * (
            F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
            + F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
        )

    def _held_fixed(self, images: Tensor, maps: Tensor) -> Tensor:
        frozen = {name: p.detach() for name, p in self.named_parameters()}
        return functional_call(self, frozen, (images, maps))

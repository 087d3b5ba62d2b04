"""The contract that every router meets, and the top-k choice they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codmoe.messages import suggest
from codmoe.structures import RoutingDecision


class Router(nn.Module, ABC):
    """Looks at each image and chooses ``top_k`` of the experts.

    Args:
        in_channels: Channels of the pyramid at strides 4, 8, 16, 32; the model fills this in.
        expert_names: Names of the experts in order; the model fills this in.
        top_k: Number of experts per image; the model fills this in.

    Attributes:
        noise: Standard deviation of the noise on the logits in training, before annealing.
        noise_end: Share of training after which there is none: the last part learns the choice that
            will be made.
    """

    noise: float = 0.0
    noise_end: float = 0.8
    convolution_dtype: torch.dtype | None = None
    """16-bit type of its convolutions where autocast is off, None for that of everything else; see
    :meth:`convolve_in`."""
    reads_pyramid: bool = True
    """Whether :meth:`score` looks at the pyramid: one that nobody reads is not made."""
    train_top_k: int | None = None
    """Experts that the mixture is made of in training, where it is another number than ``top_k``;
    the model fills this in."""

    shared: tuple[int, ...] = ()
    """Experts that are chosen for every image, among the ``top_k``; the model fills this in."""

    def __init__(self, *, in_channels: Sequence[int], expert_names: Sequence[str], top_k: int):
        super().__init__()
        if not 1 <= top_k <= len(expert_names):
            raise ValueError(
                f"top_k={top_k} must be between 1 and the number of experts, {len(expert_names)} "
                f"({', '.join(expert_names)})"
            )
        self.in_channels = tuple(in_channels)
        self.expert_names = tuple(expert_names)
        self.top_k = top_k

    def convolve_in(self, dtype: torch.dtype) -> None:
        """Have this, a copy for evaluation, do its convolutions in a 16-bit type."""
        self.convolution_dtype = dtype

    @abstractmethod
    def score(self, images: Tensor, pyramid: Sequence[Tensor]) -> Tensor:
        """Normalised images (N, 3, H, W) and the four maps → float32 logits (N, E)."""

    def forward(
        self, images: Tensor, pyramid: Sequence[Tensor], progress: float = 1.0
    ) -> RoutingDecision:
        """Choose.

        Args:
            images: Normalised images, (N, 3, H, W).
            pyramid: Four maps at strides 4, 8, 16, 32.
            progress: Share of training done; the noise falls linearly with it, to zero at
                ``noise_end``.

        Raises:
            ValueError: :meth:`score` returned something else than logits (N, E).
        """
        logits, count = self.score(images, pyramid), len(self.expert_names)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != count:
            told = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"{type(self).__name__}.score returned {told}; return logits (N, {count}), one "
                "for each expert"
            )
        return self.choose(logits, progress)

    def choose(self, logits: Tensor, progress: float = 1.0) -> RoutingDecision:
        """Noisy top-k (Shazeer et al., ICLR 2017): the weights are the softmax over the k chosen
        (noisy) logits; probabilities are the softmax over all clean ones.
        """
        logits = logits.float()
        noisy = logits
        if self.training and self.noise > 0:
            noisy = logits + torch.randn_like(logits) * self.noise_at(progress)
        k = (self.train_top_k if self.training else None) or self.top_k
        ranked = noisy
        if self.shared:
            ranked = noisy.clone()
            ranked[:, list(self.shared)] = torch.inf
        indices = ranked.topk(k, dim=-1).indices
        chosen = noisy.gather(-1, indices)
        return RoutingDecision(
            logits=logits,
            probabilities=logits.softmax(dim=-1),
            indices=indices,
            weights=chosen.softmax(dim=-1),
            expert_names=self.expert_names,
            top_k=self.top_k,
        )

    def noise_at(self, progress: float) -> float:
        """Standard deviation of the noise when ``progress`` of training is done."""
        return self.noise * max(0.0, 1.0 - progress / self.noise_end)

    def index_of(self, name: str, key: str) -> int:
        """Position of an expert; ``key`` is the config key to blame if there is none."""
        if name not in self.expert_names:
            raise ValueError(
                f"{key}={name!r} is not an expert of this model; "
                + suggest(name, self.expert_names)
            )
        return self.expert_names.index(name)

"""Routers that do not look: what a learned one has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codmoe.models.routers.base import Router
from codmoe.registry import MODELS
from codmoe.structures import RoutingDecision


@MODELS.register_module()
class UniformRouter(Router):
    """Every expert on every image with equal weight; its ``top_k`` is the number of experts.

    Joint expert training is a mixture with this router, a lone expert a mixture of one.
    """

    reads_pyramid = False

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        expert_names: Sequence[str],
        top_k: int | None = None,
    ):
        if top_k not in (None, len(expert_names)):
            raise ValueError(
                f"top_k={top_k} does not go with router=UniformRouter, which weighs all "
                f"{len(expert_names)} experts equally; leave top_k out"
            )
        super().__init__(
            in_channels=in_channels, expert_names=expert_names, top_k=len(expert_names)
        )

    def score(self, images: Tensor, pyramid: Sequence[Tensor]) -> Tensor:
        """See :class:`Router`; zeros."""
        return torch.zeros(images.shape[0], len(self.expert_names), device=images.device)


@MODELS.register_module()
class FixedRouter(Router):
    """The same experts with the same weights on every image.

    Args:
        weights: Weight of each named expert; experts not named get none. ``top_k`` must be the
            number of names, or be left out.
    """

    reads_pyramid = False

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        expert_names: Sequence[str],
        weights: dict[str, float | None],
        top_k: int | None = None,
    ):
        given = {name: w for name, w in weights.items() if w is not None}
        if top_k not in (None, len(given)) or any(w <= 0 for w in given.values()):
            raise ValueError(
                f"router.weights={given} must be positive and, if top_k={top_k} is given, as many"
            )
        super().__init__(in_channels=in_channels, expert_names=expert_names, top_k=len(given))
        # exp(-1e4) is exactly 0 in float32, and softmax of minus infinity has NaN gradients.
        logits = torch.full((len(expert_names),), -1e4)
        for name, weight in given.items():
            logits[self.index_of(name, "router.weights")] = torch.tensor(weight).log()
        self.fixed_logits: Tensor
        self.register_buffer("fixed_logits", logits)

    def score(self, images: Tensor, pyramid: Sequence[Tensor]) -> Tensor:
        """See :class:`Router`; the logarithms of the weights."""
        return self.fixed_logits.expand(images.shape[0], -1)


class ForcedRouter(Router):
    """Sends every image to the experts named, with equal weights, whatever another router says.

    Measurements use it, by :meth:`ModelLevelMoE.on_route`; configs take :class:`FixedRouter`.

    Args:
        router: The router that it stands for.
        names: Experts.
        run: Whether that router runs all the same, and its choice is waited for, so that a route
            costs what it costs in use. Otherwise logits are zeros, and nothing is waited for.
    """

    def __init__(self, router: Router, names: Sequence[str], *, run: bool):
        super().__init__(
            in_channels=router.in_channels, expert_names=router.expert_names, top_k=len(names)
        )
        self.router = router if run else None
        self.reads_pyramid = run and router.reads_pyramid
        self.names = tuple(names)

    def score(self, images: Tensor, pyramid: Sequence[Tensor]) -> Tensor:
        """See :class:`Router`."""
        if self.router is not None:
            return self.router.score(images, pyramid)
        return torch.zeros(len(images), len(self.expert_names), device=images.device)

    def choose(self, logits: Tensor, progress: float = 1.0) -> RoutingDecision:
        """See :class:`Router`; always the same experts."""
        decision = super().choose(logits, progress).forced(self.names)
        if self.router is not None:
            decision.everywhere = None
        return decision


@MODELS.register_module()
class StaticRouter(Router):
    """The same experts with the same weights on every image, learned: what a router that does not
    look at the image can reach.

    Trained as any router is. All experts start with equal weight; a weight decay would pull them
    back there.

    Args:
        top_k: Experts per image; all by default.
    """

    reads_pyramid = False

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        expert_names: Sequence[str],
        top_k: int | None = None,
    ):
        top_k = len(expert_names) if top_k is None else top_k
        super().__init__(in_channels=in_channels, expert_names=expert_names, top_k=top_k)
        self.static_logits = nn.Parameter(torch.zeros(len(expert_names)))

    def score(self, images: Tensor, pyramid: Sequence[Tensor]) -> Tensor:
        """See :class:`Router`; one learned vector."""
        return self.static_logits.float().expand(len(images), -1)


@MODELS.register_module()
class RandomRouter(Router):
    """Random experts per image: the floor for any router, and a load for benchmarks.

    Args:
        seed: Seed of a generator of its own, so that a run can be repeated; draws advance it, and
            training seeds it for each step and validation anew.
    """

    reads_pyramid = False

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        expert_names: Sequence[str],
        top_k: int,
        seed: int = 0,
    ):
        super().__init__(in_channels=in_channels, expert_names=expert_names, top_k=top_k)
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)

    def score(self, images: Tensor, pyramid: Sequence[Tensor]) -> Tensor:
        """See :class:`Router`; standard normal."""
        shape = (len(images), len(self.expert_names))
        return torch.randn(shape, generator=self.generator).to(images.device)

"""The router of a mixture that grew: what routed before is held, the newcomer is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from codmoe.models.routers.base import Router
from codmoe.models.routers.evidence import EvidenceRouter

BELOW = 10.0
"""How far the newcomer's logit begins below the logsumexp of the others."""


class GrownRouter(Router):
    """Another router, which is held, and the chance of one more expert against all of its experts.

    The logits of the old experts are those of the other router, bit for bit; the newcomer's is the
    logarithm of its odds against them all together, of evidence of its own, above their logsumexp.
    So it need not know how large theirs are, and where it is not among the chosen, choice and
    weights are those of before.

    ``newcomers`` of :class:`ModelLevelMoE` makes it, and holds ``old``.

    Args:
        old: The router of the mixture that grew.
        evidence: That of the newcomer, whose one expert it is.
    """

    def __init__(
        self, old: Router, evidence: EvidenceRouter, *, expert_names: Sequence[str], top_k: int
    ):
        super().__init__(in_channels=old.in_channels, expert_names=expert_names, top_k=top_k)
        (self.newcomer,) = evidence.expert_names
        self.old, self.evidence = old, evidence
        self.noise, self.noise_end = old.noise, old.noise_end
        self._place = self.expert_names.index(self.newcomer)
        # Before it has learnt it is not chosen, or, where the other router is surer than that, with
        # a weight of about e⁻¹⁰: the mixture begins as it was, but for that.
        nn.init.constant_(cast(nn.Linear, evidence.fuse[-1]).bias, -BELOW)

    def score(self, images: Tensor, pyramid: Sequence[Tensor]) -> Tensor:
        """See :class:`Router`."""
        return self._joined(self.old.score(images, pyramid), self.evidence.score(images, pyramid))

    def without(self, images: Tensor, pyramid: Sequence[Tensor]) -> dict[str, Tensor]:
        """See :meth:`EvidenceRouter.without`; both read without the branch, if both have it."""
        new, whole = self.evidence.without(images, pyramid), self.old.score(images, pyramid)
        old_without = getattr(self.old, "without", None)
        less: dict[str, Tensor] = old_without(images, pyramid) if old_without else {}
        return {name: self._joined(less.get(name, whole), odds) for name, odds in new.items()}

    def _joined(self, old: Tensor, odds: Tensor) -> Tensor:
        old = old.float()
        new = old.logsumexp(dim=1, keepdim=True) + odds
        return torch.cat([old[:, : self._place], new, old[:, self._place :]], dim=1)

"""The router of a mixture that grew: what routed before is held, the newcomer is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from codmoe.models.routers.base import Router
from codmoe.models.routers.evidence import EvidenceRouter

BELOW = 10.0
"""How far the logit of an expert that a mixture grows by begins below those of the others: with
``newcomers`` below their logsumexp, else below the lowest bias."""


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
        expert_names: See :class:`Router`.
        top_k: See :class:`Router`.
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
        old = self.old.score(images, pyramid).float()
        new = old.logsumexp(dim=1, keepdim=True) + self.evidence.score(images, pyramid)
        return torch.cat([old[:, : self._place], new, old[:, self._place :]], dim=1)

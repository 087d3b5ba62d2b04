"""Random streams that follow from a seed and a place in training, not from what was drawn before.

A run that is resumed draws what the uninterrupted one would have drawn, with any number of loader
workers, and two seeds share nothing: numpy's ``SeedSequence`` mixes seed and place.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_rank, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from torch import nn
from torch.utils.data import Dataset, Sampler

SAMPLE, ORDER, STEP, VALIDATION = range(4)
"""First number of a place: what is drawn there."""


def words_of(seed: int, *place: int) -> np.ndarray:
    """Four 32-bit words, others for every seed and place (non-negative whole numbers)."""
    return np.random.SeedSequence(seed, spawn_key=place).generate_state(4)


def seed_streams(seed: int, *place: int, model: nn.Module | None = None) -> None:
    """Seeds Python, numpy and torch's CPU for a place in the run; with a model also its device, and
    each ``torch.Generator`` that a part of it keeps as ``generator``, with the part's ``seed``.
    """
    words = words_of(seed, *place)
    number = int.from_bytes(words[:2].tobytes(), "little")
    random.seed(number)
    np.random.seed(words)
    # Of the CPU alone, unlike torch.manual_seed, which no loader worker should call.
    torch.random.default_generator.manual_seed(number)
    if model is None:
        return
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    for part in model.modules():
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed((number + getattr(part, "seed", 0)) % 2**63)


@contextmanager
def drawn_from(seed: int, *place: int) -> Iterator[None]:
    """Seeds numpy, torch's CPU and Python; afterwards they draw on as before."""
    before = np.random.get_state(), random.getstate(), torch.random.get_rng_state()
    seed_streams(seed, *place)
    try:
        yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])
        torch.random.set_rng_state(before[2])


class Draw(NamedTuple):
    """A sample's number in the data set, and the seed and place that its draws follow from."""

    sample: int
    seed: int
    place: tuple[int, ...]


@DATA_SAMPLERS.register_module()
class DrawSampler(Sampler):
    """A sampler around another one, whose indices carry the place that their draws follow from.

    The place is the epoch, the process and the sample's number in it. :class:`TolerantDataset`,
    in which the engine wraps the training set, seeds by it. The order of the samples follows from
    seed and epoch, too: mmengine's seed 0 shuffles epoch 1 as its seed 1 does epoch 0.

    Args:
        sampler: The sampler or its config.
        dataset: The data set, for a sampler that is built here.
        seed: Seed of the run; None draws one that all processes share.
    """

    def __init__(
        self,
        sampler: Sampler | Mapping[str, Any],
        dataset: Dataset | None = None,
        seed: int | None = None,
    ) -> None:
        if isinstance(sampler, Mapping):
            given = dict(dataset=dataset, seed=seed)
            sampler = DATA_SAMPLERS.build(dict(sampler), default_args=given)
        self.sampler: Any = sampler
        self.seed = sync_random_seed() if seed is None else seed
        self._order = getattr(sampler, "seed", self.seed)
        self._first = self._offset = 0
        if hasattr(sampler, "skip"):
            # mmengine asks for it; where it is missing it goes through the loader step by step.
            self.skip = self._skip
        self.set_epoch(0)

    def reseed(self, seed: int) -> None:
        """Takes the seed of the run that is resumed, unless the config gave the order its own."""
        if self._order == self.seed:
            self._order = seed
        self.seed = seed
        self.set_epoch(self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """See mmengine's samplers."""
        self.epoch = epoch
        if hasattr(self.sampler, "seed"):
            self.sampler.seed = int(words_of(self._order, ORDER, epoch)[0])
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def start_at(self, number: int) -> None:
        """Leaves out the first samples of the next pass: the run had them before it was cut off."""
        self._first = number

    def _skip(self, number: int) -> None:
        self.sampler.skip(number)
        self._offset = number

    def __iter__(self) -> Iterator[Draw]:
        first, self._first = self._first, 0
        for number, index in enumerate(self.sampler, self._offset):
            if number >= first:
                yield Draw(int(index), self.seed, (SAMPLE, self.epoch, get_rank(), number))

    def __len__(self) -> int:
        return len(self.sampler)

"""Augments each image in a fixed number of views, which are taken in turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import Dataset

from codmoe.datasets.cod import WrappedDataset
from codmoe.datasets.streams import drawn_from
from codmoe.registry import DATASETS


@DATASETS.register_module()
class FixedViews(WrappedDataset):
    """A dataset of which each image has ``views`` augmented versions, the same on every visit.

    Epoch ``e`` shows view ``e mod views`` of every image (:meth:`set_epoch`). What a transform
    draws follows from ``seed``, the index and the view alone, so that whatever does not learn needs
    to be computed once for each: a sample's metainfo holds ``cache_key = (part, view, index)``, by
    which :class:`FrozenCache` keeps it.

    Args:
        dataset: The dataset or its config.
        views: Versions of each image, 1 or more.
        seed: Seed of all augmentation.
        part: First component of the keys; tells datasets of one run apart.

    Raises:
        ValueError: ``views`` is below 1.
    """

    def __init__(
        self,
        dataset: Dataset | Mapping[str, Any],
        views: int = 4,
        seed: int = 0,
        part: str = "train",
    ) -> None:
        if not isinstance(views, int) or views < 1:
            raise ValueError(f"FixedViews: views={views!r}; it must be a whole number, 1 or more")
        super().__init__(dataset)
        self.views, self.seed, self.part = views, seed, part
        # In shared memory: workers that outlive an epoch must hear of the next one.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    @property
    def view(self) -> int:
        """The view that is shown now, from 0."""
        return int(self._epoch) % self.views

    def set_epoch(self, epoch: int) -> None:
        """Shows the view of this epoch, in all workers; to be called between epochs."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> Any:
        index, view = int(index), self.view
        with drawn_from(self.seed, index, view):
            item = self.dataset[index]
        item["data_samples"].set_metainfo(dict(cache_key=(self.part, view, index)))
        return item

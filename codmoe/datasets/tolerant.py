"""Training that survives a few unreadable files, counts them and says which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from codmoe.datasets.integrity import SHOWN, UnreadableFile
from codmoe.registry import DATASETS

TRIES = 100


@DATASETS.register_module()
class TolerantDataset(Dataset):
    """A training set of which an unreadable sample is replaced by another one, drawn at random.

    Which samples were unreadable is kept in shared memory, so that all workers of a loader and the
    process that started them know; ``codmoe.engine.UnreadableFilesHook`` reports each once, and
    stops training above ``max_share``. The engine wraps the training set alone: in evaluation an
    unreadable file is an error.

    Args:
        dataset: The training set or its config.
        max_share: Share of the samples that may be unreadable, in [0, 1].

    Raises:
        ValueError: ``max_share`` is out of its range.
    """

    def __init__(self, dataset: Dataset | Mapping[str, Any], max_share: float = 0.01) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_unreadable={max_share}; it is a share and must lie in [0, 1]")
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        if hasattr(self.dataset, "full_init"):
            self.dataset.full_init()
        self.max_share = max_share
        # One byte a sample; each is only ever set, so that no lock is needed.
        self.flags = torch.zeros(len(self.dataset), dtype=torch.uint8).share_memory_()

    @property
    def metainfo(self) -> dict:
        """Of the data set within."""
        return dict(getattr(self.dataset, "metainfo", {}))

    @property
    def allowed(self) -> int:
        """How many samples may be unreadable: the share, rounded down."""
        return int(self.max_share * len(self) + 1e-6)

    def __len__(self) -> int:
        return len(self.dataset)

    def get_data_info(self, index: int) -> dict:
        """Paths and names of one sample, without loading it."""
        return self.dataset.get_data_info(index)

    def __getitem__(self, index: int) -> Any:
        for _ in range(TRIES):
            try:
                return self.dataset[index]
            except UnreadableFile as error:
                self.flags[index] = 1
                last = error
                index = int(np.random.randint(len(self)))
        raise UnreadableFile(
            self.complaint()
            or f"{TRIES} samples drawn one after another are unreadable, the last: {last}"
        )

    def unreadable(self) -> list[int]:
        """Indices of the samples found unreadable so far, by any worker."""
        return torch.nonzero(self.flags).flatten().tolist()

    def reason(self, index: int) -> str:
        """What is wrong with a sample, by reading it once more."""
        try:
            self.dataset[index]
        except UnreadableFile as error:
            return str(error)
        path = self.dataset.get_data_info(index).get("img_path", f"sample {index}")
        return f"{path} could not be read, but now it can: are disk and network in order?"

    def complaint(self) -> str | None:
        """The error to stop with, or None as long as not too many samples are unreadable."""
        bad = self.unreadable()
        if len(bad) <= self.allowed:
            return None
        reasons = "; ".join(self.reason(index) for index in bad[:SHOWN])
        more = f"; and {len(bad) - SHOWN:,} more, all in the log" if len(bad) > SHOWN else ""
        return (
            f"{len(bad):,} of {len(self):,} training samples are unreadable, and "
            f"max_unreadable={self.max_share:g} allows {self.allowed:,}: {reasons}{more}. "
            "Mend or remove them, or raise max_unreadable"
        )

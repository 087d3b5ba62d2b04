"""Datasets end to end, under names."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from torch.utils.data import ConcatDataset

from codmoe.registry import DATASETS


@DATASETS.register_module()
class DatasetGroup(ConcatDataset):
    """Datasets end to end; each sample carries the group's key as the name of its dataset.

    Args:
        datasets: ``{name: dataset or its config}``. A dict and not a list, because dicts merge
            under config inheritance; an entry of None is left out.
        split: Split of every entry that names none of its own, each by itself, so that all parts
            hold the same share of each; see :func:`~codmoe.datasets.held_out.complete_split`.
        cache: Cache of every entry that names none of its own; see
            :class:`~codmoe.datasets.cod.CODDataset`.

    Raises:
        ValueError: No entry is left, or a dataset's own error, with the entry named.
        FileNotFoundError: Likewise.
    """

    def __init__(
        self,
        datasets: Mapping[str, Any],
        split: Mapping[str, Any] | None = None,
        cache: bool | Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(datasets, Mapping):
            raise ValueError(
                f"datasets is a {type(datasets).__name__}; it must be {{name: config}}"
            )
        built = {}
        for key, config in datasets.items():
            if config is None:
                continue
            if split is not None:
                if not isinstance(config, dict):
                    raise ValueError(f"datasets.{key} is built already; give it the split itself")
                # Under the group's key, for two folders may both be called TrainDataset.
                config = {"split": split, "name": key, **config}
            if cache is not None and isinstance(config, dict):
                config = {"cache": cache, **config}
            try:
                built[key] = DATASETS.build(config) if isinstance(config, dict) else config
                if hasattr(built[key], "full_init"):
                    built[key].full_init()
            except (ValueError, FileNotFoundError) as error:
                raise type(error)(f"datasets.{key}: {error}") from error
        if not built:
            raise ValueError("datasets names no dataset; every entry is None or there is none")
        self.names = tuple(built)
        super().__init__(list(built.values()))

    @property
    def metainfo(self) -> dict:
        """Of the first dataset, as mmengine's evaluator asks for it."""
        return dict(getattr(self.datasets[0], "metainfo", {}))

    def _locate(self, idx: int) -> tuple[int, int]:
        idx = idx + len(self) if idx < 0 else idx
        which = bisect_right(self.cumulative_sizes, idx)
        return which, idx - (self.cumulative_sizes[which - 1] if which else 0)

    def get_data_info(self, idx: int) -> dict:
        """Paths and names of one sample, without loading it."""
        which, inner = self._locate(idx)
        return {**self.datasets[which].get_data_info(inner), "dataset": self.names[which]}

    def __getitem__(self, idx: int) -> Any:
        if not -len(self) <= idx < len(self):
            raise IndexError(f"sample {idx} of a group of {len(self)}")
        which, inner = self._locate(idx)
        item = self.datasets[which][inner]
        if isinstance(item, dict):
            if "data_samples" in item:
                item["data_samples"].set_metainfo({"dataset": self.names[which]})
            else:
                item["dataset"] = self.names[which]
        return item

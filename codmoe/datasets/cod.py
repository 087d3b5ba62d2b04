"""A dataset of image/mask pairs in two folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset

from codmoe.datasets.cache import SampleCache
from codmoe.datasets.held_out import chosen_indices, complete_split
from codmoe.datasets.layouts import (
    Folders,
    Pair,
    check_pairs,
    find_folders,
    find_pairs,
    require_folder,
    resolve_root,
    shown_names,
)
from codmoe.datasets.transforms import read_pair
from codmoe.registry import DATASETS, TRANSFORMS


@DATASETS.register_module()
class CODDataset(BaseDataset):
    """Images and masks of equal stem in two folders.

    Args:
        data_root: Folder of the dataset; ``~`` and ``$VAR`` are expanded. A relative one that does
            not exist in the working directory is resolved against ``$CODMOE_DATA_ROOT``.
        split_dir: Sub-folder of ``data_root`` (``"TrainDataset"``).
        image_dir: Folder of images below that; without it and ``mask_dir`` a known layout is found.
        mask_dir: Folder of masks.
        name: Name shown in tables; the name of the folder by default.
        prefix: Keep only files whose names start with it.
        exclude: Stems of samples to leave out before any split: known duplicates of test images.
        split: ``dict(seed=0, fractions=dict(experts=.75, router=.15, val=.10), use=("experts",))``;
            seed and fractions default to these. More keys, among them ``file``:
            :func:`~codmoe.datasets.held_out.complete_split`. Not of a test set.
        check_files: Open every file's header before training; see
            :func:`~codmoe.datasets.layouts.check_pairs`.
        cache: Decode all samples once and keep them: True for RAM shared by forked workers, or
            ``dict(dir=..., max_side=...)``; see :class:`~codmoe.datasets.cache.SampleCache`.
        pipeline: Transforms or their configs.
        test_mode: mmengine's; nothing here depends on it.
        indices: Keep the first so many samples, or those of a list.
        lazy_init: Read nothing before ``full_init()``.

    Raises:
        FileNotFoundError: A folder does not exist or fits no known layout.
        ValueError: Files do not pair or cannot be read, or no sample is left.
    """

    def __init__(
        self,
        data_root: str | os.PathLike,
        *,
        split_dir: str | None = None,
        image_dir: str | None = None,
        mask_dir: str | None = None,
        name: str | None = None,
        prefix: str | None = None,
        exclude: Sequence[str] = (),
        split: Mapping[str, Any] | None = None,
        check_files: bool = True,
        cache: bool | Mapping[str, Any] = False,
        pipeline: Sequence[dict | Callable] = (),
        test_mode: bool = False,
        indices: int | Sequence[int] | None = None,
        lazy_init: bool = False,
    ) -> None:
        if (image_dir is None) != (mask_dir is None):
            missing = "image_dir" if image_dir is None else "mask_dir"
            raise ValueError(f"{missing} is not given; give image_dir and mask_dir, or neither")
        self.root = resolve_root(data_root)
        self.split_dir, self.image_dir, self.mask_dir = split_dir, image_dir, mask_dir
        self.name = name or (self.root / (split_dir or "")).resolve().name
        self.prefix = prefix
        if isinstance(exclude, str):
            raise ValueError(f"exclude={exclude!r} must be a list of stems, e.g. [{exclude!r}]")
        self.exclude = tuple(exclude)
        self.split = None if split is None else complete_split(split)
        self._refuse_test_set()
        self.check_files = check_files
        self._cache = SampleCache.of(cache)
        # Built here and not by mmengine's Compose, so that transforms are found, and misspelt ones
        # answered, without a default scope.
        transforms = [TRANSFORMS.build(t) if isinstance(t, dict) else t for t in pipeline]
        super().__init__(
            data_root=str(self.root),
            indices=indices,
            pipeline=transforms,
            test_mode=test_mode,
            lazy_init=lazy_init,
        )

    def _refuse_test_set(self) -> None:
        first = (self.split_dir or "").replace("\\", "/").split("/")[0].lower()
        root = {part.lower() for part in self.root.parts[-2:]}
        if self.split is not None and (first.startswith("test") or root & {"test", "testdataset"}):
            raise ValueError(
                f"split: {self.root / (self.split_dir or '')} is a test set, of which nothing is "
                "held out; split the training set"
            )

    def folders(self) -> Folders:
        """The folders of images and masks, by the config or by a known layout."""
        if self.image_dir is None:
            return find_folders(self.root, self.split_dir)
        require_folder(self.root, "data_root")
        base = self.root
        if self.split_dir:
            base = require_folder(base / self.split_dir, "split_dir")
        return Folders(base / self.image_dir, base / self.mask_dir)

    def find_pairs(self, folders: Folders) -> list[Pair]:
        """All pairs of the dataset, before any split."""
        return find_pairs(
            folders.image, folders.mask, prefix=self.prefix, shared_masks=folders.shared_masks
        )

    def load_data_list(self) -> list[dict]:
        """``dict(img_path, mask_path, stem, dataset)`` of every sample, sorted by stem."""
        folders = self.folders()
        pairs = self.find_pairs(folders)
        pairs = self._without_excluded(pairs)
        if not pairs:
            which = f" whose names start with {self.prefix!r}" if self.prefix else ""
            raise ValueError(f"{self.name}: no images{which} in {folders.image}")
        if self.split is not None:
            chosen = chosen_indices([pair.stem for pair in pairs], self.split, self.name)
            if not chosen:
                raise ValueError(
                    f"{self.name}: split.use={self.split['use']!r} of {len(pairs):,} images is "
                    f"empty under the fractions {dict(self.split['fractions'])}"
                )
            pairs = [pairs[i] for i in chosen]
        return [
            {
                "img_path": str(p.image),
                "mask_path": str(p.mask),
                "stem": p.stem,
                "dataset": self.name,
            }
            for p in pairs
        ]

    def _without_excluded(self, pairs: list[Pair]) -> list[Pair]:
        absent = set(self.exclude) - {pair.stem for pair in pairs}
        if absent:
            # A misspelt stem would leave the duplicate in.
            raise ValueError(
                f"{self.name}: exclude names {shown_names(sorted(absent))}, which the data set "
                "does not hold; give stems, without suffix"
            )
        return [pair for pair in pairs if pair.stem not in self.exclude]

    def full_init(self) -> None:
        """Find the files, check them, and fill the cache."""
        if self._fully_initialized:
            return
        super().full_init()
        infos = [self.get_data_info(i) for i in range(len(self))]
        if self.check_files:
            check_pairs(Pair(i["stem"], Path(i["img_path"]), Path(i["mask_path"])) for i in infos)
        if self._cache is not None:
            self._cache.fill([(i["img_path"], i["mask_path"]) for i in infos], self.name)

    def prepare_data(self, idx: int) -> Any:
        """The sample after the pipeline; the cached arrays themselves are never handed out."""
        info = self.get_data_info(idx)
        info["pool"] = self
        if self._cache is not None:
            info.update(self._cache.results(info["img_path"]) or {})
        return self.pipeline(info)

    def read_sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) and mask (H, W) before the pipeline, for transforms that mix samples."""
        info = self.get_data_info(index)
        held = self._cache.results(info["img_path"]) if self._cache is not None else None
        if held is not None:
            return held["img"], held["gt_seg_map"]
        return read_pair(info["img_path"], info["mask_path"])

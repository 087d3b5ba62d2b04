"""Datasets of image/mask pairs in folders, and their concatenation under names."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from torch.utils.data import ConcatDataset

from codmoe.datasets.cache import SampleCache
from codmoe.datasets.layouts import (
    Folders,
    Pair,
    check_pairs,
    files_by_stem,
    find_folders,
    find_pairs,
    require_folder,
    resolve_root,
)
from codmoe.datasets.splits import split_indices
from codmoe.datasets.transforms import read_pair
from codmoe.registry import DATASETS, TRANSFORMS, suggest

SPLIT_DEFAULTS = {
    "seed": 0,
    "fractions": {"experts": 0.75, "router": 0.15, "val": 0.10},
    "use": None,
}


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
        split: ``dict(seed=0, fractions=dict(experts=.75, router=.15, val=.10), use=("experts",))``;
            see :func:`~codmoe.datasets.splits.split_indices`. Seed and fractions default to these.
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
        self.split = self._complete_split(split)
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

    @staticmethod
    def _complete_split(split: Mapping[str, Any] | None) -> dict | None:
        if split is None:
            return None
        for key in split:
            if key not in SPLIT_DEFAULTS:
                raise ValueError(f"split has no key {key!r}; {suggest(key, SPLIT_DEFAULTS)}")
        whole = {**SPLIT_DEFAULTS, **split}
        if whole["use"] is None:
            parts = sorted(whole["fractions"])
            raise ValueError(f"split.use is not given; name one or more parts of {parts}")
        return whole

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
        if not pairs:
            which = f" whose names start with {self.prefix!r}" if self.prefix else ""
            raise ValueError(f"{self.name}: no images{which} in {folders.image}")
        if self.split is not None:
            chosen = split_indices([pair.stem for pair in pairs], **self.split)
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
        info = dict(self.get_data_info(idx), pool=self)
        if self._cache is not None:
            info.update(self._cache.results(info["img_path"]) or {})
        return self.pipeline(info)

    def read_sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) and mask (H, W) before the pipeline, for transforms that mix samples."""
        info = self.get_data_info(index)
        held = self._cache.results(info["img_path"]) if self._cache is not None else None
        if held is None:
            return read_pair(info["img_path"], info["mask_path"])
        return held["img"], held["gt_seg_map"]


@DATASETS.register_module()
class COD10K(CODDataset):
    """COD10K-v3 as it is released: ``<data_root>/{Train,Test}/{Image,GT_Object}``.

    The folders hold 6,000 and 4,000 images, of which the protocol uses the camouflaged ones: 3,040
    for training and 2,026 for test.

    Paper: Fan et al., "Camouflaged Object Detection", CVPR 2020.

    Args:
        data_root: The folder that holds ``Train`` and ``Test``.
        subset: ``"Train"`` or ``"Test"``.
        camouflaged_only: Keep only stems that start with ``COD10K-CAM-``.
        name: As of :class:`CODDataset`, as are the further arguments.
    """

    CAMOUFLAGED = "COD10K-CAM-"
    SUBSETS = ("Train", "Test")

    def __init__(
        self,
        data_root: str | os.PathLike,
        *,
        subset: str = "Train",
        camouflaged_only: bool = True,
        name: str | None = "COD10K",
        prefix: str | None = None,
        **kwargs,
    ) -> None:
        if subset not in self.SUBSETS:
            raise ValueError(f"subset={subset!r}; it must be 'Train' or 'Test'")
        if "split_dir" in kwargs:
            raise ValueError("COD10K takes no split_dir; its folder is chosen by subset")
        self.subset, self.camouflaged_only = subset, camouflaged_only
        if camouflaged_only and prefix is None:
            prefix = self.CAMOUFLAGED
        super().__init__(data_root, split_dir=subset, name=name, prefix=prefix, **kwargs)

    def folders(self) -> Folders:
        """The folders of the subset."""
        root = require_folder(self.root, "data_root")
        require_folder(root / self.subset, "data_root is not the folder of Train and Test")
        return super().folders()

    def find_pairs(self, folders: Folders) -> list[Pair]:
        """All pairs; says how many images the filter leaves out."""
        pairs = super().find_pairs(folders)
        if self.camouflaged_only:
            total = len(files_by_stem(folders.image, "image_dir"))
            print_log(
                f"COD10K {self.subset}: {len(pairs):,} of {total:,} images kept, "
                f"{total - len(pairs):,} left out whose names do not start with {self.prefix!r}; "
                "the protocol is 3,040 Train / 2,026 Test",
                logger="current",
            )
        return pairs


@DATASETS.register_module()
class DatasetGroup(ConcatDataset):
    """Datasets end to end; each sample carries the group's key as the name of its dataset.

    Args:
        datasets: ``{name: dataset or its config}``. A dict and not a list, because dicts merge
            under config inheritance; an entry of None is left out.

    Raises:
        ValueError: No entry is left, or a dataset's own error, with the entry named.
        FileNotFoundError: Likewise.
    """

    def __init__(self, datasets: Mapping[str, Any]) -> None:
        if not isinstance(datasets, Mapping):
            raise ValueError(
                f"datasets is a {type(datasets).__name__}; it must be {{name: config}}"
            )
        built = {}
        for key, config in datasets.items():
            if config is None:
                continue
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

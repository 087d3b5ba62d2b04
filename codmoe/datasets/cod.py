"""Data sets of image/mask pairs: folders, the COD benchmarks, groups, tolerance of bad files."""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from torch.utils.data import ConcatDataset, Dataset

from codmoe.datasets.cache import SampleCache
from codmoe.datasets.integrity import check_pairs
from codmoe.datasets.layouts import (
    CAMOUFLAGED,
    Folders,
    Pair,
    Part,
    candidate_roots,
    find_folders,
    find_pairs,
    image_files,
    nested_words,
    recognise,
    require_folder,
    resolve_root,
    say_once,
)
from codmoe.datasets.reading import UnreadableFile, read_pair
from codmoe.datasets.splits import chosen_indices, complete_split
from codmoe.datasets.streams import Draw, seed_streams
from codmoe.messages import listed
from codmoe.registry import DATASETS, TRANSFORMS

# Samples that are drawn in place of an unreadable one before training gives up.
TRIES = 100


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
        exclude: Stems of samples to leave out before images and masks are paired and split: known
            duplicates of test images, images without a mask.
        split: ``dict(seed=0, fractions=dict(experts=.75, router=.15, val=.10), use=("experts",))``;
            seed and fractions default to these. More keys, among them ``file``:
            :func:`complete_split`. Not of a test set.
        check_files: Open every file's header before training; see :func:`check_pairs`.
        cache: Decode all samples once and keep them: True for RAM shared by forked workers, or
            ``dict(dir=..., max_side=...)``; see :class:`SampleCache`.
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
        # Measured at the mask's resolution, so that the mask need not be of the image's.
        self.any_size = any(getattr(t, "keep_original", False) for t in transforms)
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
        if self.image_dir is None or self.mask_dir is None:
            return find_folders(self.root, self.split_dir)
        require_folder(self.root, "data_root")
        base = self.root
        if self.split_dir:
            base = require_folder(base / self.split_dir, "split_dir")
        return Folders(base / self.image_dir, base / self.mask_dir)

    def find_pairs(self, folders: Folders) -> list[Pair]:
        """All pairs of the dataset but those of ``exclude``, before any split."""
        return find_pairs(
            folders.image,
            folders.mask,
            prefix=self.prefix,
            shared_masks=folders.shared_masks,
            exclude=self.exclude,
        )

    def load_data_list(self) -> list[dict]:
        """``dict(img_path, mask_path, stem, dataset)`` of every sample, sorted by stem."""
        folders = self.folders()
        pairs = self.find_pairs(folders)
        if not pairs:
            which = f" whose names start with {self.prefix!r}" if self.prefix else ""
            nested = nested_words(folders.image, folders.mask)
            raise ValueError(
                f"{self.name}: no images{which} in {folders.image}" + (nested and f"; {nested}")
            )
        if self.split is not None:
            chosen = chosen_indices([pair.stem for pair in pairs], self.split, self.name)
            if not chosen:
                raise ValueError(
                    f"{self.name}: split.use={self.split['use']!r} of {len(pairs):,} images is "
                    f"empty under the fractions {dict(self.split['fractions'])}"
                )
            pairs = [pairs[i] for i in chosen]
        return [
            dict(img_path=str(p.image), mask_path=str(p.mask), stem=p.stem, dataset=self.name)
            for p in pairs
        ]

    def full_init(self) -> None:
        """Finds the files, checks them, and fills the cache."""
        if self._fully_initialized:
            return
        super().full_init()
        infos = [self.get_data_info(i) for i in range(len(self))]
        if self.check_files:
            pairs = [Pair(i["stem"], Path(i["img_path"]), Path(i["mask_path"])) for i in infos]
            check_pairs(pairs, name=self.name, any_size=self.any_size)
        if self._cache is not None:
            self._cache.fill([(i["img_path"], i["mask_path"]) for i in infos], self.name)

    def prepare_data(self, idx: int) -> Any:
        """The sample after the pipeline; the cached arrays themselves are never handed out."""
        info = self.get_data_info(idx)
        info.update(pool=self, any_size=self.any_size)
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


def _say_left_out(what: str, kept: int, folders: Folders, prefix: str | None) -> None:
    total = len(image_files(folders.image))
    say_once(
        f"{what}: {kept:,} of {total:,} images kept, {total - kept:,} left out whose names do not "
        f"start with {prefix!r}; the protocol is 3,040 Train / 2,026 Test",
        folders.image,
    )


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

    CAMOUFLAGED = CAMOUFLAGED
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
            there = len(image_files(folders.image, self.prefix))
            _say_left_out(f"COD10K {self.subset}", there, folders, self.prefix)
        return pairs


@DATASETS.register_module()
class CODBenchmark(CODDataset):
    """One set of the COD papers' protocol, wherever it lies below ``data_root``.

    Works on separately downloaded folders (COD10K-v3, CAMO-V.1.0-CVIU2019, CHAMELEON, NC4K) side by
    side and on the ``TrainDataset`` + ``TestDataset`` tree alike; see :func:`recognise`. Says so
    where the number of images is not that of the protocol: COD10K 3,040 + 2,026, CAMO 1,000 + 250,
    CHAMELEON 76, NC4K 4,121.

    Args:
        data_root: Folder to look in, also by ``CODMOE_DATA_ROOT``; see :class:`CODDataset`.
        benchmark: ``"COD10K"``, ``"CAMO"``, ``"CHAMELEON"``, ``"NC4K"``, or another set there.
        part: ``"train"`` or ``"test"``.
        name: Name shown in tables; that of the benchmark by default.
        camouflaged_only: Of COD10K keep only stems that start with ``COD10K-CAM-``.
        **kwargs: As of :class:`CODDataset`, without its folders.

    Raises:
        FileNotFoundError: The set is not there; the message names the sets that are.
        ValueError: It is there more than once, or a test set is to be split.
    """

    def __init__(
        self,
        data_root: str | os.PathLike,
        *,
        benchmark: str,
        part: str,
        name: str | None = None,
        camouflaged_only: bool = True,
        **kwargs,
    ) -> None:
        if part not in ("train", "test"):
            raise ValueError(f"part={part!r}; it must be 'train' or 'test'")
        for key in ("split_dir", "image_dir", "mask_dir"):
            if kwargs.get(key) is not None:
                raise ValueError(f"CODBenchmark takes no {key}; CODDataset does")
        if part == "test" and kwargs.get("split") is not None:
            raise ValueError(
                f"split: {benchmark} test is a test set, of which nothing is held out; "
                "split the training set"
            )
        self.benchmark, self.part, self.camouflaged_only = benchmark, part, camouflaged_only
        self._roots = candidate_roots(data_root)
        self._found: Part  # as `folders` finds it
        super().__init__(data_root, name=name or benchmark, **kwargs)

    def folders(self) -> Folders:
        """The folders of the set, in the first place of ``data_root`` that has it."""
        roots = [root for root in self._roots if root.is_dir()]
        if not roots:
            require_folder(self.root, "data_root")
        faults = []
        for root in roots:
            try:
                self._found = recognise(root).find(self.benchmark, self.part)
            except FileNotFoundError as fault:
                faults.append(str(fault))
            else:
                self.root = root
                return self._found.folders
        raise FileNotFoundError("; and ".join(faults))

    def find_pairs(self, folders: Folders) -> list[Pair]:
        """All pairs of the set; says what is left out, and if the number is not the protocol's."""
        every = self._found.layout == "COD10K-v3" and not self.camouflaged_only
        if self.prefix is None and not every:
            self.prefix = self._found.prefix
        pairs = super().find_pairs(folders)
        what, there = f"{self.benchmark} {self.part}", len(image_files(folders.image, self.prefix))
        if self._found.layout == "COD10K-v3" and self.camouflaged_only:
            _say_left_out(what, there, folders, self.prefix)
        if self._found.expected not in (None, there):
            say_once(
                f"{what}: {there:,} images in {folders.image}, but the protocol has "
                f"{self._found.expected:,}: numbers will not compare with published ones. "
                f"codmoe doctor {self.root} looks closer",
                folders.image,
                logging.WARNING,
            )
        return pairs


@DATASETS.register_module()
class DatasetGroup(ConcatDataset):
    """Datasets end to end; each sample carries the group's key as the name of its dataset.

    Torch's class and not mmengine's, which takes no wrapped data set (``FixedViews``) and none
    whose metainfo differs from the first's.

    Args:
        datasets: ``{name: dataset or its config}``. A dict and not a list, because dicts merge
            under config inheritance; an entry of None is left out.
        split: Split of every entry that names none of its own, each by itself, so that all parts
            hold the same share of each; see :func:`complete_split`.
        cache: Cache of every entry that names none of its own; see :class:`CODDataset`.

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
        built: dict[str, Any] = {}
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
        """Metainfo of the first data set, as mmengine's evaluator asks for it."""
        return dict(getattr(self.datasets[0], "metainfo", {}))

    def _locate(self, idx: int) -> tuple[int, int]:
        idx = idx + len(self) if idx < 0 else idx
        which = bisect_right(self.cumulative_sizes, idx)
        return which, idx - (self.cumulative_sizes[which - 1] if which else 0)

    def get_data_info(self, idx: int) -> dict:
        """Paths and names of one sample, without loading it."""
        which, inner = self._locate(idx)
        within: Any = self.datasets[which]
        return {**within.get_data_info(inner), "dataset": self.names[which]}

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


class WrappedDataset(Dataset):
    """A data set around another one, of the same samples under the same indices.

    Args:
        dataset: The data set within or its config.
    """

    def __init__(self, dataset: Dataset | Mapping[str, Any]) -> None:
        self.dataset: Any = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        if hasattr(self.dataset, "full_init"):
            self.dataset.full_init()

    @property
    def metainfo(self) -> dict:
        """Metainfo of the data set within."""
        return dict(getattr(self.dataset, "metainfo", {}))

    def __len__(self) -> int:
        return len(self.dataset)

    def get_data_info(self, index: int) -> dict:
        """Paths and names of one sample, without loading it."""
        return self.dataset.get_data_info(index)


@DATASETS.register_module()
class TolerantDataset(WrappedDataset):
    """A training set whose draws follow from what :class:`DrawSampler` says, and of which an
    unreadable sample is replaced by another one, drawn at random.

    The samples found unreadable are marked in shared memory, so that all workers of a loader and
    the process that started them know; ``UnreadableFilesHook`` reports each once, and stops
    training above ``max_share``; mmengine's ``max_refetch`` tells neither which nor how many.
    The engine wraps the training set alone: in evaluation an unreadable file is an error.

    Args:
        dataset: The training set or its config.
        max_share: Share of the samples that may be unreadable, in [0, 1].

    Raises:
        ValueError: ``max_share`` is out of its range.
    """

    def __init__(self, dataset: Dataset | Mapping[str, Any], max_share: float = 0.01) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_unreadable={max_share}; it is a share and must lie in [0, 1]")
        super().__init__(dataset)
        self.max_share = max_share
        # One byte a sample; each is only ever set, so that no lock is needed.
        self.flags = torch.zeros(len(self.dataset), dtype=torch.uint8).share_memory_()

    @property
    def allowed(self) -> int:
        """Number of samples that may be unreadable: the share, rounded down."""
        return int(self.max_share * len(self) + 1e-6)

    def __getitem__(self, index: int | Draw) -> Any:
        if isinstance(index, Draw):
            seed_streams(index.seed, *index.place)
            index = index.sample
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
        """Fault of a sample, by reading it once more."""
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
        reasons = listed(bad, separator="; ", show=self.reason)
        return (
            f"{len(bad):,} of {len(self):,} training samples are unreadable, and "
            f"max_unreadable={self.max_share:g} allows {self.allowed:,}: {reasons} "
            "(all are in the log). Mend or remove them, or raise max_unreadable"
        )

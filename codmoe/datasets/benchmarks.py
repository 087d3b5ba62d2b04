"""The benchmarks of the COD papers, as they lie on disks."""

from __future__ import annotations

import logging
import os

from mmengine.logging import print_log

from codmoe.datasets.cod import CODDataset
from codmoe.datasets.layouts import (
    Folders,
    Pair,
    candidate_roots,
    files_by_stem,
    require_folder,
)
from codmoe.datasets.trees import CAMOUFLAGED, Part, recognise
from codmoe.registry import DATASETS


def _say_left_out(what: str, kept: int, folders: Folders, prefix: str | None) -> None:
    total = len(files_by_stem(folders.image, "image_dir"))
    print_log(
        f"{what}: {kept:,} of {total:,} images kept, {total - kept:,} left out whose names do not "
        f"start with {prefix!r}; the protocol is 3,040 Train / 2,026 Test",
        logger="current",
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
            _say_left_out(f"COD10K {self.subset}", len(pairs), folders, self.prefix)
        return pairs


@DATASETS.register_module()
class CODBenchmark(CODDataset):
    """One set of the COD papers' protocol, wherever it lies below ``data_root``.

    Works on separately downloaded folders (COD10K-v3, CAMO-V.1.0-CVIU2019, CHAMELEON, NC4K) side by
    side and on the ``TrainDataset`` + ``TestDataset`` tree alike; see
    :func:`~codmoe.datasets.trees.recognise`. Says so where the number of images is not that of the
    protocol: COD10K 3,040 + 2,026, CAMO 1,000 + 250, CHAMELEON 76, NC4K 4,121.

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
        self._found: Part | None = None
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
                self.root = root
                break
            except FileNotFoundError as fault:
                faults.append(str(fault))
        if self._found is None:
            raise FileNotFoundError("; and ".join(faults))
        return self._found.folders

    def find_pairs(self, folders: Folders) -> list[Pair]:
        """All pairs of the set; says what is left out, and if the number is not the protocol's."""
        every = self._found.layout == "COD10K-v3" and not self.camouflaged_only
        if self.prefix is None and not every:
            self.prefix = self._found.prefix
        pairs = super().find_pairs(folders)
        what = f"{self.benchmark} {self.part}"
        if self._found.layout == "COD10K-v3" and self.camouflaged_only:
            _say_left_out(what, len(pairs), folders, self.prefix)
        if self._found.expected not in (None, len(pairs)):
            print_log(
                f"{what}: {len(pairs):,} images in {folders.image}, but the protocol has "
                f"{self._found.expected:,}: numbers will not compare with published ones. "
                f"python tools/data/doctor.py {self.root} looks closer",
                logger="current",
                level=logging.WARNING,
            )
        return pairs

"""Pictures of what a config trains on, before it does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codmoe.engine.config import load_config
from codmoe.engine.own_data import set_data
from codmoe.registry import DATASETS
from codmoe.visualization.dataset_page import collect_attributes, save_attributes
from codmoe.visualization.grid import check_picture
from codmoe.visualization.samples import save_samples


def browse(
    config: str | Path,
    *,
    out: str | os.PathLike | None = None,
    attributes: str | os.PathLike | None = None,
    part: str = "train",
    count: int = 24,
    columns: int = 6,
    seed: int = 0,
    data: Sequence[str | None] = (),
    options: Mapping[str, Any] | None = None,
) -> None:
    """Write a grid of augmented samples, a page of the data set's attributes, or both.

    Args:
        config: Path, or name of a shipped config.
        out: File of the grid.
        attributes: File of the plots.
        part: ``train``, ``val`` or ``test``.
        count: Samples in the grid, evenly spread over the data set.
        columns: Samples in a row.
        seed: Of the augmentation.
        data: Instead of the config's: ``data_root``, ``images`` and ``masks`` of :func:`set_data`.
        options: Overrides of the config.

    Raises:
        FileNotFoundError: No such config or data.
        ValueError: The config has faults, or nothing was asked for.
    """
    for path in (out, attributes):
        if path is not None:
            check_picture(path)
    if out is None and attributes is None:
        raise ValueError("give --out FILE for samples, --attributes FILE for plots, or both")
    if count < 1 or columns < 1:
        raise ValueError(f"--count {count} and --columns {columns} must be 1 or more")
    cfg = load_config(config, options)
    loader = cfg.get(f"{part}_dataloader")
    if not loader:
        raise ValueError(f"{cfg.config_file} has no {part}_dataloader")
    set_data(cfg, *data, options=options or ())
    dataset = DATASETS.build(loader.dataset)
    if out is not None:
        np.random.seed(seed)
        chosen = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round())
        items = [dataset[int(index)] for index in chosen]
        written = save_samples(items, out, columns=columns)
        print(f"wrote {written}: {len(items)} samples")
    if attributes is not None:
        found = collect_attributes(dataset, progress=True)
        written = save_attributes(found, attributes)
        print(f"wrote {written}: {len(dataset):,} samples")

"""Points a config at the data that a command line names, whatever data the config was made for."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from codmoe.datasets.layouts import (
    Folders,
    Part,
    image_files,
    recognise,
    require_folder,
    resolve_root,
)
from codmoe.datasets.recognition import marks, read
from codmoe.engine.checkpoints import TRAINED_ON, meta_of
from codmoe.engine.config import dicts_in
from codmoe.messages import listed, note
from codmoe.registry import DATASETS
from codmoe.trust import read_literals

PARTS = ("train", "val", "test")
KEPT = ("cache", "check_files", "exclude")
"""Arguments of :class:`CODDataset` that a command line sets for own data, too."""
# Of one folder of pairs; the test images of another are another folder's.
FRACTIONS = dict(experts=0.75, router=0.15, val=0.10)
WITH_TEST = dict(experts=0.60, router=0.15, val=0.10, test=0.15)


def data_arguments(
    data_root: str | None = None, images: str | None = None, masks: str | None = None
) -> list[str]:
    """The words of a command line that name these data."""
    given = {"--data-root": data_root, "--images": images, "--masks": masks}
    return [word for key, value in given.items() if value for word in (key, str(value))]


def set_data(
    cfg: Config,
    data_root: str | None = None,
    images: str | None = None,
    masks: str | None = None,
    *,
    checkpoint: str | None = None,
    options: Iterable[str] = (),
) -> None:
    """Points the data sets of a config at a folder, or puts own data in their place.

    A ``data_root`` that holds what the config asks for becomes its ``data_root``. Any other with
    pairs of folders, and ``images`` with ``masks``, becomes a data set of its own: split as the
    config's stage needs it, with the config's transforms. Without test images of their own, 15 %
    are held out. What an error says to run names these data, too.

    Args:
        cfg: The config; it is changed.
        data_root: Folder of one data set or of several, in any known layout.
        images: With ``masks``: a folder of images.
        masks: Folder of their masks.
        checkpoint: Weights that are to be tested: of images that they were trained on, there or in
            another folder, the held-out ones are tested, of others all.
        options: Dotted keys that the command line overrides: those of data sets that are replaced
            are kept (:data:`KEPT` and pipelines) or refused.

    Raises:
        FileNotFoundError: There is no such folder, or no pair of folders in it.
        ValueError: One of ``images`` and ``masks`` is missing, or both and ``data_root`` given; an
            option has nothing left to change.
    """
    if not (data_root or images or masks):
        return
    if not images and not masks:
        if _fits(cfg, str(data_root)):
            for dataset in _data_sets(cfg):
                dataset["data_root"] = data_root
        else:
            root = require_folder(resolve_root(str(data_root)), "--data-root")
            _replace(cfg, recognise(root).parts, checkpoint, options)
    elif data_root:
        raise ValueError("give --data-root, or --images and --masks, not both")
    elif not images or not masks:
        missing = "--images" if masks else "--masks"
        raise ValueError(f"{missing} is not given; give --images and --masks, or --data-root")
    else:
        image, mask = (
            require_folder(resolve_root(folder), key).resolve()
            for folder, key in ((images, "--images"), (masks, "--masks"))
        )
        pair = Part(image.parent.name or image.name, "", Folders(image, mask), "")
        _replace(cfg, [pair], checkpoint, options)
    init = cfg.get("init_from")
    config = re.search(r"configs/\S+\.py", (init or {}).get("command") or "")
    if config:
        processes = os.environ.get("WORLD_SIZE", "1")
        words = ["codmoe", "train", config[0]]
        if processes != "1":
            words += ["--gpus", processes]
        init["command"] = shlex.join([*words, *data_arguments(data_root, images, masks)])


def _data_sets(cfg: Config) -> list[dict]:
    """Configs of all data sets that have a ``data_root``."""
    loaders = [cfg.get(f"{part}_dataloader") or {} for part in PARTS]
    return [d for loader in loaders for d in dicts_in(loader.get("dataset")) if "data_root" in d]


def _fits(cfg: Config, root: str) -> bool:
    """Whether one of the config's data sets is found in ``root``."""
    for dataset in _data_sets(cfg):
        plain = {k: v for k, v in dataset.items() if k not in ("pipeline", "cache", "split")}
        try:
            built = DATASETS.build({**plain, "data_root": root, "lazy_init": True})
            if hasattr(built, "folders"):  # others look for theirs when they are built
                built.folders()
        except (FileNotFoundError, ValueError):
            continue
        return True
    return False


def _kept(cfg: Config, options: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What of each loader's data set the command line sets and any other takes, too."""
    kept: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
    for option in options:
        found = re.match(r"(train|val|test)_dataloader\.dataset\.([^.]+)", option)
        if found and found[2] in KEPT:
            kept[found[1]][found[2]] = cfg[f"{found[1]}_dataloader"].dataset[found[2]]
        elif found and "pipeline" not in option.split("."):
            raise ValueError(
                f"--cfg-options {option} changes a data set that your own takes the place of; "
                f"{', '.join(f'{found[1]}_dataloader.dataset.{key}' for key in KEPT)} and "
                "pipelines can be set, all else in a config of your own"
            )
    return kept


def _replace(
    cfg: Config,
    found: Sequence[Part],
    checkpoint: str | None,
    options: Iterable[str],
) -> None:
    """Puts the parts in the place of the config's data sets."""
    kept = _kept(cfg, options)
    train = [each for each in found if each.role in ("", "train")]
    val = [each for each in found if each.role == "val"]
    test = [each for each in found if each.role == "test"]
    if not train and not checkpoint:
        held = ", ".join(str(each.folders.image) for each in found)
        raise ValueError(f"no images to train on: all that was found are test images ({held})")
    loaders = {part: cfg.get(f"{part}_dataloader") for part in PARTS}
    pipelines = {part: _pipeline(loader, loaders) for part, loader in loaders.items() if loader}
    fractions = FRACTIONS if test else WITH_TEST
    seen = _trained_on(checkpoint) if checkpoint else None
    held_out = seen is None or any(each.folders.image.resolve() in seen for each in train)
    known = _known(checkpoint, train) if checkpoint and not held_out else None
    # A training takes the larger part of a folder; fewer lie among other images.
    moved = known is not None and 2 * known[0] > known[1]
    held_out = held_out or moved
    uses = dict(train=_uses(cfg), val=("val",), test=("test",))
    for part, loader in loaders.items():
        if not loader:
            continue
        sets = {"val": val, "test": test}.get(part) or train
        if not sets:  # a test alone
            continue
        split: dict[str, Any] | None = None
        if sets is train and (part != "test" or held_out):
            split = dict(seed=0, fractions=fractions, use=uses[part])
        names = [each.name for each in sets]
        loader["dataset"] = dict(
            type="DatasetGroup",
            datasets={
                each.name if names.count(each.name) == 1 else f"{each.name}-{number}": dict(
                    type="CODDataset",
                    data_root=str(each.folders.image.parent),
                    image_dir=each.folders.image.name,
                    mask_dir=str(each.folders.mask.absolute()),
                    name=each.name,
                    split=split,
                    pipeline=pipelines[part],
                    **({"prefix": each.prefix} if each.prefix else {}),
                    **kept[part],
                )
                for number, each in enumerate(sets, 1)
            },
        )
        if part == "train":
            _fit_batch(loader)
        where = ", ".join(dict.fromkeys(str(each.folders.image) for each in sets))
        share = f" ({'+'.join(split['use'])} of {dict(fractions)})" if split else ""
        if part == "test" and sets is train and moved:
            share += "; the weights were trained on these images, in another folder"
        elif part == "test" and sets is train and known:
            share = f", all; the weights were trained on {known[0] or 'none'} of them"
        elif part == "test" and sets is train and seen and not split:
            others = listed(sorted(map(str, seen)), shown=2)
            share = f", all; the weights were trained on {others} (--held-out if they are the same)"
        note(f"{part}: images of {where}{share}")


def _fit_batch(loader: dict) -> None:
    """Lowers a batch size that is more than the images; bad files are told before any weights."""
    share = len(DATASETS.build(loader["dataset"])) // int(os.environ.get("WORLD_SIZE", "1"))
    if share < loader["batch_size"]:
        loader["batch_size"] = max(share, 1)
        note(f"train: few images; batch_size={loader['batch_size']}")


def _pipeline(loader: Mapping, loaders: Mapping[str, Any]) -> list[dict]:
    """A loader's transforms; images of any size become those that training sees."""
    pipeline = next(list(d["pipeline"]) for d in dicts_in(loader["dataset"]) if d.get("pipeline"))
    trained = next(
        (d["pipeline"] for d in dicts_in(loaders["train"]) if d.get("pipeline")), pipeline
    )
    sizes = [t.get("size") or t.get("scale") for t in trained if t["type"] in _RESIZING]
    if sizes and not any(t["type"] in _RESIZING for t in pipeline):
        pipeline.insert(1, dict(type="Resize", scale=tuple(sizes[0]), keep_ratio=False))
    return pipeline


_RESIZING = ("RandomWarp", "Resize")


def _uses(cfg: Config) -> tuple[str, ...]:
    """The parts of a split that the config's stage trains on."""
    if "router" in ((cfg.get("init_from") or {}).get("parts") or ()):
        return ("experts", "router")  # stage 3
    for node in dicts_in(cfg.train_dataloader.dataset):
        use = node.get("use") or node.get("part")
        if use:
            uses = [use] if isinstance(use, str) else use
            if set(uses) <= {"experts", "router"}:
                return tuple(uses)
    return ("experts",)


def _trained_on(checkpoint: str) -> set[Path] | None:
    """Folders of images that the weights' own config trains on; None of weights that are absent."""
    if not Path(checkpoint).is_file():
        return None  # which is told where they are loaded
    text = meta_of(checkpoint).get("config")
    stored = read_literals(text, f"checkpoint {checkpoint}") if isinstance(text, str) else {}
    loader = stored.get("train_dataloader") or {}
    return {
        (Path(d["data_root"]) / d["image_dir"]).resolve()
        for d in dicts_in(loader.get("dataset"))
        if d.get("data_root") and d.get("image_dir")
    }


def _known(checkpoint: str, sets: Sequence[Part]) -> tuple[int, int] | None:
    """How many of the images the weights were trained on, wherever these lay then, and of how many;
    None of weights that do not know.
    """
    seen = read(meta_of(checkpoint).get(TRAINED_ON))
    files = [path for each in sets for path in image_files(each.folders.image, each.prefix)]
    return (sum(mark in seen for mark in marks(files)), len(files)) if seen else None

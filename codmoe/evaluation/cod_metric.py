"""Metric of segmentation quality: the mixture, each expert, their plain mean and an oracle."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.dist import broadcast_object_list, get_world_size, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from codmoe.datasets.reading import read_image
from codmoe.evaluation.conventions import COMBINED
from codmoe.evaluation.measures import (
    BACKENDS,
    TRUTHS,
    aggregate,
    batch_measures,
    best_expert,
    best_threshold,
    checked_extra,
    image_scalars,
    mean_curves,
    uniform_probability,
)
from codmoe.evaluation.measures.extra import BY_REFERENCE
from codmoe.evaluation.measures.reference import pysodmetrics
from codmoe.messages import listed, suggest
from codmoe.registry import METRICS

NO_MASK = "load masks in the test pipeline (LoadCODPair, PackCODInputs(keep_original=True))"


class PerImageMetric(BaseMetric):
    """A metric that keeps exactly one record per image, in the order the images were seen.

    mmengine interleaves the ranks' records and cuts them at the data set's length, which drops the
    duplicates a sampler pads with. That is exact for one record per image and for nothing else.

    Args:
        collect_device: ``"cpu"`` gathers through a shared folder, ``"gpu"`` through the network.
        prefix: Put before every logged key as ``<prefix>/``.
    """

    def __init__(self, collect_device: str = "cpu", prefix: str | None = None):
        # BaseMetric warns when the prefix is None; here plain keys ("IoU") are what is wanted.
        super().__init__(collect_device=collect_device, prefix=prefix or "unused")
        self.prefix = prefix
        self._size: int | None = None

    def evaluate(self, size: int) -> dict:
        """Metrics over ``size`` images, gathered from all ranks; see mmengine's BaseMetric."""
        self._size = size
        if self.collect_device != "cpu" or get_world_size() == 1:
            return super().evaluate(size)
        # In the working directory, as mmengine's own, whose parent `.dist_test` stays there.
        made = [tempfile.mkdtemp(prefix=".codmoe-metric-", dir=".") if is_main_process() else ""]
        broadcast_object_list(made)
        (self.collect_dir,) = made
        try:
            return super().evaluate(size)
        finally:
            if is_main_process():
                shutil.rmtree(self.collect_dir, ignore_errors=True)

    def check_count(self, results: Sequence[Any]) -> None:
        """Warns if fewer records than images arrived."""
        # Only rank 0 comes here; raising would leave the others waiting in a broadcast.
        if self._size is not None and len(results) != self._size:
            print_log(
                f"{type(self).__name__} saw {len(results)} of {self._size} images; its numbers "
                "are over those only.",
                logger="current",
                level=logging.WARNING,
            )


def as_mapping(sample: Any) -> Mapping[str, Any]:
    """A data sample as a dictionary of its metainfo and data; dictionaries pass unchanged."""
    return sample if isinstance(sample, Mapping) else sample.to_dict()


def identity(sample: Mapping[str, Any]) -> dict[str, str]:
    """``stem`` and ``dataset`` of a sample; the stem falls back to the image's file name."""
    stem = sample.get("stem") or Path(str(sample.get("img_path", ""))).stem
    if not stem:
        raise ValueError(
            "A data sample has neither `stem` nor `img_path`; add them to `meta_keys` of the "
            "dataset's packing transform."
        )
    return {"stem": str(stem), "dataset": str(sample.get("dataset") or "data")}


def required(sample: Mapping[str, Any], key: str, remedy: str) -> Any:
    """``sample[key]``.

    Raises:
        ValueError: It is absent or None; the message ends in ``remedy``.
    """
    value = sample.get(key)
    if value is None:
        name = sample.get("stem") or sample.get("img_path") or "?"
        raise ValueError(f"The data sample of image {name!r} has no `{key}`; {remedy}.")
    return value


@METRICS.register_module()
class CODMetric(PerImageMetric):
    """The measures of :mod:`per_image` for one or more sources of a prediction.

    Logged keys: ``IoU``, ``Dice``, ... for the mixture over all images; ``<source>/IoU`` for other
    sources; with several data sets also ``<dataset>/IoU`` and ``<dataset>/<source>/IoU``. The whole
    result stays in ``table``: ``table[dataset][source]`` is a row of
    :func:`aggregate` plus ``"images": {stem: {metric: value}}`` and, if
    full, ``"curves"`` (see :func:`mean_curves`). It is filled on rank 0
    and empty elsewhere.

    Maps are measured where they are: on the GPU if the model leaves them there. What depends on the
    ground truth alone is kept from one epoch to the next.

    Args:
        full: All measures; False computes IoU, Dice and MAE only, for validation during training.
        sources: What is scored: ``"mixture"``, an expert's name, ``"uniform"`` (mean of all
            experts' probabilities), ``"oracle"`` (for each image the expert with the best IoU at
            0.5, a bound that reads the ground truth), or ``"all"`` of these. Everything but the
            mixture needs ``model.evaluate_all_experts=True``.
        cache_gb: Memory for what depends on the ground truth alone, shared by all metrics of the
            process; a mask takes 1 byte a pixel, with full measures 5, for a GPU 3. None leaves it
            at 2 GB.
        backend: ``"torch"``; ``"pysodmetrics"`` has the field's measures computed by PySODMetrics
            itself, on the CPU and some ten times slower, for whoever wants to check.
        extra: Further measures by name, of :data:`EXTRA` or ``"all"``; none by default, for all
            of them take a hundred times as long as the others. ``"CCM"`` and ``"HCE"`` need
            ``codmoe[pysodmetrics]``; ``"CCM"`` reads each image again, from ``img_path``.
        **kwargs: See :class:`PerImageMetric`.
    """

    def __init__(
        self,
        full: bool = True,
        sources: Sequence[str] | str = ("mixture",),
        backend: str = "torch",
        extra: Sequence[str] | str = (),
        cache_gb: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.full = full
        self.sources = (sources,) if isinstance(sources, str) else tuple(sources)
        if not self.sources:
            raise ValueError("CODMetric: sources is empty; name at least one, such as 'mixture'.")
        if backend not in BACKENDS:
            raise ValueError(f"CODMetric: backend={backend!r}; {suggest(backend, BACKENDS)}")
        self.extra = checked_extra(extra)
        if self.extra and not full:
            raise ValueError(f"CODMetric: extra={listed(self.extra)} needs full=True")
        if backend == "pysodmetrics" or set(self.extra) & set(BY_REFERENCE):
            pysodmetrics()  # a missing package is told now, not after the first batch
        self.backend = backend
        if cache_gb is not None:
            if not cache_gb >= 0:
                raise ValueError(f"CODMetric: cache_gb={cache_gb}; it must not be negative")
            TRUTHS.max_bytes = int(cache_gb * 2**30)
        self.table: dict[str, dict[str, dict]] = {}
        self.threshold: float | None = None
        """Of the mixture's best mean IoU over all images, see :func:`best_threshold`; on rank 0."""

    def process(self, data_batch: Any, data_samples: Iterable[Any]) -> None:
        """Measures a batch and keeps one record per image.

        Raises:
            ValueError: The ground truth or, if a source needs it, an expert's map is absent; a
                source has no such name.
        """
        samples = [as_mapping(sample) for sample in data_samples]
        wanted = [self._resolve(sample) for sample in samples]
        maps, masks, images = [], [], []
        for sample, sources in zip(samples, wanted, strict=True):
            gt = required(sample, "gt_mask", NO_MASK)
            maps.append(_maps(sample, sources))
            masks += [gt] * len(maps[-1])
            image = None
            if "CCM" in self.extra:
                path = required(sample, "img_path", "extra='CCM' reads the image")
                image = image_at(path, gt.shape)
            images += [image] * len(maps[-1])
        probs = [prob for each in maps for prob in each.values()]
        try:
            options: dict[str, Any] = dict(full=self.full, backend=self.backend)
            results = batch_measures(probs, masks, **options, extra=self.extra, images=images)
        except ValueError:
            self._blame(samples, maps, masks)
            raise
        found = iter(results)
        for sample, sources, each in zip(samples, wanted, maps, strict=True):
            measures = {name: next(found) for name in each}
            if "oracle" in sources:
                ious = {name: measures[name]["IoU"] for name in sample["expert_probs"]}
                measures["oracle"] = measures[best_expert(ious)]
            kept = {source: measures[source] for source in sources}
            self.results.append(identity(sample) | {"measures": kept})

    def _blame(self, samples: list, maps: list[dict], masks: list) -> None:
        """Measures one map after the other, so that the error names the one at fault."""
        pairs = [
            (s, name, p) for s, each in zip(samples, maps, strict=True) for name, p in each.items()
        ]
        for (sample, source, prob), mask in zip(pairs, masks, strict=True):
            try:
                batch_measures([prob], [mask], full=self.full, backend=self.backend)
            except ValueError as error:
                where = identity(sample)
                raise ValueError(
                    f"image {where['stem']!r} of {where['dataset']}, {source}: {error}"
                ) from error

    def _resolve(self, sample: Mapping[str, Any]) -> tuple[str, ...]:
        """The sources of one image, ``"all"`` written out, each once."""
        experts = list(sample.get("expert_probs") or {})
        known = list((sample.get("routing") or {}).get("expert_names") or experts)
        valid = [*known, *COMBINED, "all"]
        for source in self.sources:
            if known and source not in valid:
                raise ValueError(
                    f"CODMetric: sources has no {source!r} to score; {suggest(source, valid)}"
                )
            needed = known if source in ("all", "uniform", "oracle") else [source]
            if source != "mixture" and (not experts or not set(needed) <= set(experts)):
                raise ValueError(
                    f"CODMetric: source {source!r} needs the map of every expert, and the model "
                    "did not return them; set model.evaluate_all_experts=True."
                )
        every = [*experts, *COMBINED]
        named = [name for s in self.sources for name in (every if s == "all" else [s])]
        return tuple(dict.fromkeys(named))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Flat scalars for the logger; fills ``table``."""
        self.check_count(results)
        self.table, self.threshold = {}, None
        if not results:
            return {}
        mixtures = [record["measures"].get("mixture", {}) for record in results]
        if all("by_threshold" in measures for measures in mixtures):
            self.threshold = best_threshold([measures["by_threshold"] for measures in mixtures])
        groups = by_dataset(results)
        scalars = self._scalars("", {s: self._row(results, s) for s in results[0]["measures"]})
        for dataset, records in groups.items():
            rows = {source: self._row(records, source) for source in records[0]["measures"]}
            if len(groups) > 1:
                scalars |= self._scalars(f"{dataset}/", rows)
            for source, row in rows.items():
                row["images"] = _by_stem(records, source)
                if self.full:
                    row["curves"] = mean_curves([r["measures"][source] for r in records])
            self.table[dataset] = rows
        return scalars

    @staticmethod
    def _row(records: list[dict], source: str) -> dict[str, Any]:
        return aggregate([record["measures"][source] for record in records])

    @staticmethod
    def _scalars(prefix: str, rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        return {
            f"{prefix}{'' if source == 'mixture' else source + '/'}{key}": value
            for source, row in rows.items()
            for key, value in row.items()
            if key != "n"
        }


def image_at(path: str | os.PathLike, size: Sequence[int]) -> np.ndarray:
    """The image itself, RGB, at the (height, width) of its mask."""
    image = read_image(str(path))
    height, width = size
    return image if image.shape[:2] == (height, width) else cv2.resize(image, (width, height))


def _maps(sample: Mapping[str, Any], sources: Sequence[str]) -> dict[str, Any]:
    """The maps of one image to be measured, by source; the oracle needs those of all experts."""
    experts = sample.get("expert_probs") or {}
    maps = {name: experts[name] for name in experts if name in sources or "oracle" in sources}
    if "uniform" in sources:
        maps["uniform"] = uniform_probability(experts)
    if "mixture" in sources:
        remedy = "CODMetric reads what the model's `predict` mode returns"
        maps["mixture"] = required(sample, "pred_prob", remedy)
    return maps


def by_dataset(records: Iterable[dict]) -> dict[str, list[dict]]:
    """Records of images by the name of their data set."""
    groups: dict[str, list[dict]] = {}
    for record in records:
        groups.setdefault(record["dataset"], []).append(record)
    return groups


def unique_stems(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The records' stems; a repeated one gets a number: two subfolders may hold two images of one
    stem, and neither may hide the other."""
    seen: dict[str, int] = {}
    stems = []
    for record in records:
        stem = record["stem"]
        seen[stem] = seen.get(stem, 0) + 1
        stems.append(stem if seen[stem] == 1 else f"{stem}#{seen[stem]}")
    return stems


def _by_stem(records: list[dict], source: str) -> dict[str, dict[str, float]]:
    scalars = (image_scalars(record["measures"][source]) for record in records)
    return dict(zip(unique_stems(records), scalars, strict=True))

"""Segmentation quality of the mixture, of each expert, of their plain mean and of an oracle."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from codmoe.evaluation.measures import (
    aggregate,
    best_expert,
    image_measures,
    image_scalars,
    iou_and_dice,
    uniform_probability,
)
from codmoe.registry import METRICS, suggest

COMBINED_SOURCES = ("uniform", "oracle", "mixture")


class PerImageMetric(BaseMetric):
    """A metric that keeps exactly one record per image, in the order the images were seen.

    mmengine interleaves the ranks' records and cuts them at the data set's length, which drops the
    duplicates a sampler pads with. That is exact for one record per image and for nothing else.
    """

    def __init__(self, collect_device: str = "cpu", prefix: str | None = None):
        # BaseMetric warns when the prefix is None; here plain keys ("IoU") are what is wanted.
        super().__init__(collect_device=collect_device, prefix=prefix or "unused")
        self.prefix = prefix
        self._size: int | None = None

    def evaluate(self, size: int) -> dict:
        """Metrics over ``size`` images, gathered from all ranks; see mmengine's BaseMetric."""
        self._size = size
        return super().evaluate(size)

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
    """The measures of :mod:`codmoe.evaluation.measures` for one or more sources of a prediction.

    Logged keys: ``IoU``, ``Dice``, ... for the mixture over all images; ``<source>/IoU`` for other
    sources; with several data sets also ``<dataset>/IoU`` and ``<dataset>/<source>/IoU``. The whole
    result stays in ``table``: ``table[dataset][source]`` is a row of
    :func:`~codmoe.evaluation.measures.aggregate` plus ``"images": {stem: {metric: value}}``. It is
    filled on rank 0 and empty elsewhere.

    Args:
        full: All measures; False computes IoU, Dice and MAE only, for validation during training.
        sources: What is scored: ``"mixture"``, an expert's name, ``"uniform"`` (mean of all
            experts' probabilities), ``"oracle"`` (for each image the expert with the best IoU at
            0.5, a bound that reads the ground truth), or ``"all"`` of these. Everything but the
            mixture needs ``model.evaluate_all_experts=True``.
        collect_device: ``"cpu"`` gathers through a shared folder, ``"gpu"`` through the network.
        prefix: Put before every logged key as ``<prefix>/``.
    """

    def __init__(
        self,
        full: bool = True,
        sources: Sequence[str] | str = ("mixture",),
        collect_device: str = "cpu",
        prefix: str | None = None,
    ):
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.full = full
        self.sources = (sources,) if isinstance(sources, str) else tuple(sources)
        if not self.sources:
            raise ValueError("CODMetric: sources is empty; name at least one, such as 'mixture'.")
        self.table: dict[str, dict[str, dict]] = {}

    def process(self, data_batch: Any, data_samples: Iterable[Any]) -> None:
        """Measures a batch and keeps one record per image.

        Raises:
            ValueError: The ground truth or, if a source needs it, an expert's map is absent; a
                source has no such name.
        """
        for sample in map(as_mapping, data_samples):
            self.results.append(identity(sample) | {"measures": self._measure(sample)})

    def _measure(self, sample: Mapping[str, Any]) -> dict[str, dict]:
        gt = required(sample, "gt_mask", "load masks in the test pipeline (LoadMask, PackInputs)")
        sources = self._resolve(sample)
        experts = sample.get("expert_probs") or {}
        done: dict[str, dict] = {}

        def of_expert(name: str) -> dict:
            if name not in done:
                done[name] = image_measures(experts[name], gt, full=self.full)
            return done[name]

        measures = {}
        for source in sources:
            if source == "mixture":
                remedy = "CODMetric reads what the model's `predict` mode returns"
                mixture = required(sample, "pred_prob", remedy)
                measures[source] = image_measures(mixture, gt, full=self.full)
            elif source == "uniform":
                uniform = uniform_probability(experts)
                measures[source] = image_measures(uniform, gt, full=self.full)
            elif source == "oracle":
                ious = {
                    name: done[name]["IoU"] if name in done else iou_and_dice(prob, gt)[0]
                    for name, prob in experts.items()
                }
                measures[source] = of_expert(best_expert(ious))
            else:
                measures[source] = of_expert(source)
        return measures

    def _resolve(self, sample: Mapping[str, Any]) -> tuple[str, ...]:
        """The sources of one image, ``"all"`` written out, each once."""
        experts = list(sample.get("expert_probs") or {})
        known = list((sample.get("routing") or {}).get("expert_names") or experts)
        valid = [*known, *COMBINED_SOURCES, "all"]
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
        every = [*experts, *COMBINED_SOURCES]
        named = [name for s in self.sources for name in (every if s == "all" else [s])]
        return tuple(dict.fromkeys(named))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Flat scalars for the logger; fills ``table``."""
        self.check_count(results)
        self.table = {}
        if not results:
            return {}
        groups: dict[str, list[dict]] = {}
        for record in results:
            groups.setdefault(record["dataset"], []).append(record)

        scalars = self._scalars("", {s: self._row(results, s) for s in results[0]["measures"]})
        for dataset, records in groups.items():
            rows = {source: self._row(records, source) for source in records[0]["measures"]}
            if len(groups) > 1:
                scalars |= self._scalars(f"{dataset}/", rows)
            for source, row in rows.items():
                row["images"] = _by_stem(records, source)
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


def _by_stem(records: list[dict], source: str) -> dict[str, dict[str, float]]:
    images: dict[str, dict[str, float]] = {}
    for record in records:
        key, count = record["stem"], 1
        # The same stem in two subfolders names two images; neither may hide the other.
        while key in images:
            count += 1
            key = f"{record['stem']}#{count}"
        images[key] = image_scalars(record["measures"][source])
    return images

"""Metric of routing: use of the experts, and how much of what they could give is obtained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from codmoe.evaluation.cod_metric import (
    NO_MASK,
    PerImageMetric,
    as_mapping,
    by_dataset,
    identity,
    required,
    unique_stems,
)
from codmoe.evaluation.measures import THRESHOLD
from codmoe.evaluation.measures.histogram import divide
from codmoe.registry import METRICS


def mutual_information(probabilities: Tensor) -> float:
    """I(image; expert) = H(mean p) - mean H(p), in nats.

    0 if the router says the same about every image, ln E if it is certain about each image and uses
    all experts equally. The load alone cannot tell these apart: a uniform router is balanced too.

    Args:
        probabilities: Softmax over all experts, (N, E); rows sum to 1.
    """
    p = torch.as_tensor(probabilities, dtype=torch.float64)
    if p.ndim != 2 or len(p) == 0:
        raise ValueError(
            f"probabilities must be (N, E) with N > 0, but has shape {tuple(p.shape)}."
        )
    information = torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean()
    # Non-negative by Jensen's inequality; what falls below zero is rounding.
    return max(float(information), 0.0)


def dense_weights(record: Mapping[str, Any]) -> Tensor:
    """Mixture weights of an image, one of ``RoutingMetric.records``, over all experts, zero where
    not chosen, (E,) float64.
    """
    dense = torch.zeros(len(record["expert_names"]), dtype=torch.float64)
    dense[record["indices"]] = torch.tensor(record["weights"], dtype=torch.float64)
    return dense


def first_choice(dense: Tensor) -> Tensor:
    """Weights over all experts (N, E) → the expert with the largest as a one-hot row, (N, E).

    Experts of equal weight share the choice (1/2 each for two), so that a uniform router does not
    look as if it always preferred the expert that happens to be first.
    """
    top = (dense == dense.max(dim=1, keepdim=True).values).double()
    return top / top.sum(dim=1, keepdim=True)


def source_ious(experts: Tensor, mixture: Tensor, gt: Tensor) -> Tensor:
    """IoU with the truth of every expert's mask, of their mean map's and of the mixture's, cut at
    0.5, (E + 2,) float64; 1 where mask and truth are empty.

    Args:
        experts: Foreground probabilities, (E, H, W).
        mixture: Likewise, (H, W).
        gt: Ground truth in {0, 1}, (H, W).
    """
    maps = torch.cat([experts, experts.mean(0, keepdim=True), mixture[None].to(experts)])
    masks, truth = maps > THRESHOLD, gt.to(maps.device).bool()
    both, either = ((x.sum((1, 2)).double()) for x in (masks & truth, masks | truth))
    return torch.where(either == 0, 1.0, divide(both, either))


@METRICS.register_module()
class RoutingMetric(PerImageMetric):
    """Use of the experts and, where all of them were run, the quality of the choice.

    Always: ``share_<name>`` (mean weight given to the expert, zero where not chosen; the shares sum
    to 1), ``chosen_<name>`` (fraction of images that have it in their top k),
    ``mutual_information`` (nats, of the full softmax), ``top1_max_share`` (fraction of images whose
    first choice is the most popular expert; 1 means collapse).

    With ``model.evaluate_all_experts=True`` also, each an IoU per image at 0.5, not normalised, at
    the original resolution: ``IoU_<name>``, ``IoU_uniform`` (mean of all probabilities),
    ``IoU_oracle`` (best expert of each image), ``regret`` (oracle minus mixture, averaged; negative
    where the mixture beats every single expert), ``top1_accuracy`` (fraction of images whose first
    choice is a best expert).

    ``records`` keeps one entry per image for tools: stem, dataset, expert_names, probabilities,
    indices, weights and, where known, IoU by source. It is filled on rank 0 and empty elsewhere.
    Arguments as of :class:`PerImageMetric`.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.records: list[dict[str, Any]] = []

    def process(self, data_batch: Any, data_samples: Iterable[Any]) -> None:
        """Keeps one record per image.

        Raises:
            ValueError: A sample has no ``routing``, or experts' maps without a ground truth.
        """
        remedy = "RoutingMetric is for a model with a router, in its `predict` mode"
        records: list[dict[str, Any]] = []
        ious: list[Tensor] = []
        for sample in map(as_mapping, data_samples):
            routing = required(sample, "routing", remedy)
            record: dict[str, Any] = identity(sample)
            record["expert_names"] = list(routing["expert_names"])
            for key in ("probabilities", "indices", "weights"):
                record[key] = torch.as_tensor(routing[key]).tolist()
            experts = sample.get("expert_probs") or {}
            if set(experts) >= set(record["expert_names"]):
                record["IoU"] = len(ious)
                wanted = (("pred_prob", "regret compares it with the oracle"), ("gt_mask", NO_MASK))
                mixture, gt = (torch.as_tensor(required(sample, *each)) for each in wanted)
                stacked = torch.stack([torch.as_tensor(experts[n]) for n in record["expert_names"]])
                ious.append(source_ious(stacked, mixture, gt))
            records.append(record)
        # One copy to the host for the whole batch.
        table = torch.stack(ious).tolist() if ious else []
        for record in records:
            if "IoU" in record:
                names = [*record["expert_names"], "uniform", "mixture"]
                record["IoU"] = dict(zip(names, table[record["IoU"]], strict=True))
                best = max(record["IoU"][name] for name in record["expert_names"])
                record["IoU"]["oracle"] = best
        self.results += records

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Flat scalars for the logger; fills ``records``."""
        self.check_count(results)
        self.records = results
        if not results:
            return {}
        names = results[0]["expert_names"]
        # An image may have its own number of chosen experts (a threshold instead of a top k).
        dense = torch.stack([dense_weights(record) for record in results])
        first = first_choice(dense)
        scalars = {f"share_{n}": float(v) for n, v in zip(names, dense.mean(0), strict=True)}
        for i, name in enumerate(names):
            scalars[f"chosen_{name}"] = sum(i in r["indices"] for r in results) / len(results)
        scalars["mutual_information"] = mutual_information(
            torch.tensor([record["probabilities"] for record in results], dtype=torch.float64)
        )
        scalars["top1_max_share"] = float(first.mean(0).max())
        if all("IoU" in record for record in results):
            scalars |= self._quality(results, names, first)
        return scalars

    def weights(self) -> dict[str, dict[str, dict[str, float]]]:
        """``{dataset: {stem: {expert: mixture weight}}}`` of ``records``, zero where not chosen;
        under the stems of ``CODMetric.table``.
        """
        found = {}
        for dataset, records in by_dataset(self.records).items():
            rows = [(r["expert_names"], dense_weights(r).tolist()) for r in records]
            each = [dict(zip(names, row, strict=True)) for names, row in rows]
            found[dataset] = dict(zip(unique_stems(records), each, strict=True))
        return found

    @staticmethod
    def _quality(results: list[dict], names: list[str], first: Tensor) -> dict[str, float]:
        columns = [*names, "uniform", "oracle", "mixture"]
        table = torch.tensor(
            [[record["IoU"][column] for column in columns] for record in results],
            dtype=torch.float64,
        )
        mean = dict(zip(columns, table.mean(0).tolist(), strict=True))
        scalars = {f"IoU_{column}": mean[column] for column in columns[:-1]}
        scalars["regret"] = mean["oracle"] - mean["mixture"]
        # Several experts may be equally good; any of them is a right choice.
        best = table[:, : len(names)] == table[:, [columns.index("oracle")]]
        scalars["top1_accuracy"] = float((first * best).sum(1).mean())
        return scalars

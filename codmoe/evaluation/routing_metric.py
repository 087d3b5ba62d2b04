"""Metric of routing: use of the experts, and how much of what they could give is obtained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from codmoe.evaluation.cod_metric import (
    NO_MASK,
    PerImageMetric,
    as_mapping,
    identity,
    required,
    unique_stems,
)
from codmoe.evaluation.measures import THRESHOLD
from codmoe.evaluation.measures.histogram import divide
from codmoe.registry import METRICS

Rows = Tensor | Sequence[Sequence[float]]


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


def dense_weights(indices: Rows, weights: Rows, experts: int) -> Tensor:
    """Mixture weights over all experts, zero where not chosen, (N, E).

    Args:
        indices: Chosen experts, (N, k).
        weights: Their weights, (N, k).
        experts: E.
    """
    places = torch.as_tensor(indices, dtype=torch.long)
    values = torch.as_tensor(weights, dtype=torch.float64)
    return values.new_zeros(len(values), experts).scatter_add_(1, places, values)


def chosen_frequency(indices: Rows, experts: int) -> Tensor:
    """Share of the images that have each expert in their top k, (E,); sums to k.

    Args:
        indices: Chosen experts, (N, k).
        experts: E.
    """
    places = torch.as_tensor(indices, dtype=torch.long)
    hit = torch.zeros(len(places), experts, dtype=torch.float64).scatter_(1, places, 1.0)
    return hit.mean(0)


def first_choice(dense: Tensor) -> Tensor:
    """The expert with the largest weight of each image as a one-hot row, (N, E).

    Experts of equal weight share the choice (1/2 each for two), so that a uniform router does not
    look as if it always preferred the expert that happens to be first.

    Args:
        dense: Weights over all experts, (N, E).
    """
    top = (dense == dense.max(dim=1, keepdim=True).values).double()
    return top / top.sum(dim=1, keepdim=True)


def ious_at(probs: Tensor, gt: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """IoU of each mask ``prob > threshold`` with one truth, 1 where both are empty, (S,) float64.

    Args:
        probs: Foreground probabilities, (S, H, W).
        gt: Ground truth in {0, 1}, (H, W).
    """
    masks, gt = probs > threshold, gt.bool()
    both, either = ((x.sum((1, 2)).double()) for x in (masks & gt, masks | gt))
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

    Args:
        collect_device: ``"cpu"`` gathers through a shared folder, ``"gpu"`` through the network.
        prefix: Put before every logged key as ``<prefix>/``.
    """

    def __init__(self, collect_device: str = "cpu", prefix: str | None = None):
        super().__init__(collect_device=collect_device, prefix=prefix)
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
                ious.append(self._ious(sample, record["expert_names"]))
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

    @staticmethod
    def _ious(sample: Mapping[str, Any], names: list[str]) -> Tensor:
        """IoU of every expert, their mean map and the mixture, (E + 2,), on the maps' device."""
        gt = required(sample, "gt_mask", NO_MASK)
        mixture = required(sample, "pred_prob", "regret compares the mixture with the oracle")
        experts = torch.stack([torch.as_tensor(sample["expert_probs"][name]) for name in names])
        mixture = torch.as_tensor(mixture).to(experts)
        maps = torch.cat([experts, experts.mean(0, keepdim=True), mixture[None]])
        return ious_at(maps, torch.as_tensor(gt).to(maps.device))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Flat scalars for the logger; fills ``records``."""
        self.check_count(results)
        self.records = results
        if not results:
            return {}
        names = results[0]["expert_names"]
        # An image may have its own number of chosen experts (a threshold instead of a top k).
        dense = torch.cat([_dense(record, len(names)) for record in results])
        chosen = torch.stack([_chosen(record, len(names)) for record in results]).mean(0)
        first = first_choice(dense)
        scalars = {f"share_{n}": float(v) for n, v in zip(names, dense.mean(0), strict=True)}
        scalars |= {f"chosen_{n}": float(v) for n, v in zip(names, chosen, strict=True)}
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
        groups: dict[str, list[dict]] = {}
        for record in self.records:
            groups.setdefault(record["dataset"], []).append(record)
        found = {}
        for dataset, records in groups.items():
            names = records[0]["expert_names"]
            rows = [_dense(record, len(names))[0].tolist() for record in records]
            each = [dict(zip(names, row, strict=True)) for row in rows]
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


def _dense(record: Mapping[str, Any], experts: int) -> Tensor:
    return dense_weights([record["indices"]], [record["weights"]], experts)


def _chosen(record: Mapping[str, Any], experts: int) -> Tensor:
    return chosen_frequency([record["indices"]], experts)

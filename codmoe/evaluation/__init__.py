"""Metrics and measures; importing this package registers the metrics."""

from codmoe.evaluation.attributes import AttributeMetric
from codmoe.evaluation.cod_metric import CODMetric
from codmoe.evaluation.conventions import CONVENTIONS
from codmoe.evaluation.measures import aggregate, batch_measures, image_measures, iou_and_dice
from codmoe.evaluation.routing_metric import RoutingMetric, mutual_information

__all__ = [
    "CONVENTIONS",
    "AttributeMetric",
    "CODMetric",
    "RoutingMetric",
    "aggregate",
    "batch_measures",
    "image_measures",
    "iou_and_dice",
    "mutual_information",
]

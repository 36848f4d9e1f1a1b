"""Honest measurement: areas and thresholds of images and of pixels, with their intervals.

Rates and areas are fractions. Nothing here rescales a score or an axis: AUPRO is the area under
PRO(FPR) up to a limit, divided by that limit. What has no value (one class only, no region) is None.
"""

from cfa_index.metrics.bootstrap import Interval, auroc_interval, paired_auroc_difference
from cfa_index.metrics.by_type import PixelMetricsByType
from cfa_index.metrics.frontier import pareto_frontier
from cfa_index.metrics.image import ImageMetrics, image_metrics, image_metrics_by_type
from cfa_index.metrics.pixels import BinningError, PixelIntervals, PixelMetrics
from cfa_index.metrics.ranking import F1Result, auroc, average_precision, f1_threshold
from cfa_index.metrics.threshold import Threshold, conformal_threshold

__all__ = [
    "BinningError",
    "F1Result",
    "ImageMetrics",
    "Interval",
    "PixelIntervals",
    "PixelMetrics",
    "PixelMetricsByType",
    "Threshold",
    "auroc",
    "auroc_interval",
    "average_precision",
    "conformal_threshold",
    "f1_threshold",
    "image_metrics",
    "image_metrics_by_type",
    "paired_auroc_difference",
    "pareto_frontier",
]

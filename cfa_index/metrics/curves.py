"""Areas and the best F1 from running counts: the arithmetic of every metric here, for images and pixels.

Running counts stand at falling thresholds: at position i, `false_alarms` are the good items (images or
pixels) that score at or above threshold i, `hits` the defective ones, and `overlap` the sum over
regions of the share of their pixels there. The last position holds everything. Arrays are (..., n):
leading axes, such as a bootstrap's resamples, are carried along. Between two positions a curve is a
straight line, so that ties count half. What has no value is NaN.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Bools: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Counts: TypeAlias = npt.NDArray[Any]
Values: TypeAlias = npt.NDArray[np.float64]


def roc_area(false_alarms: Counts, hits: Counts) -> Values:
    """Area under TPR(FPR), (...)."""
    fpr, tpr = _shares(false_alarms), _shares(hits)
    return _sum((fpr - _before(fpr)) * (tpr + _before(tpr))) / 2


def precision_area(false_alarms: Counts, hits: Counts) -> Values:
    """Average precision, (...): each step of the recall times the precision at its end, not interpolated."""
    recall = _shares(hits)
    precision = hits / np.maximum(hits + false_alarms, 1)
    return _sum((recall - _before(recall)) * precision)


def best_f1(false_alarms: Counts, hits: Counts) -> tuple[Values, npt.NDArray[np.intp]]:
    """The best F1, (...), and its first position, (...), which is that of the highest threshold."""
    # From counts: equal F1s are equal floats.
    f1 = _divided(2 * hits, hits + false_alarms + hits[..., -1:])
    at = f1.argmax(axis=-1)
    return np.take_along_axis(f1, at[..., None], axis=-1)[..., 0], at


def overlap_area(false_alarms: Counts, overlap: Counts, max_fpr: float) -> Values:
    """Area under PRO(FPR) from 0 to `max_fpr`, divided by `max_fpr`, (...)."""
    fpr, pro = _shares(false_alarms), _shares(overlap)
    width, share = _up_to(fpr, max_fpr)
    area = _sum(width * (_before(pro) + share * (pro - _before(pro)) / 2))
    return np.minimum(area / max_fpr, 1.0)


def roc_area_error(false_alarms: Counts, hits: Counts) -> Values:
    """How far `roc_area` can be off when items of a position are not tied but in unknown order, (...).

    Such an order is a monotone path within the rectangle that a step of the curve spans; the straight
    line leaves half of it on either side.
    """
    fpr, tpr = _shares(false_alarms), _shares(hits)
    return _sum((fpr - _before(fpr)) * (tpr - _before(tpr))) / 2


def overlap_area_error(false_alarms: Counts, overlap: Counts, max_fpr: float) -> Values:
    """The same for `overlap_area`; at the limit the path may have climbed the whole step already."""
    fpr, pro = _shares(false_alarms), _shares(overlap)
    width, share = _up_to(fpr, max_fpr)
    return _sum(width * (pro - _before(pro)) * (1 - share / 2)) / max_fpr


def precision_area_error(false_alarms: Counts, hits: Counts) -> Values:
    """The same for `precision_area`: all hits of a step come first, or all false alarms."""
    recall = _shares(hits)
    step = recall - _before(recall)
    precision = hits / np.maximum(hits + false_alarms, 1)
    highest = hits / np.maximum(hits + _before(false_alarms), 1)
    first = np.minimum(_before(hits) + 1, hits)
    lowest = first / np.maximum(first + false_alarms, 1)
    return np.maximum(_sum(step * (highest - precision)), _sum(step * (precision - lowest)))


def _before(values: Values | Counts) -> Values:
    """The value one position earlier, from 0."""
    shifted = np.zeros(values.shape, dtype=np.float64)
    shifted[..., 1:] = values[..., :-1]
    return shifted


def _sum(values: Values) -> Values:
    return np.asarray(values.sum(axis=-1), dtype=np.float64)


def _shares(counts: Counts) -> Values:
    return _divided(counts, counts[..., -1:])


def _divided(counts: Counts, by: Counts) -> Values:
    with np.errstate(invalid="ignore"):  # 0 / 0 where a class is not there
        return np.asarray(counts / by, dtype=np.float64)


def _up_to(fpr: Values, limit: float) -> tuple[Values, Values]:
    """How wide each step is below the limit, and which share of the step that is."""
    step = fpr - _before(fpr)
    width = np.clip(limit - _before(fpr), 0, step)
    return width, np.divide(width, step, out=np.zeros_like(step), where=step > 0)

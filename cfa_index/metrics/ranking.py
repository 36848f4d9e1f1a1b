"""Labels and scores in order: AUROC, average precision and the F1-optimal threshold of images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cfa_index.errors import SpecError
from cfa_index.metrics.curves import Bools, Counts, Floats, best_f1, precision_area, roc_area


def auroc(labels: Bools, scores: Floats) -> float | None:
    """Area under the ROC curve: P(defective scores above good), ties count half.

    Args:
        labels: (n,) bool, True is defective.
        scores: (n,) float, higher is more anomalous.

    Returns:
        A fraction, or None when only one class is there.

    Raises:
        SpecError: the shapes differ, labels are not bool, or a score is not finite.
    """
    return known(roc_area(*_counts(labels, scores)))


def average_precision(labels: Bools, scores: Floats) -> float | None:
    """Sum over falling thresholds of (R_i - R_{i-1}) P_i, as scikit-learn's `average_precision_score`.

    Args:
        labels, scores: as for `auroc`.

    Returns:
        A fraction, or None when nothing is defective.

    Raises:
        SpecError: as `auroc`.
    """
    return known(precision_area(*_counts(labels, scores)))


class F1Result(NamedTuple):
    """The best F1 and where it is reached: anomalous is score >= threshold (not the > of `Threshold`)."""

    threshold: float
    f1: float


def f1_threshold(labels: Bools, scores: Floats) -> F1Result | None:
    """The threshold of the best F1, for pictures and comparison: it has seen the labels of `auroc`.

    Returns:
        The highest of the thresholds that reach the best F1, where anomalous is score >= threshold as
        in scikit-learn's `precision_recall_curve`; None when nothing is defective.

    Raises:
        SpecError: as `auroc`.
    """
    ranking = rank(labels, scores)
    if not ranking.is_defective.any():
        return None
    f1, at = best_f1(*ranking.counts())
    return F1Result(threshold=float(ranking.thresholds[at]), f1=float(f1))


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Images in the order of falling scores, sorted once for all resamples.

    Attributes:
        order: (n,) the image at each place.
        is_defective: (n,) bool, its label.
        thresholds: (t,) the distinct scores, falling.
        ends: (t,) the last place of each distinct score.
    """

    order: npt.NDArray[np.intp]
    is_defective: Bools
    thresholds: Floats
    ends: npt.NDArray[np.intp]

    def counts(self, times: npt.NDArray[np.int64] | None = None) -> tuple[Counts, Counts]:
        """False alarms and hits, (..., t), when image i counts `times[..., i]` times; without, once."""
        if times is None:
            times = np.ones(len(self.order), dtype=np.int64)
        drawn = times[..., self.order]
        false_alarms = np.cumsum(drawn * ~self.is_defective, axis=-1)[..., self.ends]
        hits = np.cumsum(drawn * self.is_defective, axis=-1)[..., self.ends]
        return false_alarms, hits


def rank(labels: Bools, scores: Floats) -> Ranking:
    """Sort images by falling score.

    Raises:
        SpecError: as `auroc`, or there is no image.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 1 or labels.shape != scores.shape or labels.dtype != np.bool_ or len(labels) == 0:
        raise SpecError(
            expected="labels (n,) bool and scores (n,) of at least one image",
            got=f"{labels.shape} {labels.dtype} and {scores.shape}",
            remedy="pass one label and one score an image",
        )
    if not np.isfinite(scores).all():
        raise SpecError(
            expected="finite scores",
            got=f"{(~np.isfinite(scores)).sum()} that are NaN or infinite",
            remedy="leave out the images that could not be scored",
        )
    order = np.argsort(scores, kind="stable")[::-1]
    falling = scores[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    return Ranking(order=order, is_defective=labels[order], thresholds=falling[ends], ends=ends)


def known(value: Floats) -> float | None:
    """A number of no axes; None where it is NaN."""
    return None if math.isnan(value) else float(value)


def _counts(labels: Bools, scores: Floats) -> tuple[Counts, Counts]:
    return rank(labels, scores).counts()

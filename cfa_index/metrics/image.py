"""What the image scores of a test split are worth, each number with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cfa_index.errors import SpecError
from cfa_index.metrics.bootstrap import Interval, drawn_times, percentiles
from cfa_index.metrics.curves import Bools, Floats, Values, best_f1, precision_area, roc_area
from cfa_index.metrics.ranking import Ranking, rank


@dataclass(frozen=True, kw_only=True)
class ImageMetrics:
    """Metrics of image scores with 95% percentile intervals of a bootstrap, stratified by class.

    The best F1 is a maximum, which a resample tends to overshoot: its interval lies a little high. A
    class with a single image is drawn whole each time, so that it adds nothing to any width.

    Attributes:
        auroc: a fraction; None with one class only.
        average_precision: scikit-learn's, a fraction; None when nothing is defective.
        f1: the best F1 over all thresholds; None when nothing is defective.
        f1_threshold: the highest threshold that reaches it, score >= threshold, in units of the score.
    """

    auroc: Interval | None
    average_precision: Interval | None
    f1: Interval | None
    f1_threshold: Interval | None


def image_metrics(labels: Bools, scores: Floats, *, resamples: int = 1000, seed: int = 0) -> ImageMetrics:
    """All metrics of one set of image scores.

    Args:
        labels: (n,) bool, True is defective.
        scores: (n,) float, higher is more anomalous.
        resamples, seed: number of bootstrap samples, and the seed that draws them.

    Raises:
        SpecError: no image, the shapes differ, labels are not bool, a score is not finite, or no
            resample is asked for.
    """
    ranking = rank(labels, scores)
    values = _values(ranking, np.ones((1, len(scores)), dtype=np.int64))[:, 0]
    draws = drawn_times(labels, resamples, seed)
    resampled = np.concatenate([_values(ranking, times) for times in draws], axis=1)
    intervals = []
    for value, others in zip(values, resampled, strict=True):
        low, high = percentiles(others, 0.95)
        intervals.append(None if np.isnan(value) else Interval(value=float(value), low=low, high=high))
    auroc, average_precision, f1, threshold = intervals
    return ImageMetrics(auroc=auroc, average_precision=average_precision, f1=f1, f1_threshold=threshold)


def _values(ranking: Ranking, times: npt.NDArray[np.int64]) -> Values:
    """AUROC, average precision, F1 and its threshold of each resample: (4, resamples)."""
    counts = ranking.counts(times)
    f1, at = best_f1(*counts)
    thresholds = np.where(ranking.is_defective.any(), ranking.thresholds[at], np.nan)
    f1 = np.where(ranking.is_defective.any(), f1, np.nan)
    return np.stack([roc_area(*counts), precision_area(*counts), f1, thresholds])


def image_metrics_by_type(
    types: Sequence[str], scores: Floats, *, good: str = "good", resamples: int = 1000, seed: int = 0
) -> dict[str, ImageMetrics]:
    """The metrics of each defect type against all good images.

    Args:
        types: (n,) the defect type of each image, `good` for none.
        scores: (n,) float, higher is more anomalous.
        good: the name of the good images.
        resamples, seed: as for `image_metrics`.

    Returns:
        The metrics by defect type, in the order of the names; empty without defects.

    Raises:
        SpecError: as `image_metrics`, or there are not as many types as scores.
    """
    names, scores = np.array(types, dtype=np.str_), np.asarray(scores)
    if names.shape != scores.shape:
        raise SpecError(
            expected="a type for each score",
            got=f"{names.shape} and {scores.shape}",
            remedy="pass one type and one score an image",
        )
    is_good = names == good
    by_type = {}
    for name in sorted({str(name) for name in names[~is_good]}):
        shown = is_good | (names == name)
        by_type[name] = image_metrics(~is_good[shown], scores[shown], resamples=resamples, seed=seed)
    return by_type

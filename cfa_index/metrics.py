"""Honest measurement: AUROC with its interval, pixel AUROC and AUPRO in bounded memory, thresholds.

Rates and AUROCs are fractions. Nothing here rescales a score or an axis: AUPRO is the area under
PRO(FPR) up to a limit, divided by that limit. What has no value (one class only, no region) is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from cfa_index.errors import SpecError

Bools: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.floating[Any]]

_DROPPED_BITS = 11
_BINS = 1 << (31 - _DROPPED_BITS)
"""Float32 without its sign and its last 11 bits: 8 bits of exponent and 12 of mantissa."""
_EIGHT_CONNECTED = np.ones((3, 3), dtype=np.int8)
_RESAMPLES_A_CHUNK = 128


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
    labels, scores = _checked(labels, scores)
    if labels.all() or not labels.any():
        return None
    return float(roc_auc_score(labels, scores))


def auroc_interval(
    labels: Bools, scores: Floats, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the AUROC by a bootstrap over images, stratified by class.

    Args:
        labels, scores: as for `auroc`.
        resamples, seed: number of bootstrap samples, and the seed that draws them.
        level: share of the resamples inside the interval.

    Returns:
        (low, high), fractions.

    Raises:
        SpecError: as `auroc`, or only one class is there.
    """
    labels, scores = _checked(labels, scores)
    (values,) = _bootstrap(labels, [scores], resamples, seed)
    return _percentiles(values, level)


def paired_auroc_difference(
    labels: Bools,
    scores_a: Floats,
    scores_b: Floats,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """AUROC of `scores_a` minus that of `scores_b` on the same images, with a paired bootstrap interval.

    Each resample draws the same images for both, so what makes an image hard for both cancels.

    Args:
        labels, scores_a, scores_b: (n,), as for `auroc`, in the same order of images.
        resamples, seed, level: as for `auroc_interval`.

    Returns:
        (difference, low, high), fractions; the difference is that of all images, which is also the
        bootstrap's expectation.

    Raises:
        SpecError: as `auroc`, or only one class is there.
    """
    labels, scores_a = _checked(labels, scores_a)
    _, scores_b = _checked(labels, scores_b)
    values_a, values_b = _bootstrap(labels, [scores_a, scores_b], resamples, seed)
    low, high = _percentiles(values_a - values_b, level)
    return float(roc_auc_score(labels, scores_a) - roc_auc_score(labels, scores_b)), low, high


class PixelMetrics:
    """Pixel AUROC and AUPRO over a stream of maps; memory does not grow with the number of images.

    The bit pattern of a non-negative float32 grows with its value, so its upper 20 bits are the bin of
    a histogram: scores within a relative 2^-12 of each other may share one and are then tied. Three
    histograms (24 MiB together) count normal pixels, defective pixels, and defective pixels of which
    each counts 1 / (pixels of its region), a region being 8-connected within its mask.

    A pixel that was not inspected never raises an alarm: it counts with the lowest score, 0. A defect
    outside the crop is a missed defect, and a normal pixel there is a true negative.
    """

    def __init__(self) -> None:
        self._normal = np.zeros(_BINS, dtype=np.int64)
        self._defect = np.zeros(_BINS, dtype=np.int64)
        self._region = np.zeros(_BINS, dtype=np.float64)
        self._regions = 0

    @property
    def regions(self) -> int:
        """Defective regions so far."""
        return self._regions

    def update(
        self, anomaly_map: npt.NDArray[np.float32], mask: Bools, inspected: Bools | None = None
    ) -> None:
        """Add one image.

        Args:
            anomaly_map: (H, W) float32, 0 or more. Without `inspected`, NaN means not inspected.
            mask: (H, W) bool, True where there is a defect.
            inspected: (H, W) bool; the map is read only where True.

        Raises:
            SpecError: the shapes differ, a mask is not bool, or an inspected score is negative or
                not finite. Nothing is added then.
        """
        scores = np.asarray(anomaly_map, dtype=np.float32)
        for name, array in (("mask", mask), ("inspected", inspected)):
            if array is not None and (array.dtype != np.bool_ or array.shape != scores.shape):
                raise SpecError(
                    expected=f"{name} of bool in the map's shape {scores.shape}",
                    got=f"{array.dtype} {array.shape}",
                    remedy=f"resample the map on the pixels of the mask, and pass {name} > 0",
                )
        if scores.ndim != 2:
            raise SpecError(expected="one map (H, W)", got=f"{scores.shape}", remedy="pass one image a call")
        scores = np.where(~np.isnan(scores) if inspected is None else inspected, scores, np.float32(0))
        if not (np.isfinite(scores) & (scores >= 0)).all():
            raise SpecError(
                expected="finite anomaly scores of 0 or more",
                got=f"a map from {scores.min()} to {scores.max()}",
                remedy="pass the raw map, not one that is normalised or shifted",
            )
        keys = np.abs(scores).view(np.uint32) >> _DROPPED_BITS  # abs: -0.0 has its sign bit set
        # add.at touches as many bins as there are pixels; bincount would sweep all 2^20 three times.
        np.add.at(self._normal, keys[~mask], 1)
        defect_keys = keys[mask]
        np.add.at(self._defect, defect_keys, 1)
        regions = np.empty(scores.shape, dtype=np.int32)
        count = int(ndimage.label(mask, structure=_EIGHT_CONNECTED, output=regions))
        region_of_pixel = regions[mask]
        sizes = np.bincount(region_of_pixel, minlength=count + 1)
        np.add.at(self._region, defect_keys, 1.0 / sizes[region_of_pixel])
        self._regions += count

    def merge(self, other: PixelMetrics) -> None:
        """Add what `other` has seen; it stays as it is."""
        self._normal += other._normal
        self._defect += other._defect
        self._region += other._region
        self._regions += other._regions

    def pixel_auroc(self) -> float | None:
        """AUROC over all pixels; None without a defective or without a normal pixel."""
        normal_pixels, defect_pixels = int(self._normal.sum()), int(self._defect.sum())
        if normal_pixels == 0 or defect_pixels == 0:
            return None
        below = np.cumsum(self._normal) - 0.5 * self._normal  # normal pixels below, ties count half
        return float((self._defect / defect_pixels) @ (below / normal_pixels))

    def aupro(self, max_fpr: float = 0.3) -> float | None:
        """Area under PRO(FPR) from 0 to `max_fpr`, divided by `max_fpr`.

        PRO is the mean over regions of the share of their pixels at or above the threshold, FPR the
        share of normal pixels there. Each bin is one threshold; between them, and at the limit, the
        curve is a straight line.

        Returns:
            A fraction; None without a normal pixel or without a region.

        Raises:
            SpecError: `max_fpr` is not in (0, 1].
        """
        if not 0 < max_fpr <= 1:
            raise SpecError(expected="max_fpr in (0, 1]", got=repr(max_fpr), remedy="give 0.3")
        normal_pixels = int(self._normal.sum())
        if normal_pixels == 0 or self._regions == 0:
            return None
        bins = np.flatnonzero(self._normal + self._defect)[::-1]
        fpr = np.concatenate([[0.0], np.cumsum(self._normal[bins]) / normal_pixels])
        pro = np.concatenate([[0.0], np.cumsum(self._region[bins]) / self._regions])
        kept = int(np.searchsorted(fpr, max_fpr, side="right"))  # fpr ends at exactly 1
        if kept < len(fpr):
            share = (max_fpr - fpr[kept - 1]) / (fpr[kept] - fpr[kept - 1])
            limit = pro[kept - 1] + share * (pro[kept] - pro[kept - 1])
            fpr, pro = np.append(fpr[:kept], max_fpr), np.append(pro[:kept], limit)
        area = float(np.diff(fpr) @ (pro[1:] + pro[:-1])) / 2
        return min(area / max_fpr, 1.0)


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
    labels, scores = _checked(labels, scores)
    if not labels.any():
        return None
    thresholds = np.unique(scores)
    alarms = len(scores) - np.searchsorted(np.sort(scores), thresholds)
    hits = labels.sum() - np.searchsorted(np.sort(scores[labels]), thresholds)
    f1 = 2 * hits / (alarms + labels.sum())  # from counts, so that equal F1s are equal floats
    best = int(np.flatnonzero(f1 == f1.max())[-1])
    return F1Result(threshold=float(thresholds[best]), f1=float(f1[best]))


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A threshold from good images only: an image is anomalous when its score is above `value`.

    Attributes:
        value: in the units of the score.
        requested_rate: the share of good images that may score above it, as asked.
        supported_rate: the share that `count` images can promise; larger when they are too few.
        count: n, held-out good images.
    """

    value: float
    requested_rate: float
    supported_rate: float
    count: int


def conformal_threshold(scores: Floats, rate: float) -> Threshold:
    """Split conformal: the score of rank ceil((n + 1)(1 - rate)), ascending from 1.

    A new good image, exchangeable with these, then scores above it with probability at most `rate`.
    Where that rank is above n, the maximum, which promises 1 / (n + 1).

    Args:
        scores: (n,) float, of good images held out of bank and training.
        rate: false alarms among good images, in (0, 1).

    Raises:
        SpecError: no scores, a score that is not finite, or a rate outside (0, 1).
    """
    if not 0 < rate < 1:
        raise SpecError(expected="a rate between 0 and 1", got=repr(rate), remedy="give for example 0.05")
    scores = np.asarray(scores)
    if scores.ndim != 1 or len(scores) == 0 or not np.isfinite(scores).all():
        raise SpecError(
            expected="finite scores (n,) of at least one held-out good image",
            got=f"{np.isfinite(scores).sum()} finite scores of shape {scores.shape}",
            remedy="hold out more good images, or give a threshold",
        )
    count = len(scores)
    # 20 * (1 - 0.05) may round to above 19: without the tolerance its ceiling could be 20.
    rank = max(math.ceil((count + 1) * (1 - rate) - 1e-9), 1)
    supported = rate if rank <= count else 1 / (count + 1)
    value = np.sort(scores)[min(rank, count) - 1]
    return Threshold(value=float(value), requested_rate=rate, supported_rate=supported, count=count)


def _checked(labels: Bools, scores: Floats) -> tuple[Bools, Floats]:
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 1 or labels.shape != scores.shape or labels.dtype != np.bool_:
        raise SpecError(
            expected="labels (n,) bool and scores (n,)",
            got=f"{labels.shape} {labels.dtype} and {scores.shape}",
            remedy="pass one label and one score an image",
        )
    if not np.isfinite(scores).all():
        raise SpecError(
            expected="finite scores",
            got=f"{(~np.isfinite(scores)).sum()} that are NaN or infinite",
            remedy="leave out the images that could not be scored",
        )
    return labels, scores


def _bootstrap(
    labels: Bools, several_scores: Sequence[Floats], resamples: int, seed: int
) -> list[npt.NDArray[np.float64]]:
    """AUROC of each resample for each of the scores, (resamples,) each, on the same drawn images."""
    goods, defects = np.flatnonzero(~labels), np.flatnonzero(labels)
    if len(goods) == 0 or len(defects) == 0 or resamples < 1:
        raise SpecError(
            expected="good and defective images, and at least one resample",
            got=f"{len(goods)} good, {len(defects)} defective, {resamples} resamples",
            remedy="an interval needs both classes",
        )
    ranked = []
    for scores in several_scores:
        order = np.argsort(scores[goods], kind="stable")
        ascending = scores[goods][order]
        below = np.searchsorted(ascending, scores[defects], side="left")
        not_above = np.searchsorted(ascending, scores[defects], side="right")
        ranked.append((order, below, not_above))
    values = [np.empty(resamples) for _ in several_scores]
    rng = np.random.default_rng(seed)
    for begin in range(0, resamples, _RESAMPLES_A_CHUNK):
        chunk = slice(begin, min(begin + _RESAMPLES_A_CHUNK, resamples))
        times_good = _draw(rng, chunk.stop - begin, len(goods))
        times_defect = _draw(rng, chunk.stop - begin, len(defects))
        for (order, below, not_above), result in zip(ranked, values, strict=True):
            # Column i: drawn good images among the i lowest.
            lowest = np.zeros((len(times_good), len(goods) + 1), dtype=np.int64)
            np.cumsum(times_good[:, order], axis=1, out=lowest[:, 1:])
            twice_won = ((lowest[:, below] + lowest[:, not_above]) * times_defect).sum(axis=1)
            result[chunk] = twice_won / (2 * len(goods) * len(defects))
    return values


def _draw(rng: np.random.Generator, resamples: int, count: int) -> npt.NDArray[np.int64]:
    """How often each of `count` images is drawn in each resample: (resamples, count)."""
    drawn = rng.integers(count, size=(resamples, count)) + count * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * count).reshape(resamples, count)


def _percentiles(values: npt.NDArray[np.float64], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise SpecError(expected="a level between 0 and 1", got=repr(level), remedy="give for example 0.95")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

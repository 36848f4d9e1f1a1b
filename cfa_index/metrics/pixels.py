"""Pixel metrics over a stream of maps: exact while that is cheap, then in bins with a stated error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cfa_index.errors import SpecError
from cfa_index.metrics.bootstrap import Interval, percentiles
from cfa_index.metrics.curves import (
    Bools,
    Values,
    best_f1,
    overlap_area,
    overlap_area_error,
    precision_area,
    precision_area_error,
    roc_area,
    roc_area_error,
)
from cfa_index.metrics.ranking import F1Result, known
from cfa_index.metrics.replicates import Replicates
from cfa_index.metrics.scores import PixelScores, Running, ScoreBins, ScoreList, count_in_bins

EXACT_PIXELS = 8_000_000
_EIGHT_CONNECTED = np.ones((3, 3), dtype=np.int8)


@dataclass(frozen=True, kw_only=True)
class PixelIntervals:
    """Point estimates over all pixels with their bootstrap intervals over images; None without a value."""

    auroc: Interval | None
    aupro: Interval | None
    average_precision: Interval | None


@dataclass(frozen=True, kw_only=True)
class BinningError:
    """How far each area can be from the one of the unbinned scores, as a fraction; 0 where it is exact."""

    auroc: float
    aupro: float
    average_precision: float


class PixelMetrics:
    """Pixel AUROC, AUPRO, average precision and F1 over a stream of maps.

    Up to `exact_pixels` pixels the scores are kept as they are: 4 bytes a normal pixel, 12 a defective
    one, so 31 MiB for 8 million normal ones. Beyond, they go into 2^20 bins (24 MiB), the upper 20 bits
    of a non-negative float32, in which scores within a relative 2^-12 of each other may be tied;
    `binning_error` says how much that can matter. With 400 resamples the bootstrap holds 11 MiB, and 40
    for the moments in which it joins bins. None of it grows with the number of images.

    A region is 8-connected within its mask. A pixel that was not inspected never raises an alarm: it
    counts with the lowest score, 0. A defect outside the crop is a missed defect, and a normal pixel
    there is a true negative.

    A category is measured by an accumulator of its own; for defect types see `PixelMetricsByType`.

    Args:
        exact_pixels: how many pixels are kept; 0 bins from the first image on.
        resamples: of the bootstrap behind `intervals`; 0 leaves it out.
        seed: of the bootstrap, 0 or more.

    Raises:
        SpecError: a number is negative.
    """

    def __init__(self, *, exact_pixels: int = EXACT_PIXELS, resamples: int = 400, seed: int = 0) -> None:
        if min(exact_pixels, resamples, seed) < 0:
            raise SpecError(
                expected="exact_pixels, resamples and seed of 0 or more",
                got=f"{exact_pixels}, {resamples} and {seed}",
                remedy="give 0 to keep no scores, or to have no intervals",
            )
        self._exact_pixels = exact_pixels
        self._resampling = (resamples, seed)
        self._replicates = Replicates(resamples, seed) if resamples else None
        self._scores: ScoreList | ScoreBins = ScoreList()
        self._images = self._pixels = self._regions = 0
        self._counted_itself = False
        self._running: Running | None = None

    @property
    def images(self) -> int:
        """Images so far."""
        return self._images

    @property
    def pixels(self) -> int:
        """Pixels so far."""
        return self._pixels

    @property
    def regions(self) -> int:
        """Defective regions so far."""
        return self._regions

    @property
    def is_exact(self) -> bool:
        """Whether every score is kept as it came, so that only rounding is left."""
        return isinstance(self._scores, ScoreList)

    def update(
        self,
        anomaly_map: npt.NDArray[np.float32],
        mask: Bools,
        inspected: Bools | None = None,
        *,
        number: int | None = None,
    ) -> None:
        """Add one image.

        Args:
            anomaly_map: (H, W) float32, 0 or more. Without `inspected`, NaN means not inspected.
            mask: (H, W) bool, True where there is a defect.
            inspected: (H, W) bool; the map is read only where True.
            number: of the image in the whole test set, 0 or more, from which its bootstrap weights are
                drawn. Without one it is the count of images so far; give it where parts are merged.

        Raises:
            SpecError: the shapes differ, a mask is not bool, an inspected score is negative or not
                finite, or the number is negative. Nothing is added then.
        """
        if number is not None and number < 0:
            raise SpecError(expected="a number of 0 or more", got=repr(number), remedy="number images from 0")
        scores = _inspected_scores(anomaly_map, mask, inspected)
        pixels, regions = _by_label(scores, mask)
        counts = count_in_bins(pixels)
        if self._replicates is not None:
            self._replicates.add(counts, self._images if number is None else number)
        if isinstance(self._scores, ScoreList):
            self._scores.add(pixels)
        else:
            self._scores.add(counts)
        self._images += 1
        self._pixels += scores.size
        self._regions += regions
        self._counted_itself |= number is None
        self._settle()

    def merge(self, other: PixelMetrics) -> None:
        """Add what `other` has seen; it stays as it is. Kept scores are shared, not copied.

        Raises:
            SpecError: the two draw another bootstrap, or images of both would have the same weights
                since they were not numbered over the whole test set. Nothing is added then.
        """
        if self._resampling != other._resampling:
            raise SpecError(
                expected=f"resamples and seed {self._resampling} in both",
                got=repr(other._resampling),
                remedy="make the parts with the same settings",
            )
        counted = self._counted_itself or other._counted_itself
        if self._replicates is not None and self._images and other._images and counted:
            raise SpecError(
                expected="images numbered over the whole test set",
                got="parts that count from 0 each, so that their bootstrap draws are the same",
                remedy="pass number= to update, or resamples=0 where no interval is needed",
            )
        if self._replicates is not None and other._replicates is not None:
            self._replicates.merge(other._replicates)
        if isinstance(self._scores, ScoreList) and isinstance(other._scores, ScoreList):
            self._scores.merge(other._scores)
        else:
            bins = self._scores.in_bins()
            bins.merge(other._scores.in_bins())
            self._scores = bins
        self._images += other._images
        self._pixels += other._pixels
        self._regions += other._regions
        self._counted_itself = counted
        self._settle()

    def to_bins(self) -> None:
        """Give up the exact scores and free their memory, as happens above `exact_pixels`."""
        self._scores = self._scores.in_bins()
        self._running = None

    def pixel_auroc(self) -> float | None:
        """AUROC over all pixels; None without a defective or without a normal pixel."""
        counts = self._counts()
        return known(roc_area(counts.false_alarms, counts.hits))

    def average_precision(self) -> float | None:
        """Average precision over all pixels, as of images; None without a defective pixel."""
        counts = self._counts()
        return known(precision_area(counts.false_alarms, counts.hits))

    def aupro(self, max_fpr: float = 0.3) -> float | None:
        """Area under PRO(FPR) from 0 to `max_fpr`, divided by `max_fpr` (Bergmann et al., 2021, MVTec AD).

        PRO is the mean over regions of the share of their pixels at or above the threshold, FPR the
        share of normal pixels there. Each distinct score (or bin) is one threshold; between them, and
        at the limit, the curve is a straight line.

        Returns:
            A fraction; None without a normal pixel or without a region.

        Raises:
            SpecError: `max_fpr` is not in (0, 1].
        """
        _check_limit(max_fpr)
        counts = self._counts()
        return known(overlap_area(counts.false_alarms, counts.overlap, max_fpr))

    def f1(self) -> F1Result | None:
        """The best F1 over all pixels and the highest threshold that reaches it; None without a defect.

        In bins the threshold is the lower end of a bin, and the F1 is exactly the one it reaches; a
        threshold within a bin may reach more.
        """
        counts = self._counts()
        if counts.hits[-1] == 0:
            return None
        f1, at = best_f1(counts.false_alarms, counts.hits)
        return F1Result(threshold=float(counts.thresholds[at]), f1=float(f1))

    def binning_error(self, max_fpr: float = 0.3) -> BinningError:
        """The bounds that hold whatever the order of the scores within each bin.

        For the AUROC that is half the share of pairs, one normal and one defective, in the same bin.

        Raises:
            SpecError: `max_fpr` is not in (0, 1].
        """
        _check_limit(max_fpr)
        if self.is_exact:
            return BinningError(auroc=0.0, aupro=0.0, average_precision=0.0)
        counts = self._counts()
        false_alarms, hits = counts.false_alarms, counts.hits
        return BinningError(
            auroc=known(roc_area_error(false_alarms, hits)) or 0.0,
            aupro=known(overlap_area_error(false_alarms, counts.overlap, max_fpr)) or 0.0,
            average_precision=known(precision_area_error(false_alarms, hits)) or 0.0,
        )

    def intervals(self, *, max_fpr: float = 0.3, level: float = 0.95) -> PixelIntervals:
        """Bootstrap intervals over images: pixels of an image stand and fall together.

        The bootstrap's counts are coarser than the point's, at most 2,048 bins over the scores that
        occur. So the interval is the point shifted by the percentiles of (replicate - coarse point),
        within [0, 1]. Replicates that lack a class are left out. It is not stratified: with few
        defective images it is wide, and with one it knows nothing of how defects differ.

        Args:
            max_fpr: limit of the AUPRO.
            level: share of the replicates inside.

        Raises:
            SpecError: made with resamples=0, or `max_fpr` or `level` is out of range.
        """
        points = (self.pixel_auroc(), self.aupro(max_fpr), self.average_precision())
        if self._replicates is None:
            raise SpecError(
                expected="an accumulator with resamples",
                got="resamples=0",
                remedy="make it with resamples=400",
            )
        columns = [
            (
                roc_area(false_alarms, hits),
                overlap_area(false_alarms, overlap, max_fpr),
                precision_area(false_alarms, hits),
            )
            for false_alarms, hits, overlap in self._replicates.counts()
        ]
        intervals = [
            _interval(point, values, level)
            for point, values in zip(points, np.concatenate(columns, axis=1), strict=True)
        ]
        return PixelIntervals(auroc=intervals[0], aupro=intervals[1], average_precision=intervals[2])

    def _settle(self) -> None:
        """After a change: forget the running counts, and go over to bins when there are too many scores."""
        self._running = None
        if self._pixels > self._exact_pixels:
            self.to_bins()

    def _counts(self) -> Running:
        if self._running is None:
            self._running = self._scores.running()
        return self._running


def _interval(point: float | None, values: Values, level: float) -> Interval | None:
    """Of a coarse point, the first value, and its replicates."""
    shifts = values[1:] - values[0]
    shifts = shifts[np.isfinite(shifts)]
    if point is None or len(shifts) == 0:
        return None
    low, high = (min(max(point + shift, 0.0), 1.0) for shift in percentiles(shifts, level))
    return Interval(value=point, low=low, high=high)


def _check_limit(max_fpr: float) -> None:
    if not 0 < max_fpr <= 1:
        raise SpecError(expected="max_fpr in (0, 1]", got=repr(max_fpr), remedy="give 0.3")


def _inspected_scores(
    anomaly_map: npt.NDArray[np.float32], mask: Bools, inspected: Bools | None
) -> npt.NDArray[np.float32]:
    """A copy of the map, checked, with 0 where nothing was inspected."""
    scores = np.asarray(anomaly_map, dtype=np.float32)
    for name, array in (("mask", mask), ("inspected", inspected)):
        if array is not None and (array.dtype != np.bool_ or array.shape != scores.shape):
            raise SpecError(
                expected=f"{name} of bool in the map's shape {scores.shape}",
                got=f"{array.dtype} {array.shape}",
                remedy=f"resample the map on the pixels of the mask, and pass {name} > 0",
            )
    if scores.ndim != 2 or scores.size == 0:
        raise SpecError(expected="one map (H, W)", got=f"{scores.shape}", remedy="pass one image a call")
    scores = np.where(~np.isnan(scores) if inspected is None else inspected, scores, np.float32(0))
    if not (np.isfinite(scores) & (scores >= 0)).all():
        raise SpecError(
            expected="finite anomaly scores of 0 or more",
            got=f"a map from {scores.min()} to {scores.max()}",
            remedy="pass the raw map, not one that is normalised or shifted",
        )
    return scores


def _by_label(scores: npt.NDArray[np.float32], mask: Bools) -> tuple[PixelScores, int]:
    """The scores of normal and defective pixels, and the number of regions."""
    if not mask.any():
        return PixelScores(scores.ravel(), np.empty(0, dtype=np.float32), np.empty(0)), 0
    labels = np.empty(scores.shape, dtype=np.int32)
    regions = int(ndimage.label(mask, structure=_EIGHT_CONNECTED, output=labels))
    region_of_pixel = labels[mask]
    sizes = np.bincount(region_of_pixel, minlength=regions + 1)
    return PixelScores(scores[~mask], scores[mask], 1.0 / sizes[region_of_pixel]), regions

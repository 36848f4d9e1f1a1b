"""Pixel scores as a stream leaves them: listed one by one, or counted in bins; and their running counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cfa_index.metrics.curves import Counts, Values

_DROPPED_BITS = 11
BINS = 1 << (31 - _DROPPED_BITS)
"""Float32 without its sign and its last 11 bits: 8 bits of exponent and 12 of mantissa."""

Scores = npt.NDArray[np.float32]


class PixelScores(NamedTuple):
    """Scores, 0 or more, of the normal and of the defective pixels of one image or of several.

    Attributes:
        normal: (n,) float32.
        defect: (m,) float32.
        shares: (m,) float64, of each defective pixel: 1 / (pixels of its region).
    """

    normal: Scores
    defect: Scores
    shares: Values


class Running(NamedTuple):
    """Running counts (t,) at falling thresholds, as `curves` takes them."""

    thresholds: Scores
    false_alarms: Counts
    hits: Counts
    overlap: Values


class BinCounts(NamedTuple):
    """How much of an image lies in each bin that it uses.

    Attributes:
        bins: (k,) int64, distinct and rising.
        counts: (3, k) float64, normal pixels, defective pixels and shares.
    """

    bins: npt.NDArray[np.int64]
    counts: Values


def count_in_bins(pixels: PixelScores) -> BinCounts:
    """Count pixels, at least one.

    The bit pattern of a non-negative float32 grows with its value: its upper 20 bits are the bin.
    """
    normal, defect = _bins_of(pixels.normal), _bins_of(pixels.defect)
    first = min(int(bins.min()) for bins in (normal, defect) if len(bins))
    last = max(int(bins.max()) for bins in (normal, defect) if len(bins))
    normals = np.bincount(normal - first, minlength=last - first + 1)
    if len(defect) == 0:
        used = np.flatnonzero(normals)
        counts = np.zeros((3, len(used)))
        counts[0] = normals[used]
        return BinCounts(first + used, counts)
    defects = np.bincount(defect - first, minlength=len(normals))
    shares = np.bincount(defect - first, weights=pixels.shares, minlength=len(normals))
    used = np.flatnonzero(normals + defects)
    return BinCounts(first + used, np.stack([normals[used], defects[used], shares[used]]))


class ScoreBins:
    """Counts in 2^20 bins: 24 MiB, whatever comes."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, BINS))  # whole numbers in float64 are exact up to 2^53

    def add(self, image: BinCounts) -> None:
        """Add an image's counts."""
        self._counts[:, image.bins] += image.counts

    def merge(self, other: ScoreBins) -> None:
        """Count what `other` has counted."""
        self._counts += other._counts

    def in_bins(self) -> ScoreBins:
        """Itself."""
        return self

    def running(self) -> Running:
        """A threshold is the lower end of its bin, so that the counts are those of score >= threshold."""
        bins = np.flatnonzero(self._counts[:2].any(axis=0))[::-1]
        false_alarms, hits, overlap = np.cumsum(self._counts[:, bins], axis=1)
        thresholds = (bins.astype(np.uint32) << _DROPPED_BITS).view(np.float32)
        return Running(thresholds, false_alarms, hits, overlap)


class ScoreList:
    """All scores as they came: 4 bytes a normal pixel, 12 a defective one."""

    def __init__(self) -> None:
        self._parts: list[PixelScores] = []

    def add(self, pixels: PixelScores) -> None:
        """Keep some pixels; the arrays are not copied."""
        self._parts.append(pixels)

    def merge(self, other: ScoreList) -> None:
        """Keep what `other` keeps, shared and not copied."""
        self._parts += other._parts

    def in_bins(self) -> ScoreBins:
        """The same in bins."""
        bins = ScoreBins()
        for part in self._parts:
            bins.add(count_in_bins(part))
        return bins

    def running(self) -> Running:
        """Two positions for each distinct defective score, just above it and at it, and the last.

        Between those only false alarms are added: the curves run level, and no precision or F1 is read.
        """
        normal = np.sort(_joined(part.normal for part in self._parts))
        defect = _joined(part.defect for part in self._parts)
        shares = np.concatenate([np.empty(0), *(part.shares for part in self._parts)])
        order = np.argsort(defect)
        rising, starts = np.unique(defect[order], return_index=True)
        thresholds = rising[::-1]
        counts = np.diff(np.append(starts, len(defect)))[::-1]
        shares = np.add.reduceat(shares[order], starts)[::-1]
        hits, overlap = np.cumsum(counts), np.cumsum(shares)
        above, at = (len(normal) - np.searchsorted(normal, thresholds, side) for side in ("right", "left"))
        return Running(
            np.append(np.repeat(thresholds, 2), np.float32(0)),
            _alternating(above, at, len(normal)),
            _alternating(hits - counts, hits, len(defect)),
            _alternating(overlap - shares, overlap, overlap[-1] if len(overlap) else 0.0),
        )


def _bins_of(scores: Scores) -> npt.NDArray[np.int64]:
    # abs: -0.0 has its sign bit set.
    return (np.abs(scores).view(np.uint32) >> _DROPPED_BITS).astype(np.int64)


def _joined(parts: Iterable[Scores]) -> Scores:
    return np.concatenate([np.empty(0, dtype=np.float32), *parts])


def _alternating(first: Counts, second: Counts, last: float) -> Counts:
    return np.append(np.stack([first, second], axis=1).ravel(), np.asarray(last, dtype=second.dtype))

"""A bootstrap over images for pixels, in one pass and bounded memory: Poisson weights on coarse counts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cfa_index.metrics.curves import Counts, Values

MAX_BINS = 2048
"""With 400 replicates, float32 and three kinds of counts: 9.4 MiB, twice that while bins are added."""
_COLUMNS_A_CHUNK = 32

Keys = npt.NDArray[np.int64]


class Replicates:
    """Counts of normal pixels, defective pixels and region shares in each of R resamples of the images.

    In replicate r the image of number i counts Poisson(1) times, drawn from (seed, i): for many images
    that is a bootstrap over images, and it needs no second look at any image (Chamandy et al., 2012,
    "Estimating uncertainty for massive data streams"). Since a draw depends on the image's number
    alone, the order of images and the way they were split over accumulators do not matter.

    Bins are those of the keys it is given, an order-preserving integer, less their last `shift` bits.
    Whenever more than `MAX_BINS` are in use the shift grows by one, which joins neighbours in pairs.
    The final shift depends only on which keys came, not on their order.

    Args:
        resamples: R, 1 or more.
        seed: of the draws.
    """

    def __init__(self, resamples: int, seed: int) -> None:
        self._resamples = resamples
        self._seed = seed
        self._shift = 0
        self._keys: Keys = np.empty(0, dtype=np.int64)
        # (normal, defective, region share; bins; every image once, then the replicates)
        self._sums = np.zeros((3, 0, 1 + resamples), dtype=np.float32)

    def add(self, keys: Keys, counts: Counts, number: int) -> None:
        """Add one image: distinct ascending keys (k,), counts (3, k) and its number in the test set."""
        self._make_room(keys, 0)
        weights = np.ones(1 + self._resamples, dtype=np.float32)
        weights[1:] = np.random.default_rng((self._seed, number)).poisson(1.0, self._resamples)
        coarse, starts = _runs(keys >> self._shift)
        for sums, kind in zip(self._sums, np.add.reduceat(counts, starts, axis=1), strict=True):
            some = np.flatnonzero(kind)
            sums[np.searchsorted(self._keys, coarse[some])] += kind[some, None].astype(np.float32) * weights

    def merge(self, other: Replicates) -> None:
        """Add what `other` has seen; the two have the same seed and resamples."""
        self._make_room(other._keys, other._shift)
        coarse, starts = _runs(other._keys >> (self._shift - other._shift))
        at = np.searchsorted(self._keys, coarse)
        self._sums[:, at] += np.add.reduceat(other._sums, starts, axis=1)

    def counts(self) -> Iterator[tuple[Values, Values, Values]]:
        """Running false alarms, hits and overlap, (columns, bins) each, a few columns at a time.

        The first column of all counts every image once.
        """
        for begin in range(0, 1 + self._resamples, _COLUMNS_A_CHUNK):
            falling = self._sums[:, ::-1, begin : begin + _COLUMNS_A_CHUNK].transpose(0, 2, 1)
            normal, defect, region = np.cumsum(falling, axis=-1, dtype=np.float64)
            yield normal, defect, region

    def _make_room(self, keys: Keys, shift: int) -> None:
        """See that there is a bin for each of these keys, which have lost `shift` bits already."""
        new_shift = max(self._shift, shift)
        old = self._keys >> (new_shift - self._shift)
        union = np.union1d(old, keys >> (new_shift - shift))
        while len(union) > MAX_BINS:
            new_shift += 1
            union = np.unique(union >> 1)
        if new_shift == self._shift and len(union) == len(self._keys):
            return
        sums = np.zeros((3, len(union), 1 + self._resamples), dtype=np.float32)
        coarse, starts = _runs(self._keys >> (new_shift - self._shift))
        sums[:, np.searchsorted(union, coarse)] = np.add.reduceat(self._sums, starts, axis=1)
        self._keys, self._sums, self._shift = union, sums, new_shift


def _runs(ascending: Keys) -> tuple[Keys, npt.NDArray[np.intp]]:
    """The distinct values and where each begins."""
    starts = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1])[: len(ascending)])
    return ascending[starts], starts

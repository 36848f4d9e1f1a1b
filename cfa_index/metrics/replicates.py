"""A bootstrap over images for pixels, in one pass and bounded memory: Poisson weights on coarse counts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cfa_index.metrics.curves import Values
from cfa_index.metrics.scores import BINS, BinCounts

MAX_BINS = 2048
"""With 400 replicates, float32 and three kinds of counts: 9.4 MiB, four times that while bins are joined."""
_COLUMNS_A_CHUNK = 32

Keys = npt.NDArray[np.int64]


class Replicates:
    """Counts of normal pixels, defective pixels and region shares in each of R resamples of the images.

    In replicate r the image of number i counts Poisson(1) times, drawn from (seed, i): for many images
    that is a bootstrap over images, and it needs no second look at any image (Chamandy et al., 2012,
    "Estimating uncertainty for massive data streams"). Since a draw depends on the image's number
    alone, the order of images and the way they were split over accumulators do not matter.

    Bins are those of `count_in_bins`, less the last `shift` bits of their number. Whenever more than
    `MAX_BINS` of them are in use the shift grows by one, which joins neighbours in pairs: the final one
    depends only on which bins were ever in use.

    Args:
        resamples: R, 1 or more.
        seed: of the draws.
    """

    def __init__(self, resamples: int, seed: int) -> None:
        self._resamples = resamples
        self._seed = seed
        self._shift = 0
        self._keys: Keys = np.empty(0, dtype=np.int64)  # of each row in use, in order of arrival
        self._row_of_key = np.full(BINS, -1, dtype=np.int16)
        # (normal, defective, region share; rows; every image once, then the replicates)
        self._sums = np.zeros((3, MAX_BINS, 1 + resamples), dtype=np.float32)

    def add(self, image: BinCounts, number: int) -> None:
        """Add one image by its counts and its number in the test set."""
        self._make_room(image.bins, 0)
        weights = np.ones(1 + self._resamples, dtype=np.float32)
        weights[1:] = np.random.default_rng((self._seed, number)).poisson(1.0, self._resamples)
        keys, starts = _runs(image.bins >> self._shift)
        rows = self._row_of_key[keys]
        for sums, kind in zip(self._sums, np.add.reduceat(image.counts, starts, axis=1), strict=True):
            some = np.flatnonzero(kind)
            sums[rows[some]] += kind[some, None].astype(np.float32) * weights

    def merge(self, other: Replicates) -> None:
        """Add what `other` has seen; the two have the same seed and resamples."""
        order = np.argsort(other._keys)
        self._make_room(other._keys[order], other._shift)
        keys, starts = _runs(other._keys[order] >> (self._shift - other._shift))
        self._sums[:, self._row_of_key[keys]] += np.add.reduceat(other._sums[:, order], starts, axis=1)

    def counts(self) -> Iterator[tuple[Values, Values, Values]]:
        """Running false alarms, hits and overlap, (columns, bins) each, a few columns at a time.

        The first column of all counts every image once.
        """
        falling = np.argsort(self._keys)[::-1]
        for begin in range(0, 1 + self._resamples, _COLUMNS_A_CHUNK):
            columns = self._sums[:, falling, begin : begin + _COLUMNS_A_CHUNK].transpose(0, 2, 1)
            normal, defect, region = np.cumsum(columns, axis=-1, dtype=np.float64)
            yield normal, defect, region

    def _make_room(self, ascending: Keys, shift: int) -> None:
        """See that each of these keys, which have lost `shift` bits already, has a row."""
        while True:
            if self._shift >= shift:
                keys, _ = _runs(ascending >> (self._shift - shift))
                new = keys[self._row_of_key[keys] < 0]
                if len(self._keys) + len(new) <= MAX_BINS:
                    break
            self._join_pairs()
        self._row_of_key[new] = np.arange(len(self._keys), len(self._keys) + len(new))
        self._keys = np.concatenate([self._keys, new])

    def _join_pairs(self) -> None:
        order = np.argsort(self._keys)
        keys, starts = _runs(self._keys[order] >> 1)
        joined = np.add.reduceat(self._sums[:, order], starts, axis=1)
        self._sums = np.zeros_like(self._sums)
        self._sums[:, : len(keys)] = joined
        self._row_of_key[:] = -1
        self._row_of_key[keys] = np.arange(len(keys))
        self._keys = keys
        self._shift += 1


def _runs(ascending: Keys) -> tuple[Keys, npt.NDArray[np.intp]]:
    """The distinct values and where each begins."""
    starts = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1])[: len(ascending)])
    return ascending[starts], starts

"""Running mean and covariance of vectors, streamed in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean (D,) and covariance (D, D), float64, over `count` vectors (population covariance)."""

    count: int
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


class RunningMoments:
    """Adds batches of vectors; memory is D * D, whatever their number.

    Sums are taken around the first batch's mean, which keeps the digits that a plain sum of
    squares would lose when the mean is large.
    """

    def __init__(self, width: int) -> None:
        self._count = 0
        self._shift: NDArray[np.float64] | None = None
        self._sum = np.zeros(width)
        self._products = np.zeros((width, width))

    def update(self, vectors: NDArray[np.floating]) -> None:
        """Add vectors (n, D)."""
        if not len(vectors):
            return
        batch = np.asarray(vectors, dtype=np.float64)
        if self._shift is None:
            self._shift = batch.mean(axis=0)
        batch = batch - self._shift
        self._count += len(batch)
        self._sum += batch.sum(axis=0)
        self._products += batch.T @ batch

    def result(self) -> Moments:
        """The moments so far. Raises ValueError when nothing was added."""
        if self._shift is None:
            raise ValueError("no vectors were added")
        offset = self._sum / self._count
        covariance = self._products / self._count - np.outer(offset, offset)
        return Moments(count=self._count, mean=self._shift + offset, covariance=covariance)

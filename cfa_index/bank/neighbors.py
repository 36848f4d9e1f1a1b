"""What a search returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Neighbors:
    """The k nearest memories of n queries, nearest first.

    Attributes:
        sq_distances: (n, k) float32, squared L2, not negative.
        ids: (n, k) int64, rows of the bank.
    """

    sq_distances: Tensor
    ids: Tensor

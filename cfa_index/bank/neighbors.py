"""What a search returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from cfa_index.errors import BankError


@dataclass(frozen=True, kw_only=True)
class Neighbors:
    """The k nearest memories of n queries, nearest first.

    Attributes:
        sq_distances: (n, k) float32, squared L2, not negative.
        ids: (n, k) int64, rows of the bank.
    """

    sq_distances: Tensor
    ids: Tensor


def not_finite() -> BankError:
    """The error of queries that are not finite: the host raises it at once, of a card when figures have come back."""
    return BankError(
        expected="finite queries",
        got="a NaN or infinite patch feature",
        remedy="check the image, the weights and the precision",
    )


def require_finite(figures: ArrayLike) -> None:
    """Raise `not_finite` where figures that have come to the host are no numbers: none is to be taken for good."""
    if not np.isfinite(figures).all():
        raise not_finite()

"""A threshold for use, from good images alone (split conformal prediction)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cfa_index.errors import SpecError
from cfa_index.metrics.curves import Floats


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

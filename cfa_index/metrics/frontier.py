"""Which of several choices are worth considering: those that no other one beats in everything."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pareto_frontier(costs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether no other row is at least as good in every column and better in one.

    Args:
        costs: (n, m) float64, less is better in every column (negate what should be large); NaN where a
            figure is missing.

    Returns:
        bool (n,). Equal rows are on the frontier together; a row with a NaN is not on it, and rules nothing
        out.
    """
    known = np.asarray(~np.isnan(costs).any(axis=1), dtype=np.bool_)
    on_it = known.copy()
    for row in np.flatnonzero(known):
        others = costs[known]
        beaten = (others <= costs[row]).all(axis=1) & (others < costs[row]).any(axis=1)
        on_it[row] = not beaten.any()
    return on_it

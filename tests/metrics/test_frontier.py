"""The frontier against every pair of rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given, strategies as st

from cfa_index import pareto_frontier

FIGURES = st.sampled_from([0.0, 1.0, 2.0, 3.0, float("nan")])


def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(
        a < b for a, b in zip(one, other, strict=True)
    )


@given(st.lists(st.tuples(FIGURES, FIGURES, FIGURES), max_size=12))
def test_no_row_of_the_frontier_is_beaten_and_every_other_is(rows: list[tuple[float, float, float]]) -> None:
    found = pareto_frontier(np.array(rows, dtype=np.float64).reshape(-1, 3))
    known = [row for row in rows if not any(np.isnan(row))]
    expected = [row in known and not any(beats(other, row) for other in known) for row in rows]
    assert found.tolist() == expected


def test_by_hand() -> None:
    costs = np.array([[1, 5], [2, 4], [2, 5], [1, 5], [np.nan, 0], [9, 1]], dtype=np.float64)
    assert pareto_frontier(costs).tolist() == [True, True, False, True, False, True]

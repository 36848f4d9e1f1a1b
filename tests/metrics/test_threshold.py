"""The conformal threshold: its coverage, counted, and its ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from cfa_index.errors import SpecError
from cfa_index.metrics import conformal_threshold


@settings(deadline=None)
@given(
    scores=st.lists(st.integers(0, 12), min_size=2, max_size=40),
    rate=st.sampled_from([0.01, 0.05, 0.1, 0.2, 1 / 3, 0.5, 0.9, 0.999]),
)
def test_conformal_coverage_is_exact(scores: list[int], rate: float) -> None:
    """Of n + 1 exchangeable images any one is the new one equally often: count how often it is above."""
    values = np.array(scores) / 8
    alarms = 0
    for new in range(len(values)):
        threshold = conformal_threshold(np.delete(values, new), rate)
        alarms += values[new] > threshold.value
        assert threshold.requested_rate == rate
        assert threshold.count == len(values) - 1
    assert alarms <= threshold.supported_rate * len(values) + 1e-9
    if len(set(scores)) == len(scores):  # without ties it is as tight as ranks allow
        assert alarms > threshold.supported_rate * len(values) - 1


@pytest.mark.parametrize(
    ("count", "rate", "rank", "supported"),
    [
        (19, 0.05, 19, 0.05),
        (18, 0.05, 18, 1 / 19),
        (39, 0.05, 38, 0.05),
        (99, 0.01, 99, 0.01),
        (98, 0.01, 98, 1 / 99),
        (9, 0.1, 9, 0.1),
        (9, 0.7, 3, 0.7),
        (2, 1 / 3, 2, 1 / 3),
        (1, 0.05, 1, 0.5),
        (1, 0.9, 1, 0.9),
    ],
)
def test_conformal_ranks(count: int, rate: float, rank: int, supported: float) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1, count + 1)).astype(np.float32)
    threshold = conformal_threshold(scores, rate)
    assert threshold.value == rank
    assert threshold.supported_rate == supported


def test_no_rank_is_lost_to_rounding() -> None:
    for count in range(1, 400):
        scores = np.arange(1, count + 1, dtype=np.float64)
        for percent in (1, 2, 5, 7, 10, 15, 30, 70):
            exact = -(-(count + 1) * (100 - percent) // 100)
            assert conformal_threshold(scores, percent / 100).value == min(exact, count)


@pytest.mark.parametrize(
    ("scores", "rate"),
    [
        ([], 0.05),
        ([1.0, math.nan], 0.05),
        ([[1.0]], 0.05),
        ([1.0], 0.0),
        ([1.0], 1.0),
        ([1.0], math.nan),
    ],
)
def test_bad_calibrations_are_refused(scores: list[Any], rate: float) -> None:
    with pytest.raises(SpecError):
        conformal_threshold(np.array(scores, dtype=np.float64), rate)

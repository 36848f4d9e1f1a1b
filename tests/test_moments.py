from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from cfa_index.moments import RunningMoments


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.sampled_from([0.0, 1e4]),
)
def test_streamed_moments_equal_numpy(seed: int, sizes: list[int], offset: float) -> None:
    rng = np.random.default_rng(seed)
    batches = [rng.normal(size=(size, 4)) + offset for size in [3, *sizes]]
    running = RunningMoments(4)
    for batch in batches:
        running.update(batch)
    everything = np.concatenate(batches)
    result = running.result()
    assert result.count == len(everything)
    np.testing.assert_allclose(result.mean, everything.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result.covariance, np.cov(everything.T, bias=True), atol=1e-9)


def test_nothing_added_is_an_error() -> None:
    with pytest.raises(ValueError, match="no vectors"):
        RunningMoments(3).result()

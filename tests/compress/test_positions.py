from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given, settings, strategies as st
from streams import random_images, stream_of

from cfa_index.compress import ema_bank, mean_bank
from cfa_index.errors import BankError


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.floats(0.05, 1.0))
def test_ema_is_algorithm_1(seed: int, images: int, beta: float) -> None:
    data = random_images(images, seed=seed)
    got = ema_bank(stream_of(data), 9, beta=beta, iterations=5, seed=0)
    expected = reference.ema([image.astype(float) for image in data], data[0].astype(float), beta)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_ema_takes_each_patch_once_by_hand() -> None:
    # Memory 0 takes patch 0.4, which is nearest to both; memory 1 is left with 5.
    first = np.array([[0.0], [1.0]], dtype=np.float32)
    second = np.array([[0.4], [5.0]], dtype=np.float32)
    bank = ema_bank(stream_of([first, second]), 2, beta=0.5, iterations=1, seed=0)
    np.testing.assert_allclose(bank, [[0.2], [3.0]])


def test_mean_bank_averages_each_position() -> None:
    data = random_images(7)
    got = mean_bank(stream_of(data), 9, iterations=5, seed=0)
    np.testing.assert_allclose(got, np.mean(np.stack(data).astype(float), axis=0), atol=1e-6)
    assert mean_bank(stream_of(data), 4, iterations=5, seed=0).shape == (4, 4)


def test_more_memories_than_positions_is_an_error() -> None:
    stream = stream_of(random_images(2))
    with pytest.raises(BankError, match=r"at most h\*w = 9 memories with method 'ema', got 10"):
        ema_bank(stream, 10, beta=0.1, iterations=1, seed=0)
    with pytest.raises(BankError, match=r"at most h\*w = 9 memories with method 'mean', got 10"):
        mean_bank(stream, 10, iterations=1, seed=0)

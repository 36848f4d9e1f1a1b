from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from cfa_index.baseline import RunningBaseline


def fitted(scores: np.ndarray, inspected: np.ndarray | None = None, *, parts: int = 1) -> np.ndarray:
    running = RunningBaseline(scores.shape[1:])
    seen = np.ones(scores.shape, dtype=np.bool_) if inspected is None else inspected
    for piece, shown in zip(np.array_split(scores, parts), np.array_split(seen, parts), strict=True):
        running.update(piece, shown)
    return running.result()


def plain(scores: np.ndarray) -> np.ndarray:
    """James and Stein's weight in plain loops, every cell seen in every image."""
    count, height, width = scores.shape
    means = [[sum(scores[:, i, j]) / count for j in range(width)] for i in range(height)]
    flat = [value for row in means for value in row]
    grand = sum(flat) / len(flat)
    noise = 0.0
    for i in range(height):
        for j in range(width):
            variance = sum((float(s) - means[i][j]) ** 2 for s in scores[:, i, j]) / count
            noise += variance / (count - 1) / len(flat)
    spread = sum((value - grand) ** 2 for value in flat) / len(flat)
    weight = max(0.0, 1 - noise / spread) if spread > 0 else 0.0
    usual = np.array([[grand + weight * (value - grand) for value in row] for row in means])
    return np.asarray(usual - usual.min())


@given(st.integers(2, 9), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99), st.integers(1, 3))
def test_it_is_the_shrunken_mean_however_the_images_come(
    count: int, height: int, width: int, seed: int, parts: int
) -> None:
    draw = np.random.default_rng(seed)
    scores = (draw.random((count, height, width)) + draw.random((height, width))).astype(np.float32)
    np.testing.assert_allclose(fitted(scores, parts=parts), plain(scores.astype(np.float64)), atol=1e-6)


def test_places_that_differ_keep_their_difference() -> None:
    place = np.array([[0.0, 1.0], [2.0, 3.0]], dtype=np.float32)
    scores = np.stack([place + 5, place + 5, place + 5])
    np.testing.assert_allclose(fitted(scores), place, atol=1e-6)


def test_it_fades_away_where_places_do_not_differ() -> None:
    scores = np.random.default_rng(0).normal(5, 1, (60, 12, 12)).astype(np.float32)
    raw = scores.mean(axis=0)
    assert fitted(scores).max() < 0.35 * (raw - raw.min()).max()


def test_a_cell_that_is_never_inspected_takes_the_mean() -> None:
    scores = np.tile(np.array([[1.0, 3.0, 99.0]], dtype=np.float32), (4, 1, 1))
    inspected = np.tile(np.array([[True, True, False]]), (4, 1, 1))
    np.testing.assert_allclose(fitted(scores, inspected), [[0, 2, 1]], atol=1e-6)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_give_no_baseline(count: int) -> None:
    assert not fitted(np.ones((count, 2, 3), dtype=np.float32)).any()

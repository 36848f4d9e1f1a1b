from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, strategies as st

from cfa_index.bank import kmeans
from cfa_index.compress import PatchSample, PatchStream, hybrid_bank
from cfa_index.compress.hybrid import worst_covered
from cfa_index.errors import BankError


def stream_of(x: np.ndarray, per_image: int) -> PatchStream:
    def stream() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for row, start in enumerate(range(0, len(x), per_image)):
            part = x[start : start + per_image].astype(np.float32)
            yield row, np.arange(len(part)), part

    return stream


def sample_of(x: np.ndarray) -> PatchSample:
    zeros = np.zeros(len(x), np.int64)
    return PatchSample(features=x.astype(np.float32), rows=zeros, cells=zeros)


def sq_distances(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    squared = ((x[:, None].astype(np.float64) - centres[None]) ** 2).sum(2)
    return np.asarray(squared.min(1))


def test_centres_come_first_and_then_what_they_cover_worst() -> None:
    draw = np.random.default_rng(0)
    far = np.array([[30.0], [62.0], [70.0], [-40.0]])
    x = np.concatenate([draw.normal(0, 1, (300, 4)), draw.normal(0, 0.1, (4, 4)) + far]).astype(np.float32)
    sample = sample_of(x[:302])  # the last two are rare enough to be missed by it
    bank = hybrid_bank(stream_of(x, 50), sample, 12, images=7, coverage=0.5, iterations=5, seed=1)
    centres = bank.features[:6]
    np.testing.assert_array_equal(centres, kmeans(sample.features, 6, iterations=5, seed=1))
    covered = sq_distances(x, centres)
    for number in range(6, 12):  # the plain algorithm, over all patches
        best = int(covered.argmax())
        np.testing.assert_array_equal(bank.features[number], x[best])
        assert 50 * bank.rows[number] + bank.cells[number] == best
        covered = np.minimum(covered, sq_distances(x, bank.features[number : number + 1]))


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 70), st.integers(1, 4), st.integers(0, 9))
def test_the_farthest_are_kept_whatever_the_limit(
    patches: int, per_image: int, limit: int, centres: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    x, c = draw.normal(size=(patches, 3)), draw.normal(size=(centres, 3)).astype(np.float32)
    kept, distances = worst_covered(stream_of(x, per_image), c, limit=limit)
    expected = np.sort(sq_distances(x.astype(np.float32), c))[::-1][:limit]
    np.testing.assert_allclose(np.sort(distances)[::-1], expected, rtol=1e-4, atol=1e-5)
    places = kept.rows * per_image + kept.cells
    np.testing.assert_array_equal(kept.features, x.astype(np.float32)[places])
    assert len(set(places.tolist())) == len(places)


@pytest.mark.parametrize("memories", [1, 2, 20])
def test_any_size_up_to_the_sample(memories: int) -> None:
    x = np.random.default_rng(1).normal(size=(20, 3))
    bank = hybrid_bank(stream_of(x, 5), sample_of(x), memories, images=1, coverage=0.5, iterations=2, seed=0)
    assert bank.features.shape == (memories, 3)
    assert np.isfinite(bank.features).all()


def test_more_memories_than_patches_are_refused() -> None:
    x = np.ones((3, 2))
    with pytest.raises(BankError, match="got"):
        hybrid_bank(stream_of(x, 3), sample_of(x), 4, images=1, coverage=0.5, iterations=1, seed=0)

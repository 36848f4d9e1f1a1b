from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import reference
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from cfa_index.compress import (
    PatchSample,
    PatchStream,
    ema_bank,
    kmeans_bank,
    mean_bank,
    nearest_sources,
    sample_patches,
)
from cfa_index.errors import BankError

Patches = NDArray[np.float32]


def stream_of(images: list[Patches], rows: list[int] | None = None) -> PatchStream:
    def stream() -> Iterator[tuple[int, NDArray[np.int64], Patches]]:
        for row, patches in zip(rows or range(len(images)), images, strict=True):
            yield row, np.arange(len(patches)), patches

    return stream


def random_images(count: int, cells: int = 9, width: int = 4, seed: int = 0) -> list[Patches]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(cells, width)).astype(np.float32) for _ in range(count)]


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


def test_kmeans_bank_can_be_larger_than_an_image() -> None:
    sample = sample_patches(stream_of(random_images(5)), images=5, per_image=9, limit=100, seed=0)
    assert kmeans_bank(sample, 20, iterations=3, seed=0).shape == (20, 4)
    with pytest.raises(BankError, match="got 45 patches"):
        kmeans_bank(sample, 46, iterations=3, seed=0)


def test_a_sample_that_fits_is_everything() -> None:
    data = random_images(3)
    sample = sample_patches(stream_of(data, [4, 7, 8]), images=3, per_image=9, limit=27, seed=0)
    np.testing.assert_array_equal(sample.features, np.concatenate(data))
    assert sample.rows.tolist() == [4] * 9 + [7] * 9 + [8] * 9
    assert sample.cells.tolist() == list(range(9)) * 3


@given(images=st.integers(1, 40), limit=st.integers(1, 60))
def test_a_sample_is_bounded_and_says_where_each_patch_is_from(images: int, limit: int) -> None:
    data = random_images(images)
    steps: list[None] = []
    sample = sample_patches(
        stream_of(data), images=images, per_image=9, limit=limit, seed=1, on_image=lambda: steps.append(None)
    )
    assert 0 < len(sample.features) < limit + images
    assert len(sample.features) >= min(limit, 9 * images)
    assert len(steps) == images
    for patch, row, cell in zip(sample.features, sample.rows, sample.cells, strict=True):
        np.testing.assert_array_equal(patch, data[row][cell])
    assert len({(row, cell) for row, cell in zip(sample.rows, sample.cells, strict=True)}) == len(sample.rows)


def test_no_images_is_an_error() -> None:
    with pytest.raises(BankError, match="at least one image"):
        sample_patches(stream_of([]), images=0, per_image=9, limit=9, seed=0)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_sources_are_the_nearest_patches(block: int) -> None:
    data = random_images(6)
    sample = sample_patches(stream_of(data), images=6, per_image=9, limit=54, seed=0)
    vectors = random_images(1, cells=11, seed=9)[0]
    sources = nearest_sources(vectors, sample, block=block)
    for vector, row, cell in zip(vectors, sources.rows, sources.cells, strict=True):
        best = min(reference.sq_distance(vector.astype(float), p.astype(float)) for p in sample.features)
        assert reference.sq_distance(vector.astype(float), data[row][cell].astype(float)) == pytest.approx(
            best
        )


def test_a_memory_that_is_a_patch_has_itself_as_source() -> None:
    features = random_images(1, cells=20)[0]
    sample = PatchSample(features=features, rows=np.arange(20), cells=np.arange(20) + 100)
    sources = nearest_sources(features[[3, 17]], sample)
    assert sources.rows.tolist() == [3, 17]
    assert sources.cells.tolist() == [103, 117]


def test_a_letterbox_s_padding_is_not_sampled() -> None:
    data = random_images(2)

    def stream() -> Iterator[tuple[int, NDArray[np.int64], Patches]]:
        yield 0, np.array([3, 4, 5]), data[0][3:6]
        yield 1, np.arange(9), data[1]

    sample = sample_patches(stream, images=2, per_image=9, limit=100, seed=0)
    assert sample.cells.tolist() == [3, 4, 5, *range(9)]
    np.testing.assert_array_equal(sample.features[:3], data[0][3:6])

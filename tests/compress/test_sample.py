from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import reference
from hypothesis import given, strategies as st
from numpy.typing import NDArray
from streams import Patches, random_images, stream_of

from cfa_index.compress import PatchSample, nearest_sources, sample_patches
from cfa_index.errors import BankError


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

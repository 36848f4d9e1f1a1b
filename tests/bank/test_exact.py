"""Exact distances, k-means and threads; the conformance of every index is in test_conformance.py."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from vectors import clustered

from cfa_index.bank import exact_sq_distances, kmeans, nearest_rows, set_threads
from cfa_index.errors import BankError, SpecError


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 6))
def test_exact_distances_agree_with_plain_arithmetic(seed: int, n: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 7)).astype(np.float32), rng.normal(size=(9, 7)).astype(np.float32)
    ids = rng.integers(0, 9, size=(n, k))
    got = exact_sq_distances(torch.tensor(x), torch.tensor(y), torch.tensor(ids)).numpy()
    expected = ((x[:, None].astype(float) - y[ids].astype(float)) ** 2).sum(-1)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 5, 50])
def test_faiss_has_no_row_for_a_query_that_is_not_finite(n: int, bad: float) -> None:
    """Up to 1.14.2 the one row stayed what the memory held before: a garbage index to read, or the process's end."""
    queries = np.zeros((n, 8), np.float32)
    queries[n // 2, 2] = bad
    index = faiss.IndexFlatL2(8)
    index.add(clustered(40, 8))
    for k in (1, 3):
        ids = np.full((n, k), 12_345, np.int64)
        index.search(queries, k, D=np.zeros((n, k), np.float32), I=ids)
        assert ids.max() < 40
        assert (ids[n // 2] == -1).all()


def test_kmeans_finds_separated_clusters_and_repeats() -> None:
    rng = np.random.default_rng(0)
    centres = 20 * np.eye(6, dtype=np.float32)
    x = np.repeat(centres, 50, axis=0) + 0.01 * rng.normal(size=(300, 6)).astype(np.float32)
    seen: list[float] = []
    # One start can leave two centres in one cluster; more centres than clusters cannot miss one.
    found = kmeans(x, 40, iterations=5, seed=1, on_iteration=seen.append)
    sq_distances, _ = nearest_rows(centres, found)
    assert sq_distances.max() < 0.01
    assert len(seen) == 5
    assert seen[-1] <= seen[0]
    np.testing.assert_array_equal(found, kmeans(x, 40, iterations=5, seed=1))


def test_kmeans_lowers_its_objective_like_a_plain_lloyd() -> None:
    x = clustered(400, 5)
    start = x[np.sort(np.random.default_rng(3).choice(400, size=10, replace=False))].astype(float)
    for _ in range(6):
        owner = ((x[:, None] - start[None]) ** 2).sum(-1).argmin(1)
        assert len(set(owner.tolist())) == 10
        start = np.stack([x[owner == j].mean(0) for j in range(10)])
    np.testing.assert_allclose(kmeans(x, 10, iterations=6, seed=3), start, rtol=1e-3, atol=1e-3)


def test_kmeans_with_as_many_centres_as_points_is_the_points() -> None:
    x = clustered(12, 3)
    np.testing.assert_array_equal(kmeans(x, 12, iterations=3, seed=0), x)


def test_kmeans_with_more_centres_than_points_is_an_error() -> None:
    with pytest.raises(BankError, match="at most 12"):
        kmeans(clustered(12, 3), 13, iterations=3, seed=0)


def test_threads_are_set_for_both_libraries_on_request_only() -> None:
    before = (faiss.omp_get_max_threads(), torch.get_num_threads())
    try:
        set_threads(1)
        assert (faiss.omp_get_max_threads(), torch.get_num_threads()) == (1, 1)
        with pytest.raises(SpecError, match="1 thread or more"):
            set_threads(0)
    finally:
        faiss.omp_set_num_threads(before[0])
        torch.set_num_threads(before[1])

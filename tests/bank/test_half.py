"""Candidates by products of bfloat16 against Flat: which are found, and how far they may be from the nearest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from numpy.typing import NDArray
from vectors import clustered

from cfa_index.bank import MemoryBank
from cfa_index.bank.flat import _MOST_HALVED
from cfa_index.bank.half import HalfProducts
from cfa_index.bank.memory import _SPARE
from cfa_index.errors import BankError

CPU = torch.device("cpu")
ROUNDING = 2.0**-8
"""At most this share is lost when two numbers are rounded to bfloat16, or a sum is."""

shapes = st.tuples(st.integers(1, 40), st.integers(1, 60), st.integers(1, 24))
offsets = st.sampled_from([0.0, 1.0, 100.0])


def both(bank: NDArray[np.float32]) -> tuple[MemoryBank, MemoryBank]:
    flat = MemoryBank(bank, CPU)
    return flat, flat.with_half_products()


@given(st.integers(0, 2**32 - 1), shapes, offsets)
def test_what_is_found_is_never_farther_than_the_rounding_allows(
    seed: int, shape: tuple[int, int, int], offset: float
) -> None:
    n, memories, d = shape
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(size=(memories, d)) + offset).astype(np.float32)
    queries = (rng.normal(size=(n, d)) * rng.choice([0.1, 1, 10]) + offset).astype(np.float32)
    half = MemoryBank(vectors, CPU).with_half_products()
    # Flat is no oracle here: it does not centre, and misses the nearest at an offset of 100.
    every = (queries[:, None].astype(float) - vectors[None].astype(float)) ** 2
    nearest = every.sum(axis=2).min(axis=1)
    found = half.search(torch.from_numpy(queries), 1, exact=True).sq_distances.numpy()[:, 0]
    centre = vectors.mean(axis=0)
    norms = np.linalg.norm(queries - centre, axis=1) * np.linalg.norm(vectors - centre, axis=1).max()
    allowed = nearest * (1 + 2 * ROUNDING) + 4 * ROUNDING * norms + 1e-4
    assert (found >= nearest * (1 - 1e-5) - 1e-5).all()
    assert (found <= allowed).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 12))
def test_a_bank_as_small_as_the_shortlist_gives_what_flat_gives(seed: int, n: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    flat, half = both(rng.normal(size=(1 + _SPARE, d)).astype(np.float32))
    queries = torch.from_numpy(rng.normal(size=(n, d)).astype(np.float32))
    got, expected = half.search(queries, 1, exact=True), flat.search(queries, 1, exact=True)
    torch.testing.assert_close(got.sq_distances, expected.sq_distances, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n", "memories", "d", "k"), [(1500, 2500, 40, 1), (300, 200, 130, 3), (5, 4, 3, 4)])
def test_patches_find_what_flat_finds(n: int, memories: int, d: int, k: int) -> None:
    flat, half = both(clustered(memories, d, seed=1))
    queries = torch.from_numpy(clustered(n, d, seed=2))
    got, expected = half.search(queries, k, exact=True), flat.search(queries, k, exact=True)
    assert float((got.ids == expected.ids).float().mean()) > 0.995
    torch.testing.assert_close(got.sq_distances, expected.sq_distances, rtol=0.01, atol=0)
    same = got.ids == expected.ids
    torch.testing.assert_close(got.sq_distances[same], expected.sq_distances[same], rtol=1e-5, atol=0)


def test_each_candidate_is_a_row_of_its_own() -> None:
    vectors = np.repeat(clustered(300, 8), 5, axis=0)  # every distance five times
    found = HalfProducts(torch.from_numpy(vectors)).candidates(torch.from_numpy(clustered(50, 8)), 7)
    assert found.min() >= 0
    assert found.max() < len(vectors)
    assert all(len(set(row)) == 7 for row in found.tolist())


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_is_an_error_as_with_flat(wrong: float) -> None:
    queries = torch.from_numpy(clustered(9, 6))
    queries[4, 2] = wrong
    for bank in both(clustered(50, 6)):
        with pytest.raises(BankError, match="finite queries"):
            bank.search(queries, 2, exact=True)


def test_no_queries_find_nothing() -> None:
    found = both(clustered(50, 6))[1].search(torch.empty(0, 6), 2, exact=True)
    assert found.ids.shape == (0, 2)


def test_a_bank_too_large_to_be_held_twice_is_searched_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(50, 6)
    monkeypatch.setattr("cfa_index.bank.flat._MOST_HALVED", vectors.size - 1)
    assert vectors.size < _MOST_HALVED
    monkeypatch.setattr("cfa_index.bank.flat.HalfProducts", None)  # would not be callable
    half = MemoryBank(vectors, CPU).with_half_products()
    assert half.search(torch.from_numpy(vectors), 1, exact=True).ids[:, 0].tolist() == list(range(50))

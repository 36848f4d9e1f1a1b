"""The conformance suite that every index passes; Flat on the CPU is the oracle."""

from __future__ import annotations

import threading

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from cfa_index.bank import MemoryBank, exact_sq_distances, kmeans, nearest_rows, set_threads
from cfa_index.errors import BankError, SpecError

CPU = torch.device("cpu")
DEVICES = [
    pytest.param("cpu"),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


def bank_of(vectors: np.ndarray, device: str = "cpu") -> MemoryBank:
    return MemoryBank(vectors.astype(np.float32), torch.device(device))


def clustered(n: int, d: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 4)) @ rng.normal(size=(4, d)) + 0.1 * rng.normal(size=(n, d))).astype(
        np.float32
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("nq", [0, 1, 5, 21, 300])
def test_search_agrees_with_brute_force(device: str, nq: int) -> None:
    xb, xq = clustered(200, 16), clustered(nq, 16, seed=1)
    found = bank_of(xb, device).search(torch.tensor(xq, device=device), 4, exact=True)
    full = ((xq[:, None].astype(float) - xb[None].astype(float)) ** 2).sum(-1)
    expected = np.sort(full, axis=1)[:, :4]
    assert tuple(found.ids.shape) == (nq, 4)
    np.testing.assert_allclose(found.sq_distances.cpu().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_exact_distances_do_not_depend_on_the_batch(device: str) -> None:
    xb, xq = clustered(500, 64), clustered(200, 64, seed=1)
    bank = bank_of(xb, device)
    whole = bank.search(torch.tensor(xq, device=device), 3, exact=True)
    alone = [
        bank.search(torch.tensor(xq[i : i + 1], device=device), 3, exact=True) for i in range(0, 200, 17)
    ]
    for number, one in enumerate(alone):
        assert torch.equal(one.sq_distances[0], whole.sq_distances[17 * number])


def test_distances_are_never_negative() -> None:
    xb = 1000 + 0.001 * clustered(64, 128)
    found = bank_of(xb).search(torch.tensor(xb), 3)
    assert found.sq_distances.min() >= 0


def test_duplicates_and_ties_come_back_as_neighbours() -> None:
    xb = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    found = bank_of(xb).search(torch.tensor(xb), 4, exact=True)
    assert found.sq_distances.max() == 0
    assert all(
        set(row) == set(range(4 * (n // 4), 4 * (n // 4) + 4)) for n, row in enumerate(found.ids.tolist())
    )


def test_more_neighbours_than_memories_is_an_error() -> None:
    with pytest.raises(BankError, match="6 neighbours, got a bank of 5"):
        bank_of(clustered(5, 4)).search(torch.zeros(1, 4), 6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("nq", [1, 50])
def test_queries_that_are_not_finite_are_refused(bad: float, nq: int) -> None:
    queries = torch.zeros(nq, 4)
    queries[-1, 2] = bad
    with pytest.raises(BankError, match="finite"):
        bank_of(clustered(5, 4)).search(queries, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_memories_that_are_not_finite_are_refused(bad: float) -> None:
    xb = clustered(5, 4)
    xb[0, 0] = bad
    with pytest.raises(BankError, match="finite memories"):
        bank_of(xb)


def test_a_query_of_another_width_is_refused() -> None:
    with pytest.raises(BankError, match=r"\(n, 4\), got \(2, 3\)"):
        bank_of(clustered(5, 4)).search(torch.zeros(2, 3), 1)


def test_an_empty_bank_is_refused() -> None:
    with pytest.raises(BankError, match="M of 1 or more"):
        bank_of(np.empty((0, 4)))


def test_two_threads_get_the_same_answers() -> None:
    bank, queries = bank_of(clustered(300, 8)), torch.tensor(clustered(100, 8, seed=1))
    expected = bank.search(queries, 3).ids
    answers: list[torch.Tensor] = []

    def ask() -> None:
        answers.extend(bank.search(queries, 3).ids for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 10
    assert all(torch.equal(answer, expected) for answer in answers)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 6))
def test_exact_distances_agree_with_plain_arithmetic(seed: int, n: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 7)).astype(np.float32), rng.normal(size=(9, 7)).astype(np.float32)
    ids = rng.integers(0, 9, size=(n, k))
    got = exact_sq_distances(torch.tensor(x), torch.tensor(y), torch.tensor(ids)).numpy()
    expected = ((x[:, None].astype(float) - y[ids].astype(float)) ** 2).sum(-1)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


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

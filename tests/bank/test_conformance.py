"""The conformance suite that every index passes; float64 brute force and Flat are the oracles.

An index is a FAISS factory string and the recall@1 that it has to reach on these vectors once it is tuned.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from vectors import clustered

from cfa_index.bank import IndexChoice, MemoryBank, changed_faiss, make_index, read_faiss, recall_at
from cfa_index.errors import BankError
from cfa_index.specs import INDEX_NAMES, IndexSpec

CPU = torch.device("cpu")
COUNT, D, K = 1500, 32, 3
NAMES = [name for name in INDEX_NAMES if name != "auto"]
FACTORIES = [*NAMES, "PCA8,IVF16,SQ4", "OPQ8_16,PQ8", "LSH"]
"""Short names, and strings of FAISS's that a user may bring."""
GPU = [pytest.param("flat", marks=pytest.mark.gpu), pytest.param("ivf", marks=pytest.mark.gpu)]


def vectors() -> NDArray[np.float32]:
    return clustered(COUNT, D, seed=1)


def choice_of(name: str, xb: NDArray[np.float32] | None = None, *, recall: float = 0.95) -> IndexChoice:
    base = vectors() if xb is None else xb
    return make_index(
        base,
        IndexSpec(factory=name, min_recall=recall),
        clustered(400, base.shape[1], seed=2),
        k=min(K, len(base)),
        patches_per_image=64,
        seed=0,
    )


@pytest.fixture(scope="module", params=FACTORIES)
def bank(request: pytest.FixtureRequest) -> MemoryBank:
    """1,500 memories of 32 dimensions under each index, tuned."""
    return MemoryBank(vectors(), CPU, choice_of(request.param).index)


def truth(xq: NDArray[np.float32], xb: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squared distances (nq, M)."""
    full: NDArray[np.float64] = ((xq[:, None].astype(np.float64) - xb[None].astype(np.float64)) ** 2).sum(-1)
    return full


@pytest.mark.parametrize("nq", [0, 1, 5, 21, 300])
def test_distances_are_those_of_the_neighbours_returned(bank: MemoryBank, nq: int) -> None:
    xq = clustered(nq, D, seed=3)
    found = bank.search(torch.from_numpy(xq), K, exact=True)
    assert found.ids.shape == found.sq_distances.shape == (nq, K)
    assert found.ids.dtype == torch.int64
    full = truth(xq, bank.vectors)
    picked = np.take_along_axis(full, found.ids.numpy(), axis=1)
    np.testing.assert_allclose(found.sq_distances.numpy(), picked, rtol=1e-4, atol=1e-5)
    assert (np.diff(found.sq_distances.numpy(), axis=1) >= 0).all()
    assert all(len(set(row)) == K for row in found.ids.tolist())


def test_it_finds_as_much_as_it_was_tuned_to(bank: MemoryBank) -> None:
    xq = clustered(400, D, seed=4)
    nearest = np.sort(truth(xq, bank.vectors), axis=1)[:, :K].astype(np.float32)
    found = bank.search(torch.from_numpy(xq), K, exact=True).sq_distances.numpy()
    first, at_k = recall_at(found, nearest, K)
    assert first.mean() >= 0.9, bank.index.state if bank.index else "flat"
    assert at_k >= 0.7
    if bank.index is not None:
        assert abs(bank.index.state.recall_at_1 - first.mean()) < 0.05


def test_a_query_does_not_depend_on_its_batch(bank: MemoryBank) -> None:
    xq = torch.from_numpy(clustered(120, D, seed=5))
    whole = bank.search(xq, K, exact=True)
    for row in range(0, 120, 17):
        alone = bank.search(xq[row : row + 1], K, exact=True)
        if torch.equal(alone.ids[0], whole.ids[row]):
            assert torch.equal(alone.sq_distances[0], whole.sq_distances[row])
        else:  # the coarse distances of an index round differently in a batch: another neighbour, as far
            torch.testing.assert_close(alone.sq_distances[0], whole.sq_distances[row], rtol=0.3, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_duplicates_and_ties_come_back_as_neighbours(name: str) -> None:
    xb = np.repeat(clustered(40, 16, seed=6), 4, axis=0)
    # All of them: whatever a partition or a graph cannot reach among ties is Flat's to find.
    bank = MemoryBank(xb, CPU, choice_of(name, xb, recall=1.0).index)
    found = bank.search(torch.from_numpy(xb), 2, exact=True)
    assert found.sq_distances.max() == 0
    assert (found.ids // 4 == torch.arange(160)[:, None] // 4).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_as_many_neighbours_as_memories(name: str, count: int) -> None:
    xb = clustered(count, 8, seed=7)
    found = MemoryBank(xb, CPU, choice_of(name, xb).index).search(torch.from_numpy(xb), count)
    assert [sorted(row) for row in found.ids.tolist()] == [list(range(count))] * count


def test_all_memories_can_be_asked_for(bank: MemoryBank) -> None:
    found = bank.search(torch.from_numpy(clustered(2, D, seed=8)), COUNT, exact=True)
    assert [sorted(row) for row in found.ids.tolist()] == [list(range(COUNT))] * 2


def test_more_neighbours_than_memories_is_an_error(bank: MemoryBank) -> None:
    with pytest.raises(BankError, match="1501 neighbours, got a bank of 1500"):
        bank.search(torch.zeros(1, D), COUNT + 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("nq", [1, 50])
def test_queries_that_are_not_finite_are_refused(bank: MemoryBank, bad: float, nq: int) -> None:
    queries = torch.zeros(nq, D)
    queries[-1, 2] = bad
    with pytest.raises(BankError, match="finite"):
        bank.search(queries, 2)


def test_a_query_of_another_width_is_refused(bank: MemoryBank) -> None:
    with pytest.raises(BankError, match=r"\(n, 32\), got \(2, 3\)"):
        bank.search(torch.zeros(2, 3), 1)


def test_it_is_the_same_after_writing_and_reading(bank: MemoryBank, tmp_path: Path) -> None:
    if bank.index is None:
        pytest.skip("Flat has no file")
    bank.index.write(tmp_path / "index.faiss")
    again = read_faiss(tmp_path / "index.faiss", bank.index.state, bank.vectors.shape)
    xq = torch.from_numpy(clustered(80, D, seed=9))
    before, after = bank.search(xq, K), bank.with_index(again).search(xq, K)
    assert torch.equal(before.ids, after.ids)
    assert torch.equal(before.sq_distances, after.sq_distances)
    assert bank.index.resident_bytes() == (tmp_path / "index.faiss").stat().st_size


def test_memories_come_and_go(bank: MemoryBank, tmp_path: Path) -> None:
    if bank.index is None:
        pytest.skip("Flat has no index to keep up")
    file = tmp_path / "index.faiss"
    bank.index.write(file)
    new = clustered(40, D, seed=12)
    grown = np.concatenate([bank.vectors, new])
    added = changed_faiss(file, bank.index.state, grown, kept=COUNT, seed=0)
    assert added.count == COUNT + 40
    found = MemoryBank(grown, CPU, added).search(torch.from_numpy(new), 1)
    assert (found.ids[:, 0] == torch.arange(COUNT, COUNT + 40)).float().mean() > 0.9
    added.write(file)
    removed = changed_faiss(file, bank.index.state, bank.vectors, kept=0, seed=0)
    assert removed.count == COUNT
    xq = torch.from_numpy(clustered(200, D, seed=13))
    before, after = bank.search(xq, 1), bank.with_index(removed).search(xq, 1)
    assert int(after.ids.max()) < COUNT
    assert (before.ids == after.ids).float().mean() > 0.95  # a graph is walked, and grown, anew


def test_two_threads_get_the_same_answers(bank: MemoryBank) -> None:
    queries = torch.from_numpy(clustered(100, D, seed=10))
    expected = bank.search(queries, K).ids
    answers: list[torch.Tensor] = []

    def ask() -> None:
        answers.extend(bank.search(queries, K).ids for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 10
    assert all(torch.equal(answer, expected) for answer in answers)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_memories_that_are_not_finite_are_refused(bad: float) -> None:
    xb = vectors()
    xb[-1, 0] = bad
    with pytest.raises(BankError, match="finite memories"):
        MemoryBank(xb, CPU)


def test_an_empty_bank_is_refused() -> None:
    with pytest.raises(BankError, match="M of 1 or more"):
        MemoryBank(np.empty((0, 4), dtype=np.float32), CPU)


def test_an_index_over_other_vectors_is_refused(bank: MemoryBank, tmp_path: Path) -> None:
    if bank.index is None:
        pytest.skip("Flat has no index")
    with pytest.raises(BankError, match="1499 x 32 memories, got 1500 x 32"):
        MemoryBank(vectors()[1:], CPU, bank.index)
    bank.index.write(tmp_path / "index.faiss")
    with pytest.raises(BankError, match="9 x 32 vectors"):
        read_faiss(tmp_path / "index.faiss", bank.index.state, (9, 32))


@pytest.mark.parametrize("content", [b"", b"no index at all", b"IxFI" + bytes(40)])
def test_a_file_that_is_no_index_is_an_error(content: bytes, tmp_path: Path) -> None:
    state = choice_of("hnsw").state
    (tmp_path / "index.faiss").write_bytes(content)
    with pytest.raises(BankError, match="--rebuild-index"):
        read_faiss(tmp_path / "index.faiss", state, (COUNT, D))


@pytest.mark.parametrize(
    "factory", ["IVF", "no such index", "PQ7x99", "IVF999999,Flat", "HNSW0,Flat", "HNSW1"]
)
def test_a_factory_string_that_cannot_be_is_an_error(factory: str) -> None:
    with pytest.raises(BankError):
        choice_of(factory)


def test_distances_are_never_negative() -> None:
    xb = 1000 + 0.001 * clustered(64, 128)
    assert MemoryBank(xb, CPU).search(torch.from_numpy(xb), 3).sq_distances.min() >= 0


def test_flat_keeps_the_vectors_once() -> None:
    xb = vectors()
    assert np.shares_memory(xb, MemoryBank(xb, CPU).tensor.numpy())


@pytest.mark.parametrize("name", GPU)
def test_a_gpu_agrees_with_the_cpu(name: str) -> None:
    choice = choice_of(name)
    card = torch.device("cuda")
    xq = torch.from_numpy(clustered(300, D, seed=11))
    on_cpu = MemoryBank(vectors(), CPU, choice.index).search(xq, K, exact=True)
    on_gpu = MemoryBank(vectors(), card, choice.index).search(xq.to(card), K, exact=True)
    assert (on_cpu.ids == on_gpu.ids.cpu()).float().mean() > 0.99
    torch.testing.assert_close(on_gpu.sq_distances.cpu(), on_cpu.sq_distances, rtol=1e-4, atol=1e-4)

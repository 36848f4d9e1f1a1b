"""The conformance suite that every index passes on every device it is on; float64 brute force and Flat are the oracles.

An index is a FAISS factory string and the recall@1 that it has to reach on these vectors once it is tuned. It is
built and tuned on the CPU, wherever it searches. Distances are float32 sums of squares, taken exactly: they agree
with float64 to 1e-4 on every device. What a card sums up in another order for another batch may differ by 1e-6.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from vectors import clustered

from cfa_index.bank import (
    IndexChoice,
    MemoryBank,
    Neighbors,
    SearchIndex,
    changed_faiss,
    make_index,
    read_faiss,
    recall_at,
)
from cfa_index.errors import BankError, DeviceError
from cfa_index.specs import INDEX_NAMES, IndexSpec

CPU = torch.device("cpu")
COUNT, D, K = 1500, 32, 3
NAMES = [name for name in INDEX_NAMES if name != "auto"]
FACTORIES = [*NAMES, "PCA8,IVF16,SQ4", "OPQ4_16,PQ4x4", "LSH"]
"""Short names, and strings of FAISS's that a user may bring."""


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
def choice(request: pytest.FixtureRequest) -> IndexChoice:
    """Each index over 1,500 memories of 32 dimensions, tuned."""
    return choice_of(request.param)


def bank_of(xb: NDArray[np.float32], device: torch.device, index: SearchIndex | None) -> MemoryBank:
    """A bank on the device; where there is no such index on a card, the test is about nothing."""
    try:
        return MemoryBank(xb, device, index)
    except DeviceError as error:
        assert index is not None
        assert device.type != "cpu"
        pytest.skip(error.got)


@pytest.fixture
def bank(choice: IndexChoice, device: torch.device) -> MemoryBank:
    return bank_of(vectors(), device, choice.index)


@pytest.fixture
def cpu_bank(choice: IndexChoice) -> MemoryBank:
    """What has to do with files and threads is the CPU's."""
    return MemoryBank(vectors(), CPU, choice.index)


def search(bank: MemoryBank, xq: NDArray[np.float32], k: int, *, exact: bool = True) -> Neighbors:
    """From the host and back."""
    found = bank.search(torch.from_numpy(xq).to(bank.device), k, exact=exact)
    assert found.ids.device == found.sq_distances.device == bank.tensor.device
    return Neighbors(sq_distances=found.sq_distances.cpu(), ids=found.ids.cpu())


def truth(xq: NDArray[np.float32], xb: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squared distances (nq, M)."""
    full: NDArray[np.float64] = ((xq[:, None].astype(np.float64) - xb[None].astype(np.float64)) ** 2).sum(-1)
    return full


@pytest.mark.parametrize("nq", [0, 1, 5, 21, 300])
def test_distances_are_those_of_the_neighbours_returned(bank: MemoryBank, nq: int) -> None:
    xq = clustered(nq, D, seed=3)
    found = search(bank, xq, K)
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
    found = search(bank, xq, K).sq_distances.numpy()
    first, at_k = recall_at(found, nearest, K)
    assert first.mean() >= 0.9, bank.index.state if bank.index else "flat"
    assert at_k >= 0.7
    if bank.index is not None:
        assert abs(bank.index.state.recall_at_1 - first.mean()) < 0.05


def test_a_query_does_not_depend_on_its_batch(bank: MemoryBank) -> None:
    xq = clustered(120, D, seed=5)
    whole = search(bank, xq, K)
    rtol = 0 if bank.device.type == "cpu" else 1e-6
    for row in range(0, 120, 17):
        alone = search(bank, xq[row : row + 1], K)
        if torch.equal(alone.ids[0], whole.ids[row]):
            torch.testing.assert_close(alone.sq_distances[0], whole.sq_distances[row], rtol=rtol, atol=0)
        else:  # the coarse distances of an index round differently in a batch: another neighbour, as far
            torch.testing.assert_close(alone.sq_distances[0], whole.sq_distances[row], rtol=0.3, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_duplicates_and_ties_come_back_as_neighbours(name: str, device: torch.device) -> None:
    xb = np.repeat(clustered(40, 16, seed=6), 4, axis=0)
    # All of them: whatever a partition or a graph cannot reach among ties is Flat's to find.
    found = search(bank_of(xb, device, choice_of(name, xb, recall=1.0).index), xb, 2)
    assert found.sq_distances.max() == 0
    assert (found.ids // 4 == torch.arange(160)[:, None] // 4).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_as_many_neighbours_as_memories(name: str, count: int, device: torch.device) -> None:
    xb = clustered(count, 8, seed=7)
    found = search(bank_of(xb, device, choice_of(name, xb).index), xb, count, exact=False)
    assert [sorted(row) for row in found.ids.tolist()] == [list(range(count))] * count


def test_all_memories_can_be_asked_for(bank: MemoryBank) -> None:
    found = search(bank, clustered(2, D, seed=8), COUNT)
    assert [sorted(row) for row in found.ids.tolist()] == [list(range(COUNT))] * 2


def test_more_neighbours_than_memories_is_an_error(bank: MemoryBank) -> None:
    with pytest.raises(BankError, match="1501 neighbours, got a bank of 1500"):
        bank.search(torch.zeros(1, D).to(bank.device), COUNT + 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("nq", [1, 50])
def test_queries_that_are_not_finite_are_refused_or_marked(bank: MemoryBank, bad: float, nq: int) -> None:
    """On a card nobody looks at them before the figures are read: their distances are NaN, and no one else's."""
    xq = np.zeros((nq, D), np.float32)
    xq[-1, 2] = bad
    if bank.device.type == "cpu":
        with pytest.raises(BankError, match="finite"):
            search(bank, xq, 2, exact=False)
        return
    for exact in (False, True):
        found = search(bank, xq, 2, exact=exact)
        assert not found.sq_distances[-1].isfinite().any()
        assert found.sq_distances[:-1].isfinite().all()
        assert found.ids.min() >= 0
        assert found.ids.max() < COUNT


def test_a_query_of_another_width_is_refused(bank: MemoryBank) -> None:
    with pytest.raises(BankError, match=r"\(n, 32\), got \(2, 3\)"):
        bank.search(torch.zeros(2, 3).to(bank.device), 1)


def test_it_is_the_same_after_writing_and_reading(cpu_bank: MemoryBank, tmp_path: Path) -> None:
    if cpu_bank.index is None:
        pytest.skip("Flat has no file")
    cpu_bank.index.write(tmp_path / "index.faiss")
    again = read_faiss(tmp_path / "index.faiss", cpu_bank.index.state, cpu_bank.vectors.shape)
    xq = torch.from_numpy(clustered(80, D, seed=9))
    before, after = cpu_bank.search(xq, K), cpu_bank.with_index(again).search(xq, K)
    assert torch.equal(before.ids, after.ids)
    assert torch.equal(before.sq_distances, after.sq_distances)
    assert cpu_bank.index.resident_bytes() == (tmp_path / "index.faiss").stat().st_size


def test_memories_come_and_go(cpu_bank: MemoryBank, tmp_path: Path) -> None:
    if cpu_bank.index is None:
        pytest.skip("Flat has no index to keep up")
    file = tmp_path / "index.faiss"
    cpu_bank.index.write(file)
    new = clustered(40, D, seed=12)
    grown = np.concatenate([cpu_bank.vectors, new])
    added = changed_faiss(file, cpu_bank.index.state, grown, kept=COUNT, seed=0)
    assert added.count == COUNT + 40
    found = MemoryBank(grown, CPU, added).search(torch.from_numpy(new), 1)
    assert (found.ids[:, 0] == torch.arange(COUNT, COUNT + 40)).float().mean() > 0.9
    added.write(file)
    removed = changed_faiss(file, cpu_bank.index.state, cpu_bank.vectors, kept=0, seed=0)
    assert removed.count == COUNT
    xq = torch.from_numpy(clustered(200, D, seed=13))
    before, after = cpu_bank.search(xq, 1), cpu_bank.with_index(removed).search(xq, 1)
    assert int(after.ids.max()) < COUNT
    assert (before.ids == after.ids).float().mean() > 0.95  # a graph is walked, and grown, anew


def test_two_threads_get_the_same_answers(cpu_bank: MemoryBank) -> None:
    queries = torch.from_numpy(clustered(100, D, seed=10))
    expected = cpu_bank.search(queries, K).ids
    answers: list[torch.Tensor] = []

    def ask() -> None:
        answers.extend(cpu_bank.search(queries, K).ids for _ in range(5))

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


def test_an_index_over_other_vectors_is_refused(cpu_bank: MemoryBank, tmp_path: Path) -> None:
    if cpu_bank.index is None:
        pytest.skip("Flat has no index")
    with pytest.raises(BankError, match="1499 x 32 memories, got 1500 x 32"):
        MemoryBank(vectors()[1:], CPU, cpu_bank.index)
    cpu_bank.index.write(tmp_path / "index.faiss")
    with pytest.raises(BankError, match="9 x 32 vectors"):
        read_faiss(tmp_path / "index.faiss", cpu_bank.index.state, (9, 32))


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


@pytest.mark.parametrize("exact", [False, True])
def test_distances_are_never_negative(device: torch.device, exact: bool) -> None:
    xb = 1000 + 0.001 * clustered(64, 128)
    assert search(MemoryBank(xb, device), xb, 3, exact=exact).sq_distances.min() >= 0


def test_flat_keeps_the_vectors_once() -> None:
    xb = vectors()
    assert np.shares_memory(xb, MemoryBank(xb, CPU).tensor.numpy())


def test_a_device_finds_what_the_cpu_does(choice: IndexChoice, bank: MemoryBank) -> None:
    """Or nearer ones: a card may look into more cells. Where coarse distances tie, another candidate is named."""
    xq = clustered(300, D, seed=11)
    on_cpu, found = search(MemoryBank(vectors(), CPU, choice.index), xq, K), search(bank, xq, K)
    same = (on_cpu.ids == found.ids).all(dim=1)
    torch.testing.assert_close(found.sq_distances[same], on_cpu.sq_distances[same], rtol=1e-4, atol=1e-4)
    assert (found.sq_distances <= 1.0001 * on_cpu.sq_distances + 1e-4).all(dim=1).float().mean() > 0.98
    if (
        choice.index is None
    ):  # where two memories are as near to the rounding of a product, either may be the K-th
        assert same.float().mean() > 0.98

"""A bank over several cards answers what the same bank on one CPU does, ids and ties included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from vectors import clustered

from cfa_index.bank import Bank, MemoryBank, SpreadBank, bank_on, make_index
from cfa_index.errors import BankError, DeviceError
from cfa_index.specs import IndexSpec, Spread

CPU = torch.device("cpu")
SPREADS: tuple[Spread, ...] = ("replicas", "shards")


def lattice(count: int, d: int, seed: int) -> NDArray[np.float32]:
    """Small whole numbers: distances have no rounding, and ties are many."""
    return np.random.default_rng(seed).integers(-1, 2, size=(count, d)).astype(np.float32)


def shard_of(ids: torch.Tensor, count: int, cards: int) -> torch.Tensor:
    """The shard that each row is in, plainly: sizes differ by one at most, and ranges follow each other."""
    parts = min(count, cards)
    owners = [part for part in range(parts) for _ in range(count * part // parts, count * (part + 1) // parts)]
    return torch.tensor(owners)[ids]


@settings(max_examples=60)
@given(
    count=st.integers(1, 40),
    cards=st.integers(1, 5),
    nq=st.integers(0, 9),
    share=st.floats(0, 1),
    spread=st.sampled_from(SPREADS),
    seed=st.integers(0, 99),
)
def test_many_cards_answer_as_one_does(
    count: int, cards: int, nq: int, share: float, spread: Spread, seed: int
) -> None:
    xb, xq = lattice(count, 3, seed), lattice(nq, 3, seed + 1)
    k = 1 + int(share * (count - 1))
    bank = bank_on(xb, [CPU] * cards, spread=spread)
    assert len(bank) == count
    found = bank.search(torch.from_numpy(xq), k, exact=True)
    alone = MemoryBank(xb, CPU).search(torch.from_numpy(xq), k, exact=True)
    assert torch.equal(found.sq_distances, alone.sq_distances)
    assert found.ids.dtype == torch.int64
    # Each row is as far as it is said to be, and none comes twice: so ids differ from those of one CPU in ties only.
    rows = found.ids.numpy()
    np.testing.assert_array_equal(((xq[:, None] - xb[rows]) ** 2).sum(axis=2), found.sq_distances.numpy())
    assert all(len(set(row)) == k for row in rows.tolist())
    if spread == "shards":
        tied = found.sq_distances.diff(dim=1) == 0
        assert (shard_of(found.ids, count, cards).diff(dim=1)[tied] >= 0).all()


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("exact", [False, True])
def test_many_cards_find_what_one_does_among_true_vectors(spread: Spread, exact: bool) -> None:
    """Without ties the very same rows; distances to the rounding of a product where they are not exact."""
    xb, xq = clustered(700, 16, seed=1), torch.from_numpy(clustered(90, 16, seed=2))
    alone = MemoryBank(xb, CPU).search(xq, 5, exact=exact)
    found = bank_on(xb, [CPU] * 3, spread=spread).search(xq, 5, exact=exact)
    assert torch.equal(found.ids, alone.ids)
    torch.testing.assert_close(found.sq_distances, alone.sq_distances, rtol=1e-4, atol=1e-4)
    assert found.ids.is_contiguous()
    assert found.sq_distances.is_contiguous()


def test_replicas_have_the_bank_whole() -> None:
    xb = clustered(500, 16, seed=1)
    index = make_index(
        xb, IndexSpec(factory="ivf"), clustered(80, 16, seed=2), k=3, patches_per_image=16, seed=0
    ).index
    bank = bank_on(xb, [CPU, CPU], index)
    assert torch.equal(bank.tensor, torch.from_numpy(xb))
    assert bank.index is index
    xq = torch.from_numpy(clustered(50, 16, seed=3))
    found, alone = bank.search(xq, 3, exact=True), MemoryBank(xb, CPU, index).search(xq, 3, exact=True)
    assert torch.equal(found.ids, alone.ids)
    assert torch.equal(found.sq_distances, alone.sq_distances)


def test_one_device_is_a_plain_bank() -> None:
    assert isinstance(bank_on(clustered(9, 4), [CPU], spread="shards"), MemoryBank)


def test_shards_share_the_vectors_with_the_file_that_they_are_mapped_from() -> None:
    xb = clustered(10, 4)
    assert all(np.shares_memory(xb, bank.vectors) for bank in SpreadBank(xb, [CPU] * 3, spread="shards")._banks)


def test_training_from_shards_is_one_clear_error() -> None:
    bank = SpreadBank(clustered(10, 4), [CPU] * 3, spread="shards")
    with pytest.raises(DeviceError, match="which training gathers from, got a bank in shards"):
        _ = bank.tensor


def test_shards_of_an_index_are_one_clear_error() -> None:
    xb = clustered(500, 16, seed=1)
    index = make_index(
        xb, IndexSpec(factory="ivf"), clustered(80, 16, seed=2), k=3, patches_per_image=16, seed=0
    ).index
    with pytest.raises(DeviceError, match="flat, for a bank in shards: .* got the index ivf"):
        SpreadBank(xb, [CPU] * 2, index, spread="shards")


@pytest.mark.parametrize("spread", SPREADS)
def test_bad_queries_are_refused_as_by_one_bank(spread: Spread) -> None:
    bank = bank_on(clustered(10, 4), [CPU] * 3, spread=spread)
    with pytest.raises(BankError, match="11 neighbours, got a bank of 10"):
        bank.search(torch.zeros(2, 4), 11)
    with pytest.raises(BankError, match=r"\(n, 4\)"):
        bank.search(torch.zeros(2, 3), 1)
    with pytest.raises(BankError, match="finite"):
        bank.search(torch.full((2, 4), torch.nan), 1)
    with pytest.raises(BankError, match="M of 1 or more"):
        bank_on(np.empty((0, 4), np.float32), [CPU] * 3, spread=spread)

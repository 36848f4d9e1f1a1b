"""A bank over several cards answers what the same bank on one CPU does, ids and ties included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fake_card import fake_card
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from vectors import clustered

from cfa_index.bank import MemoryBank, Neighbors, SearchIndex, SpreadBank, bank_on, make_index
from cfa_index.errors import BankError, CardMemoryError, DeviceError
from cfa_index.specs import CardSpec, IndexSpec, Spread

CPU = torch.device("cpu")
SPREADS: tuple[Spread, ...] = ("replicas", "shards")
SHARDS = CardSpec(spread="shards")


def lattice(count: int, d: int, seed: int) -> NDArray[np.float32]:
    """Small whole numbers: distances have no rounding, and ties are many."""
    return np.random.default_rng(seed).integers(-1, 2, size=(count, d)).astype(np.float32)


@settings(max_examples=80)
@given(
    count=st.integers(1, 40),
    cards=st.integers(1, 5),
    nq=st.integers(0, 9),
    share=st.floats(0, 1),
    spread=st.sampled_from(SPREADS),
    seed=st.integers(0, 99),
)
def test_many_cards_answer_as_one_does_the_lowest_row_of_a_tie_first(
    count: int, cards: int, nq: int, share: float, spread: Spread, seed: int
) -> None:
    xb, xq = lattice(count, 3, seed), lattice(nq, 3, seed + 1)
    k = 1 + int(share * (count - 1))
    bank = bank_on(xb, [CPU] * cards, card=CardSpec(spread=spread))
    assert len(bank) == count
    found = bank.search(torch.from_numpy(xq), k, exact=True)
    alone = MemoryBank(xb, CPU).search(torch.from_numpy(xq), k, exact=True)
    assert torch.equal(found.sq_distances, alone.sq_distances)
    assert found.ids.dtype == torch.int64
    full = ((xq[:, None].astype(np.float64) - xb) ** 2).sum(axis=2)
    np.testing.assert_array_equal(found.ids.numpy(), np.argsort(full, axis=1, kind="stable")[:, :k])


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("exact", [False, True])
def test_many_cards_find_what_one_does_among_true_vectors(spread: Spread, exact: bool) -> None:
    """Without ties the very same rows; distances to the rounding of a product where they are not exact."""
    xb, xq = clustered(700, 16, seed=1), torch.from_numpy(clustered(90, 16, seed=2))
    alone = MemoryBank(xb, CPU).search(xq, 5, exact=exact)
    found = bank_on(xb, [CPU] * 3, card=CardSpec(spread=spread)).search(xq, 5, exact=exact)
    assert torch.equal(found.ids, alone.ids)
    torch.testing.assert_close(found.sq_distances, alone.sq_distances, rtol=1e-4, atol=1e-4)
    assert found.ids.is_contiguous()
    assert found.sq_distances.is_contiguous()


def inverted_file(xb: NDArray[np.float32]) -> SearchIndex:
    spec, xq = IndexSpec(factory="ivf", min_recall=0.7), clustered(80, xb.shape[1], seed=2)
    index = make_index(xb, spec, xq, k=3, patches_per_image=16, seed=0).index
    assert index is not None
    return index


def test_replicas_have_the_bank_whole_and_its_index() -> None:
    xb = clustered(500, 16, seed=1)
    index = inverted_file(xb)
    bank = bank_on(xb, [CPU, CPU], index)
    assert torch.equal(bank.tensor, torch.from_numpy(xb))
    assert bank.index is index
    xq = torch.from_numpy(clustered(50, 16, seed=3))
    found, alone = bank.search(xq, 3, exact=True), MemoryBank(xb, CPU, index).search(xq, 3, exact=True)
    assert torch.equal(found.ids, alone.ids)
    assert torch.equal(found.sq_distances, alone.sq_distances)


def test_shards_search_by_flat_and_keep_the_index_for_the_model() -> None:
    xb = clustered(500, 16, seed=1)
    index = inverted_file(xb)
    bank = bank_on(xb, [CPU, CPU], index, card=SHARDS)
    assert bank.index is index
    xq = torch.from_numpy(clustered(50, 16, seed=3))
    assert torch.equal(bank.search(xq, 3).ids, MemoryBank(xb, CPU).search(xq, 3, exact=True).ids)


def test_one_device_is_a_plain_bank() -> None:
    assert isinstance(bank_on(clustered(9, 4), [CPU], card=SHARDS), MemoryBank)


def test_shards_share_the_vectors_with_the_file_that_they_are_mapped_from() -> None:
    xb = clustered(10, 4)
    assert all(np.shares_memory(xb, bank.vectors) for bank in SpreadBank(xb, [CPU] * 3, card=SHARDS)._banks)


def test_training_from_shards_is_one_clear_error() -> None:
    bank = SpreadBank(clustered(10, 4), [CPU] * 3, card=SHARDS)
    with pytest.raises(DeviceError, match="which training gathers from, got a bank in shards"):
        _ = bank.tensor


@pytest.mark.parametrize("spread", SPREADS)
def test_bad_queries_are_refused_as_by_one_bank(spread: Spread) -> None:
    bank = bank_on(clustered(10, 4), [CPU] * 3, card=CardSpec(spread=spread))
    with pytest.raises(BankError, match="11 neighbours, got a bank of 10"):
        bank.search(torch.zeros(2, 4), 11)
    with pytest.raises(BankError, match=r"\(n, 4\)"):
        bank.search(torch.zeros(2, 3), 1)
    with pytest.raises(BankError, match="finite"):
        bank.search(torch.full((2, 4), torch.nan), 1)
    with pytest.raises(BankError, match="M of 1 or more"):
        bank_on(np.empty((0, 4), np.float32), [CPU] * 3, card=CardSpec(spread=spread))


CARDS = [torch.device("meta", number) for number in range(2)]


@pytest.mark.parametrize("spread", SPREADS)
def test_cards_answer_without_the_host_and_never_wait_for_each_other(
    spread: Spread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries leave the first card before any search, and answers come when all searches are under way."""
    xb, xq = clustered(300, 16, seed=1), torch.from_numpy(clustered(40, 16, seed=2))
    alone = MemoryBank(xb, CPU).search(xq, 4, exact=True)
    events: list[str] = []
    search, to = MemoryBank.search, torch.Tensor.to

    def seen_search(bank: MemoryBank, queries: torch.Tensor, k: int, *, exact: bool = False) -> Neighbors:
        events.append(f"search {bank.device}")
        return search(bank, queries, k, exact=exact)

    def seen_to(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if isinstance(args[0], torch.device) and args[0] != tensor.device:
            events.append(f"{tensor.device} to {args[0]}")
            assert options == {"non_blocking": True}
        return to(tensor, *args, **options)

    with fake_card() as card:
        bank = bank_on(xb, CARDS, card=CardSpec(spread=spread))
        queries = xq.to(CARDS[0])
        monkeypatch.setattr(MemoryBank, "search", seen_search)
        monkeypatch.setattr(torch.Tensor, "to", seen_to)
        with card.refusing():
            found = bank.search(queries, 4, exact=True)
        monkeypatch.undo()
        assert found.ids.device == found.sq_distances.device == bank.device == CARDS[0]
        assert torch.equal(found.ids.cpu(), alone.ids)
        torch.testing.assert_close(found.sq_distances.cpu(), alone.sq_distances, rtol=1e-5, atol=0)
    assert events == [
        *("meta:0 to meta:1", "search meta:0", "search meta:1"),
        *("meta:1 to meta:0", "meta:1 to meta:0"),
    ]


@pytest.mark.parametrize("spread", SPREADS)
def test_a_query_that_is_not_finite_is_marked_and_the_others_are_answered(spread: Spread) -> None:
    xb, xq = clustered(30, 4, seed=1), clustered(5, 4, seed=2)
    xq[2, 1] = np.nan
    with fake_card():
        bank = bank_on(xb, CARDS, card=CardSpec(spread=spread))
        found = bank.search(torch.from_numpy(xq).to(CARDS[0]), 3, exact=True)
        finite, ids = found.sq_distances.cpu().isfinite(), found.ids.cpu()
    assert finite.all(dim=1).tolist() == [True, True, False, True, True]
    assert not finite[2].any()
    assert int(ids.min()) >= 0
    assert int(ids.max()) < 30


def test_the_card_whose_memory_runs_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    search = MemoryBank.search

    def full(bank: MemoryBank, queries: torch.Tensor, k: int, *, exact: bool = False) -> Neighbors:
        if bank.device == CARDS[1]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return search(bank, queries, k, exact=exact)

    with fake_card():
        bank = bank_on(clustered(30, 4), CARDS, card=SHARDS)
        queries = torch.zeros(5, 4).to(CARDS[0])
        monkeypatch.setattr(MemoryBank, "search", full)
        with pytest.raises(CardMemoryError, match="a search for 5 patches on meta:1, got none left"):
            bank.search(queries, 3)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
@pytest.mark.parametrize("spread", SPREADS)
def test_true_cards_answer_as_one_cpu(spread: Spread) -> None:
    xb, xq = clustered(5000, 32, seed=1), torch.from_numpy(clustered(500, 32, seed=2))
    alone = MemoryBank(xb, CPU).search(xq, 5, exact=True)
    cards = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    found = bank_on(xb, cards, card=CardSpec(spread=spread)).search(xq.to(cards[0]), 5, exact=True)
    # Where two memories are as near to the rounding of a product, either may be the last that is found.
    assert (found.ids.cpu() == alone.ids).all(dim=1).float().mean() > 0.98
    torch.testing.assert_close(found.sq_distances.cpu(), alone.sq_distances, rtol=1e-4, atol=1e-3)

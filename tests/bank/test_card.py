"""A bank on a card, on a fake one: the neighbours of the CPU, and nothing waited for."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from fake_card import FakeCard, fake_card, held
from torch import Tensor
from vectors import clustered

from cfa_index.bank import (
    IndexState,
    MemoryBank,
    SearchIndex,
    Truth,
    build_faiss,
    faiss_gpu,
    gpu_count,
    make_index,
    read_faiss,
    tune,
)
from cfa_index.bank.builder import BuiltIndex
from cfa_index.bank.card import CardFlat, CardHalf, card_of
from cfa_index.bank.card_index import CardInverted
from cfa_index.bank.index import tunable
from cfa_index.errors import BankError, DeviceError
from cfa_index.specs import INDEX_NAMES, CardSpec, IndexSpec, Storage

CPU, CARD = torch.device("cpu"), torch.device("meta:0")
COUNT, D, K = 1500, 32, 3
XB, XQ = clustered(COUNT, D, seed=1), clustered(300, D, seed=11)
ON_A_CARD = [
    "flat16",
    "pca-refine",
    "ivf",
    "ivf-sq8",
    "IVF16,SQfp16",
    "PCA16,IVF16,PQ8np",
    "PCAR16,IVF8,Flat",
]
ON_THE_HOST = ["ivf-pq", "hnsw", "LSH", "PCA8,IVF16,PQ4x4"]


@pytest.fixture
def card() -> Iterator[FakeCard]:
    with fake_card() as card:
        yield card


@pytest.mark.parametrize("storage", get_args(Storage))
@pytest.mark.parametrize("name", [None, *ON_A_CARD, *ON_THE_HOST])
def test_it_finds_what_the_cpu_finds(card: FakeCard, name: str | None, storage: Storage) -> None:
    index = None
    if name is not None:
        spec = IndexSpec(factory=name, min_recall=0.9)
        index = make_index(XB, spec, clustered(400, D, seed=2), k=K, patches_per_image=64, seed=0).index
    on_host = MemoryBank(XB, CPU, index).search(torch.from_numpy(XQ), K, exact=True)
    bank = MemoryBank(XB, CARD, index, card=CardSpec(storage=storage))
    queries = torch.from_numpy(XQ).to(CARD)
    with card.refusing():
        found = bank.search(queries, K, exact=True)
    assert found.ids.device == found.sq_distances.device == CARD
    ids, sq_distances = found.ids.cpu(), found.sq_distances.cpu()
    if name in ON_THE_HOST:
        on_host = MemoryBank(XB, CPU).search(torch.from_numpy(XQ), K, exact=True)
    assert (ids[:, 0] == on_host.ids[:, 0]).float().mean() > (0.99 if storage == "fp32" else 0.95)
    picked = np.square(XQ[:, None].astype(np.float64) - XB[ids.numpy()]).sum(axis=2)
    np.testing.assert_allclose(sq_distances.numpy(), picked, rtol=1e-4, atol=1e-5)
    assert len(card.faiss.made) == 1


@pytest.mark.parametrize("name", [*INDEX_NAMES, "IVF16,SQfp16"])
def test_an_index_is_tuned_where_it_searches(card: FakeCard, name: str) -> None:
    flat = MemoryBank(XB, CARD)
    spec = IndexSpec(factory=name, min_recall=0.9)
    unseen = clustered(400, D, seed=2)
    choice = make_index(XB, spec, unseen, k=K, patches_per_image=64, seed=0, flat=flat)
    assert name == "hnsw" or choice.state.recall_at_1 > 0.85
    if choice.index is not None:
        assert choice.index.device == (CPU if name == "hnsw" else CARD)
    assert (
        not any("HNSW" in trial.factory or "fs" in trial.factory for trial in choice.trials) or name == "hnsw"
    )


def test_an_index_that_a_card_has_not_is_searched_as_flat(card: FakeCard) -> None:
    choice = make_index(XB, IndexSpec(factory="hnsw", min_recall=0.9), XQ, k=K, patches_per_image=64, seed=0)
    before = card.faiss.calls["brute_force"]
    bank = MemoryBank(XB, CARD, choice.index)
    bank.search(torch.from_numpy(XQ).to(CARD), K)
    assert card.faiss.calls["brute_force"] == before + 1
    assert bank.index is not None
    assert bank.index.state == choice.state


def test_no_query_comes_back_short(card: FakeCard) -> None:
    """One cell is probed, and more neighbours asked for than any holds: others are probed as well, unasked."""
    built = build_faiss(XB, "IVF64,Flat", seed=0)
    state = IndexState(
        factory="IVF64,Flat", parameters={"nprobe": 1}, k=K, queries=0, resident_bytes=0, latency_ms=0
    )
    bank = MemoryBank(XB, CARD, SearchIndex(built, state))
    queries = torch.from_numpy(XQ).to(CARD)
    for k in (1, 3, 40, 300, COUNT):
        with card.refusing():
            found = bank.search(queries, k)
        ids = held(found.ids)
        assert int(ids.min()) >= 0
        assert all(len(set(row)) == k for row in ids[:20].tolist())


@pytest.mark.parametrize("name", [None, "flat16", "pca-refine", "ivf-sq8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_has_no_finite_distance(
    card: FakeCard, name: str | None, bad: float
) -> None:
    index = None
    if name is not None:
        spec = IndexSpec(factory=name, min_recall=0.9)
        index = make_index(XB, spec, XQ, k=K, patches_per_image=64, seed=0).index
    queries = torch.zeros(50, D)
    queries[7, 2] = bad
    bank = MemoryBank(XB, CARD, index)
    for exact in (False, True):
        there = queries.to(CARD)
        with card.refusing():
            found = bank.search(there, 2, exact=exact)
        finite = held(found.sq_distances).isfinite().all(dim=1)
        assert finite.tolist() == [row != 7 for row in range(50)]
        assert 0 <= int(held(found.ids).min()) <= int(held(found.ids).max()) < COUNT


def test_a_row_that_does_not_exist_is_never_gathered(card: FakeCard) -> None:
    """Whatever FAISS gave: on a card that would end everything."""
    flat = CardFlat(torch.from_numpy(XB).to(CARD), card_of(CARD, CardSpec()))
    ids = torch.tensor([[-1, 0, COUNT - 1, COUNT, 1 << 40]]).to(CARD)
    queries = torch.zeros(1, D).to(CARD)
    with card.refusing():
        rows = flat.completed(queries, ids)
    assert held(rows).tolist() == [[0, 0, COUNT - 1, COUNT - 1, COUNT - 1]]


def test_queries_are_cut_to_the_scratch_memory(card: FakeCard) -> None:
    """Two tiles of 20,000 distances a query: 16 MiB, less the one for rounding, hold 98 queries."""
    xb = clustered(20_000, D, seed=1)
    found = MemoryBank(xb, CARD, card=CardSpec(temporary_bytes=16 << 20)).search(
        torch.from_numpy(XQ).to(CARD), K
    )
    assert card.faiss.calls["brute_force"] == 4
    expected = MemoryBank(xb, CPU).search(torch.from_numpy(XQ), K)
    assert torch.equal(held(found.ids), expected.ids)


def test_one_object_of_resources_a_card_and_process(card: FakeCard) -> None:
    """Whoever asks, from whichever thread; scratch memory grows to the largest that was asked for."""
    specs = [CardSpec(temporary_bytes=mebibytes << 20) for mebibytes in (64, 256, 128)] * 4
    with ThreadPoolExecutor(8) as pool:
        cards = list(pool.map(lambda spec: card_of(CARD, spec), specs))
    assert len(set(map(id, cards))) == len(card.faiss.made) == 1
    assert card.faiss.made[0].temporary_bytes == 256 << 20
    other = card_of(torch.device("meta:1"), CardSpec())
    assert other is not cards[0]
    assert len(card.faiss.made) == 2


def test_a_card_without_a_number_is_the_first(card: FakeCard) -> None:
    """Under two names it would have two objects of resources, and an index on it would be tuned on the CPU."""
    flat = MemoryBank(XB, torch.device("meta"))
    assert flat.device == CARD
    spec = IndexSpec(factory="ivf", min_recall=0.9)
    index = make_index(XB, spec, XQ, k=K, patches_per_image=64, seed=0, flat=flat).index
    assert index is not None
    assert index.device == CARD
    assert card.faiss.calls["search"]
    assert len(card.faiss.made) == 1


@pytest.mark.usefixtures("card")
def test_no_more_cells_are_tried_than_a_card_can_probe() -> None:
    """What finds too little at 2,048 is not an error, as 3,000 would be."""
    xb = clustered(2600, 4)
    state = IndexState(
        factory="IVF2100,Flat", parameters={}, k=1, queries=0, resident_bytes=0, latency_ms=0.0
    )
    flat = MemoryBank(xb, CARD)
    index = SearchIndex(build_faiss(xb, "IVF2100,Flat", seed=0), state).to(flat.tensor, flat.card)
    truth = Truth(xb, clustered(40, 4, seed=3), k=1, patches_per_image=4, flat=flat)
    truth.nearest[:] = -1  # nothing is as near
    assert not tune(index, truth, 0.9)
    assert index.state.parameters == {"nprobe": 1}
    assert tunable(index.faiss_index, on_card=True) == {"nprobe": 2048}
    index.tuned({"nprobe": 2100}, 0)
    on_card = MemoryBank(xb, CARD, SearchIndex(BuiltIndex(index.faiss_index), state))
    assert on_card.index is not None
    assert on_card.index.device == CPU  # tuned on a CPU: a card looks at every memory


def test_two_threads_take_turns(card: FakeCard) -> None:
    queries = torch.from_numpy(XQ[:20])
    inside = 0
    most = 0
    search = card.faiss.brute_force

    def slow(*given: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        inside -= 1
        return search(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cfa_index.bank.faiss_gpu.brute_force", slow)
        bank = MemoryBank(XB, CARD)

        def ask(_: int) -> Tensor:
            with card:  # torch's modes belong to a thread
                return held(bank.search(queries.to(CARD), K).ids)

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(ask, range(12)))
    assert most == 1
    assert all(torch.equal(answer, answers[0]) for answer in answers)


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("factory", [None, "IVF8,Flat"])
def test_an_index_that_is_dropped_waits_for_its_turn(factory: str | None) -> None:
    """FAISS would change its list of what it has of the card under a search of another thread."""
    card = card_of(CARD, CardSpec())
    owners: list[CardHalf | CardInverted] = []
    if factory is None:
        owners.append(CardHalf(torch.from_numpy(XB).to(CARD), card))
    else:
        built = build_faiss(XB, factory, seed=0)
        moved = faiss_gpu.to_card(card.resources, card.number, built.index)
        owners.append(CardInverted(moved, card, np.array([COUNT])))
        del moved
    gone = weakref.ref(owners[0]._held[0])
    with ThreadPoolExecutor(1) as pool:
        with card.turn():
            dropped = pool.submit(owners.clear)
            time.sleep(0.05)
            assert not dropped.done()
            assert gone() is not None
        dropped.result(timeout=10)
    assert gone() is None


def test_what_faiss_cannot_select_is_an_error_and_no_end_of_the_process(card: FakeCard) -> None:
    xb = clustered(2100, 4)
    queries = torch.zeros(1, 4).to(CARD)
    with pytest.raises(
        BankError, match="at most 2048 neighbours, which is what FAISS selects on a card, got 2049"
    ):
        MemoryBank(xb, CARD).search(queries, 2049)
    MemoryBank(xb, CARD).search(queries, 2048)


def test_memories_too_large_for_half_floats_are_refused(card: FakeCard) -> None:
    xb = XB.copy()
    xb[3, 1] = 300
    with pytest.raises(BankError, match="below 255, whose squares are half floats, too, got one of 300"):
        MemoryBank(xb, CARD, card=CardSpec(storage="fp16"))
    MemoryBank(xb, CARD)


def test_a_card_that_faiss_does_not_see_is_an_error(card: FakeCard) -> None:
    with pytest.raises(DeviceError, match="CUDA device 2, got one that sees 2"):
        MemoryBank(XB, torch.device("meta:2"))


def test_without_a_card_the_error_is_one_line() -> None:
    if gpu_count():
        pytest.skip("there is one")
    with pytest.raises(DeviceError, match="a FAISS that sees CUDA device 0, got one that sees 0 of them"):
        card_of(torch.device("cuda:0"), CardSpec())


def test_the_index_on_the_cpu_is_what_is_written(card: FakeCard, tmp_path: Path) -> None:
    spec = IndexSpec(factory="ivf", min_recall=0.9)
    flat = MemoryBank(XB, CARD)
    made = make_index(XB, spec, XQ, k=K, patches_per_image=64, seed=0, flat=flat).index
    assert made is not None
    made.write(tmp_path / "index.faiss")
    again = read_faiss(tmp_path / "index.faiss", made.state, XB.shape)
    on_host = MemoryBank(XB, CPU, again).search(torch.from_numpy(XQ), K)
    on_card = flat.with_index(made).search(torch.from_numpy(XQ).to(CARD), K)
    assert torch.equal(on_host.ids, held(on_card.ids))
    torch.testing.assert_close(on_host.sq_distances, held(on_card.sq_distances), rtol=1e-5, atol=1e-6)

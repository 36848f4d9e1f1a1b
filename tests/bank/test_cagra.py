"""A CAGRA graph: on the CPU, into a file and back, and on a fake card, whose cuVS looks at every memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from fake_card import FakeCard, FakeCuvs, fake_card
from numpy.typing import NDArray
from vectors import clustered

from cfa_index.bank import MemoryBank, build_faiss, changed_faiss, cuvs, make_index, read_faiss, recipes_of
from cfa_index.bank.cagra import FEWEST_FOR_CAGRA, cagra_index, cagra_of, fill_graph, neighbor_lists
from cfa_index.bank.card_graph import aligned, completed, graph_footprint, walk_width
from cfa_index.errors import BankError, DeviceError
from cfa_index.specs import INDEX_NAMES, IndexSpec

CPU, CARD = torch.device("cpu"), torch.device("meta:0")
COUNT, K = 1500, 3
REQUIRE_CUVS = cuvs.require_cuvs
"""The real one."""


@pytest.fixture
def card() -> Iterator[FakeCard]:
    with fake_card() as card:
        yield card


@pytest.fixture
def fake(card: FakeCard) -> FakeCuvs:
    return card.cuvs


def tuned(xb: NDArray[np.float32], device: torch.device = CPU) -> MemoryBank:
    queries = clustered(400, xb.shape[1], seed=2)
    spec = IndexSpec(factory="cagra", min_recall=0.9)
    flat = MemoryBank(xb, device)
    choice = make_index(xb, spec, queries, k=K, patches_per_image=64, seed=0, flat=flat)
    assert choice.index is not None
    return flat.with_index(choice.index)


def test_lists_that_a_card_found_are_walked_on_the_cpu_and_come_back_from_a_file(tmp_path: Path) -> None:
    xb, xq = clustered(COUNT, 24, seed=1), clustered(200, 24, seed=3)
    lists = faiss.knn(xb, xb, 33)[1][:, 1:].astype(np.uint32)
    index = cagra_index(24, "CAGRA32")
    fill_graph(index, [xb[:700], xb[700:]], lists)
    np.testing.assert_array_equal(neighbor_lists(index), lists)
    path = tmp_path / "index.faiss"
    faiss.write_index(index, str(path))
    back = faiss.read_index(str(path))
    assert type(back) is faiss.IndexHNSWCagra
    np.testing.assert_array_equal(neighbor_lists(back), lists)
    for one in (index, back):
        one.hnsw.efSearch = 256
    np.testing.assert_array_equal(back.search(xq, 5)[1], index.search(xq, 5)[1])
    # Lists of nearest neighbours alone hang together within a cluster only: the levels above lead into it.
    assert (back.search(xq, 1)[1] == faiss.knn(xq, xb, 1)[1]).mean() > 0.7


@pytest.mark.parametrize("d", [24, 300])
def test_the_lists_of_the_cpu_are_all_as_long(d: int) -> None:
    xb = clustered(COUNT, d, seed=1)
    index = build_faiss(xb, recipes_of("cagra", COUNT, d)[0].factory, seed=0).index
    lists = neighbor_lists(cagra_of(index))
    assert lists.shape == (COUNT, 64)
    assert lists.dtype == np.uint32
    assert lists.max() < COUNT


def test_an_empty_place_in_a_list_is_filled_by_its_first() -> None:
    xb = clustered(20, 8, seed=1)
    index = cagra_index(8, "CAGRA32")
    index.add(xb)  # fewer than a list holds
    lists = neighbor_lists(index)
    assert lists.shape == (20, 32)
    assert all(set(row) <= set(range(20)) for row in lists.tolist())
    one = cagra_index(8, "CAGRA4")
    one.add(xb[:1])
    assert neighbor_lists(one).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("factory", ["CAGRA0", "CAGRA2", "CAGRA7", "PCA9,CAGRA8", "PCA0,CAGRA8"])
def test_a_graph_that_cannot_be_is_refused(factory: str) -> None:
    with pytest.raises(BankError, match=r"even degree of 4 or more, and at most 8 directions"):
        cagra_index(8, factory)


def test_other_strings_are_left_to_faiss() -> None:
    assert cagra_index(8, "HNSW32,Flat") is None
    with pytest.raises(BankError, match="FAISS factory string"):
        build_faiss(clustered(20, 8), "CAGRA", seed=0)


def test_a_small_bank_has_no_graph_and_a_wide_one_few_directions() -> None:
    def factories(name: str, count: int, d: int, *, on_card: bool = False) -> list[str]:
        return [one.factory for one in recipes_of(name, count, d, on_card=on_card, with_cuvs=on_card)]

    assert factories("cagra", FEWEST_FOR_CAGRA - 1, 64) == ["Flat"]
    assert factories("cagra", FEWEST_FOR_CAGRA, 64) == ["CAGRA64"]
    assert factories("cagra", FEWEST_FOR_CAGRA, 1792) == ["PCA128,CAGRA64"]
    assert "cagra" in INDEX_NAMES
    assert "CAGRA64" not in factories("auto", 5000, 64)
    on_card = factories("auto", 5000, 64, on_card=True)
    assert "CAGRA64" in on_card
    assert "HNSW32,Flat" not in on_card


@pytest.mark.parametrize("d", [24, 30, 300])
def test_a_card_finds_what_the_cpu_finds(card: FakeCard, fake: FakeCuvs, d: int) -> None:
    xb, xq = clustered(COUNT, d, seed=1), clustered(200, d, seed=3)
    bank = tuned(xb, CARD)
    assert bank.index is not None
    width = 128 if d > 256 else d
    assert fake.built == [(COUNT, -(-width // 4) * 4)]
    np.testing.assert_array_equal(fake.joined[0], neighbor_lists(cagra_of(bank.index.faiss_index)))
    queries = torch.from_numpy(xq).to(CARD)
    with card.refusing():
        found = bank.search(queries, K, exact=True)
    assert found.ids.device == found.sq_distances.device == CARD
    assert fake.widths[-1] >= bank.index.state.parameters["efSearch"]
    exact = MemoryBank(xb, CPU).search(torch.from_numpy(xq), K, exact=True)
    assert (found.ids.cpu()[:, 0] == exact.ids[:, 0]).float().mean() > 0.9
    picked = np.square(xq[:, None].astype(np.float64) - xb[found.ids.cpu().numpy()]).sum(axis=2)
    np.testing.assert_allclose(found.sq_distances.cpu().numpy(), picked, rtol=1e-4, atol=1e-5)


def test_a_model_made_on_a_card_scores_on_a_cpu_and_the_other_way_round(
    card: FakeCard, fake: FakeCuvs, tmp_path: Path
) -> None:
    xb, xq = clustered(COUNT, 24, seed=1), torch.from_numpy(clustered(200, 24, seed=3))
    exact = MemoryBank(xb, CPU).search(xq, K, exact=True)
    for made_on, read_on in ((CARD, CPU), (CPU, CARD)):
        bank = tuned(xb, made_on)
        assert bank.index is not None
        bank.index.write(tmp_path / "index.faiss")
        index = read_faiss(tmp_path / "index.faiss", bank.index.state, xb.shape)
        found = MemoryBank(xb, read_on, index).search(xq.to(read_on), K, exact=True)
        assert (found.ids.cpu()[:, 0] == exact.ids[:, 0]).float().mean() > 0.85
    assert len(fake.built) == 1


def test_memories_can_be_added_to_a_graph_of_a_card(card: FakeCard, fake: FakeCuvs, tmp_path: Path) -> None:
    xb, more = clustered(COUNT, 24, seed=1), clustered(100, 24, seed=5)
    bank = tuned(xb, CARD)
    assert bank.index is not None
    path = tmp_path / "index.faiss"
    bank.index.write(path)
    both = np.concatenate([xb, more])
    index = changed_faiss(path, bank.index.state, both, kept=COUNT, seed=0)
    found = MemoryBank(both, CPU, index).search(torch.from_numpy(more), 1, exact=True)
    assert (found.ids[:, 0] == torch.arange(COUNT, COUNT + 100)).float().mean() > 0.95
    assert neighbor_lists(index.faiss_index).max() < len(both)
    MemoryBank(both, CARD, index).search(torch.from_numpy(more).to(CARD), 1)


@pytest.mark.parametrize("short", [1, 2])
def test_a_walk_that_ends_early_leaves_no_query_short(card: FakeCard, fake: FakeCuvs, short: int) -> None:
    xb, xq = clustered(COUNT, 24, seed=1), clustered(50, 24, seed=3)
    bank = tuned(xb, CARD)
    assert bank.index is not None
    bank.index.tuned({"efSearch": 64}, K)
    fake.short = short
    queries = torch.from_numpy(xq).to(CARD)
    with card.refusing():
        found = bank.search(queries, K, exact=True)
    ids = found.ids.cpu()
    assert all(len(set(row)) == K for row in ids.tolist())
    assert found.sq_distances.cpu().isfinite().all()
    exact = MemoryBank(xb, CPU).search(torch.from_numpy(xq), K, exact=True)
    assert (ids[:, 0] == exact.ids[:, 0]).all()


def test_a_query_that_is_not_finite_is_told_by_its_distances(card: FakeCard, fake: FakeCuvs) -> None:
    bank = tuned(clustered(COUNT, 24, seed=1), CARD)
    xq = clustered(4, 24, seed=3)
    xq[2, 5] = np.nan
    queries = torch.from_numpy(xq).to(CARD)
    with card.refusing():
        found = bank.search(queries, K, exact=True)
    assert found.sq_distances.cpu().isfinite().all(dim=1).tolist() == [True, True, False, True]
    assert len(bank.search(torch.zeros(0, 24).to(CARD), K).ids) == 0


def test_missing_rows_become_the_lowest_that_are_not_there() -> None:
    ids = torch.tensor([[5, 0, -1], [1, -1, -1], [0, 1, 2], [-1, -1, -1], [9, 8, 99]])
    assert completed(ids, 10).tolist() == [[5, 0, 1], [1, 0, 2], [0, 1, 2], [0, 1, 2], [9, 8, 0]]
    assert completed(torch.tensor([[2, -1, -1]]), 3).tolist() == [[2, 0, 1]]


def test_a_walk_keeps_multiples_of_32() -> None:
    assert [walk_width(k, width) for k, width in ((1, 0), (33, 8), (6, 100), (1024, 64), (6, 5000))] == [
        *(32, 64, 128, 1024, 1024)
    ]


def test_more_than_a_walk_keeps_is_found_exactly(card: FakeCard, fake: FakeCuvs) -> None:
    xb, xq = clustered(COUNT, 30, seed=1), clustered(2, 30, seed=3)
    bank = tuned(xb, CARD)
    walks = len(fake.widths)
    queries = torch.from_numpy(xq).to(CARD)
    with card.refusing():
        found = bank.search(queries, COUNT)
    assert len(fake.widths) == walks
    assert [sorted(row) for row in found.ids.cpu().tolist()] == [list(range(COUNT))] * 2


def test_a_graph_is_counted_by_its_lists_and_by_rows_that_are_padded() -> None:
    assert graph_footprint((1000, 32), 64).total == 4 * 1000 * 65
    assert graph_footprint((1000, 30), 64).total == 4 * 1000 * 65 + 4 * 1000 * 32


def test_rows_are_padded_to_16_bytes_or_left_as_they_are() -> None:
    rows = torch.rand(3, 5)
    assert aligned(rows).shape == (3, 8)
    assert torch.cdist(aligned(rows), aligned(rows)).allclose(torch.cdist(rows, rows))
    wide = torch.rand(3, 8)
    assert aligned(wide).data_ptr() == wide.data_ptr()


@pytest.mark.skipif(cuvs.has_cuvs(), reason="cuVS is installed")
def test_a_card_without_cuvs_is_told_what_to_install(card: FakeCard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuvs, "require_cuvs", REQUIRE_CUVS)
    xb = clustered(COUNT, 24, seed=1)
    wanted = r"no package cuvs; pip install 'cfa-index\[cuvs\]', or use --index ivf or flat, or --device cpu"
    with pytest.raises(DeviceError, match=wanted):
        tuned(xb, CARD)
    index = tuned(xb).index
    with pytest.raises(DeviceError, match=wanted) as caught:
        MemoryBank(xb, CARD, index)
    assert "\n" not in str(caught.value)

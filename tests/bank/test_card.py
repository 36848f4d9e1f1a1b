"""A bank on a card, on a fake one: the neighbours of the CPU, and nothing waited for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
import torch
from fake_card import FakeCard, fake_card
from vectors import clustered

from cfa_index.bank import MemoryBank, make_index
from cfa_index.specs import CardSpec, IndexSpec, Storage

CPU, CARD = torch.device("cpu"), torch.device("meta:0")
COUNT, D, K = 1500, 32, 3
XB, XQ = clustered(COUNT, D, seed=1), clustered(300, D, seed=11)
ON_A_CARD = ["flat16", "pca-refine", "ivf", "ivf-sq8", "IVF16,SQfp16", "PCA16,IVF16,PQ8", "OPQ8_16,IVF8,Flat"]
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

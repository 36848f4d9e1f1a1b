"""FAISS and cuVS on a fake card: what stands in for `cfa_index.bank.faiss_gpu` and `cfa_index.bank.cuvs`.

They take what the true ones take, contiguous float32 tensors of their card, and answer from FAISS on the CPU.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
import torch
from card_tensors import CardTensor
from numpy.typing import NDArray
from torch import Tensor


class FakeResources:
    """FAISS's resources; counted, so that a test can say how many were made."""

    def __init__(self, temporary_bytes: int) -> None:
        self.temporary_bytes = temporary_bytes

    def setTempMemory(self, temporary_bytes: int) -> None:
        self.temporary_bytes = temporary_bytes


class FakeIndex:
    """A FAISS index on the card, which is one on the CPU; takes and gives tensors on its card only."""

    def __init__(self, index: Any, device: torch.device) -> None:
        self._index = index
        self._device = device
        self.nprobe = 1

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if isinstance(self._index, faiss.IndexIVF):
            self._index.nprobe = self.nprobe
        x = _taken(queries, self._device)
        return _given(self._index.search(x, k), self._device)


def _taken(tensor: Tensor, device: torch.device) -> NDArray[np.float32]:
    """What FAISS reads of a tensor on a card. It looks at the pointer only: all else is for us to see to."""
    assert isinstance(tensor, CardTensor), f"{type(tensor)} on {tensor.device}"
    assert tensor.device == device, f"{tensor.device}, not {device}"
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert len(tensor) > 0
    array: NDArray[np.float32] = tensor.held.detach().numpy()
    return array


def _given(
    found: tuple[NDArray[np.float32], NDArray[np.int64]], device: torch.device
) -> tuple[Tensor, Tensor]:
    return CardTensor(torch.from_numpy(found[0]), device), CardTensor(torch.from_numpy(found[1]), device)


class FakeFaiss:
    """What stands in for `cfa_index.bank.faiss_gpu`.

    Attributes:
        made: resources, in order.
        calls: of searches, by kind.
    """

    def __init__(self, cards: int) -> None:
        self._cards = cards
        self.made: list[FakeResources] = []
        self.calls: Counter[str] = Counter()

    def gpu_count(self) -> int:
        return self._cards

    def take_tensors(self) -> None:
        """The real one would patch FAISS for the whole process."""

    def make_resources(self, number: int, temporary_bytes: int) -> FakeResources:
        assert 0 <= number < self._cards, "FAISS would end the process"
        self.made.append(FakeResources(temporary_bytes))
        return self.made[-1]

    def brute_force(
        self, resources: FakeResources, queries: Tensor, vectors: Tensor, sq_norms: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(resources, FakeResources)
        assert k <= 2048, "FAISS would end the process"
        self.calls["brute_force"] += 1
        device = queries.device
        x, y, norms = _taken(queries, device), _taken(vectors, device), _taken(sq_norms, device)
        np.testing.assert_allclose(norms, np.square(y.astype(np.float64)).sum(axis=1), rtol=1e-5, atol=1e-30)
        return _given(faiss.knn(x, y, k), device)

    def half_flat(self, resources: FakeResources, vectors: Tensor) -> FakeIndex:
        assert isinstance(resources, FakeResources)
        index = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)
        index.add(_taken(vectors, vectors.device))
        return FakeIndex(index, vectors.device)

    def to_card(self, resources: FakeResources, number: int, index: Any) -> FakeIndex:
        assert isinstance(resources, FakeResources)
        kinds = (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ)
        if type(index) not in kinds:
            raise RuntimeError("This index type is not implemented on GPU.")
        return FakeIndex(_cloned(index), torch.device("meta", number))

    def search(self, index: FakeIndex, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        assert k <= 2048
        assert index.nprobe <= 2048
        self.calls["search"] += 1
        return index.search(queries, k)


def _cloned(ivf: Any) -> Any:
    """A copy of an inverted file whose lists may be mapped, which FAISS does not clone; moving reads them entry by entry."""
    mapped, owned = ivf.invlists, ivf.own_invlists
    lists = faiss.ArrayInvertedLists(ivf.nlist, ivf.code_size)
    for cell in range(ivf.nlist):
        lists.add_entries(cell, mapped.list_size(cell), mapped.get_ids(cell), mapped.get_codes(cell))
    ivf.own_invlists, ivf.invlists = False, lists
    try:
        return faiss.clone_index(ivf)
    finally:
        ivf.invlists, ivf.own_invlists = mapped, owned


@dataclass
class FakeCuvs:
    """What stands in for `cfa_index.bank.cuvs`: every memory is looked at.

    Attributes:
        built: shapes of the vectors that graphs were built over.
        joined: neighbour lists that came to the card.
        widths: of the walks.
        short: how many of each query's rows are missing at the end, as where a walk ends early.
    """

    built: list[tuple[int, ...]] = field(default_factory=list)
    joined: list[NDArray[np.int32]] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    short: int = 0

    def require_cuvs(self) -> None:
        """It is there."""

    def has_cuvs(self) -> bool:
        return True

    def build_lists(self, rows: Tensor, degree: int) -> NDArray[np.uint32]:
        xb = _taken(rows, rows.device)
        self.built.append(xb.shape)
        lists: NDArray[np.uint32] = faiss.knn(xb, xb, degree + 1)[1][:, 1:].astype(np.uint32)
        return lists

    def join_graph(self, rows: Tensor, lists: Tensor) -> NDArray[np.float32]:
        assert rows.shape[1] % 4 == 0, "cuVS would refuse rows that do not begin at 16 bytes"
        assert isinstance(lists, CardTensor)
        assert lists.dtype == torch.int32
        self.joined.append(lists.held.numpy())
        return _taken(rows, rows.device)

    def walk(self, graph: NDArray[np.float32], queries: Tensor, k: int, width: int) -> tuple[Tensor, Tensor]:
        assert k <= width <= 1024
        assert width % 32 == 0
        self.widths.append(width)
        sq_distances, ids = faiss.knn(_taken(queries, queries.device), graph, k)
        if self.short:
            ids[:, -self.short :] = -1
        found = _given((sq_distances, ids), queries.device)
        return found[0], found[1].to(torch.int32)

"""A FAISS index that was made on the CPU, on a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.bank import faiss_gpu
from cfa_index.bank.cagra import neighbor_lists
from cfa_index.bank.card import (
    MOST_SELECTED,
    ROUNDING_BYTES,
    Card,
    CardFlat,
    CardHalf,
    CardSearch,
    in_parts,
    most_queries,
    require_selectable,
)
from cfa_index.bank.card_graph import CardGraph
from cfa_index.bank.recipes import CARD_CODES
from cfa_index.card_memory import make_room
from cfa_index.footprint import ivf_footprint, ivf_pq_footprint, memories_footprint, search_buffers
from cfa_index.specs import Storage

_INVERTED_FILES = (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ)
"""What FAISS moves to a card; not their subclasses."""
_FLAT = (faiss.IndexFlat, faiss.IndexFlatL2)
_SCALARS = {
    faiss.ScalarQuantizer.QT_8bit,
    faiss.ScalarQuantizer.QT_8bit_uniform,
    faiss.ScalarQuantizer.QT_8bit_direct,
    faiss.ScalarQuantizer.QT_6bit,
    faiss.ScalarQuantizer.QT_4bit,
    faiss.ScalarQuantizer.QT_4bit_uniform,
    faiss.ScalarQuantizer.QT_fp16,
}
"""Scalar quantisers that FAISS has on a card (GpuScalarQuantizer.cuh)."""


class CardInverted:
    """An inverted file on a card.

    A query that came back with too few neighbours would have to be found on the host, and asked again. So as many
    cells are probed as hold k memories whichever they are.

    Args:
        index: FAISS's, on the card.
        card: its.
        list_sizes: (cells,) memories in each cell.

    Attributes:
        nprobe: cells to probe, at least.
    """

    def __init__(self, index: Any, card: Card, list_sizes: NDArray[np.int64]) -> None:
        self.nprobe = 1
        self._held = card.keep(index, self)
        self._card = card
        self._in_the_smallest = np.cumsum(np.sort(list_sizes))

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `CardSearch`. Raises BankError also where it takes more cells than FAISS can select."""
        require_selectable(k)
        enough = int(np.searchsorted(self._in_the_smallest, k)) + 1
        nprobe = min(max(self.nprobe, enough), len(self._in_the_smallest))
        require_selectable(nprobe, "cells")

        def found(part: Tensor) -> tuple[Tensor, Tensor]:
            [moved] = self._held
            moved.nprobe = nprobe
            return faiss_gpu.search(moved, part, k)

        cells = len(self._in_the_smallest)
        room = inverted_queries(self._card.temporary_bytes, cells, queries.shape[1], k, nprobe)
        return in_parts(queries, k, room, self._card, found)


@lru_cache(maxsize=256)
def inverted_queries(temporary_bytes: int, cells: int, width: int, k: int, nprobe: int) -> int:
    """Queries that an inverted file can take at once within FAISS's scratch memory, at least 1.

    For each cell that is probed FAISS keeps a vector, whether it needs that or not. Beside these it searches
    through the cells' centres, and after that keeps the k nearest of each cell (IVFFlat.cu, IVFInterleaved.cu).
    See `flat_queries` for what does not fit.
    """

    def fits(queries: int) -> bool:
        probed = queries * nprobe
        centres = sum(search_buffers(queries, cells, width, nprobe))
        needed = probed * (4 * width + 12) + max(centres, probed * 12 * k)
        return needed + ROUNDING_BYTES <= temporary_bytes

    return most_queries(fits)


class CardIndex:
    """An index on a card, and the linear maps before it, which FAISS would do on the CPU.

    Args:
        inner: what searches.
        turn: weight (p, D') and bias (p,) of the maps as one, on the card; None for none.
    """

    def __init__(self, inner: CardSearch, turn: tuple[Tensor, Tensor] | None) -> None:
        self._inner = inner
        self._turn = turn

    def search(self, queries: Tensor, k: int, parameters: Mapping[str, int]) -> tuple[Tensor, Tensor]:
        """See `CardSearch`; `parameters` are FAISS's. Raises BankError as its index does."""
        if isinstance(self._inner, CardInverted):
            self._inner.nprobe = parameters.get("nprobe", 1)
        elif isinstance(self._inner, CardGraph):
            self._inner.width = parameters.get("efSearch", 0)
        if self._turn is not None:
            weight, bias = self._turn
            queries = torch.addmm(bias, queries, weight.T)
        return self._inner.search(queries, k)


def index_on_card(index: Any, vectors: Tensor, card: Card, storage: Storage) -> CardIndex | None:
    """What searches on a card in place of a CPU index; None where neither FAISS nor cuVS has such an index there.

    Args:
        index: FAISS's, on the CPU.
        vectors: (M, D') float32, those of the index, on the card.
        card: theirs.
        storage: fp16 for half floats where the index has float32 vectors; a graph keeps those.

    Raises:
        CardMemoryError: there is no room for it.
        DeviceError: it is a CAGRA graph, and cuVS is not installed.
    """
    index, turn = faiss.downcast_index(index), None
    if isinstance(index, faiss.IndexPreTransform):
        maps = [faiss.downcast_VectorTransform(index.chain.at(at)) for at in range(index.chain.size())]
        if not all(isinstance(one, faiss.LinearTransform) for one in maps):
            return None
        weight, bias = _as_one(maps)
        turn = weight.to(card.device), bias.to(card.device)
        index = faiss.downcast_index(index.index)
    inner: CardSearch
    is_flat, is_half, is_graph = type(index) in _FLAT, _is_half(index), type(index) is faiss.IndexHNSWCagra
    if is_flat or is_half or is_graph:
        rows = vectors
        if turn is not None:
            make_room(memories_footprint(len(vectors), index.d), card.device)
            rows = torch.addmm(turn[1], vectors, turn[0].T)
    if is_graph:
        inner = CardGraph(rows, neighbor_lists(index), card)
    elif is_flat or is_half:
        inner = CardHalf(rows, card) if is_half or storage == "fp16" else CardFlat(rows, card)
    elif moves_to_card(index):
        inner = _inverted(index, card, storage)
    else:
        return None
    return CardIndex(inner, turn)


def moves_to_card(index: Any) -> bool:
    """Whether FAISS has an inverted file on a card, its centres there, too; else it would raise, or search wrongly."""
    if type(index) not in _INVERTED_FILES or type(faiss.downcast_index(index.quantizer)) not in _FLAT:
        return False
    if index.nprobe > MOST_SELECTED:
        return False
    if type(index) is faiss.IndexIVFPQ:
        plain = index.by_residual and not index.polysemous_ht
        return bool(plain and index.pq.nbits == 8 and index.pq.M in CARD_CODES)
    if type(index) is faiss.IndexIVFScalarQuantizer:
        return index.sq.qtype in _SCALARS
    return not index.by_residual


def _is_half(index: Any) -> bool:
    return type(index) is faiss.IndexScalarQuantizer and index.sq.qtype == faiss.ScalarQuantizer.QT_fp16


def _inverted(index: Any, card: Card, storage: Storage) -> CardInverted:
    if type(index) is faiss.IndexIVFFlat and storage == "fp16":
        index = _halved(index)
    sizes = np.array([index.invlists.list_size(cell) for cell in range(index.nlist)], dtype=np.int64)
    if type(index) is faiss.IndexIVFPQ:
        taken = ivf_pq_footprint(sizes.tolist(), index.d, quantisers=index.pq.M)
    else:
        bits = index.sq.bits if type(index) is faiss.IndexIVFScalarQuantizer else 32
        taken = ivf_footprint(sizes.tolist(), index.d, code_bits=bits)
    make_room(taken, card.device)
    with card.turn():
        moved = faiss_gpu.to_card(card.resources, card.number, index)
    return CardInverted(moved, card, sizes)


def _halved(flat: Any) -> Any:
    """An inverted file of float32 vectors as one of half floats, on the CPU.

    `useFloat16` of FAISS's cloner would round the coarse centres only (FAISS #1518).
    """
    half = faiss.IndexIVFScalarQuantizer(
        flat.quantizer, flat.d, flat.nlist, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2, False
    )
    half.is_trained = True
    for cell in range(flat.nlist):
        size = flat.invlists.list_size(cell)
        if not size:
            continue
        codes = faiss.rev_swig_ptr(flat.invlists.get_codes(cell), size * flat.code_size)
        rounded = codes.view(np.float32).astype(np.float16).view(np.uint8)
        ids = flat.invlists.get_ids(cell)
        half.invlists.add_entries(cell, size, ids, faiss.swig_ptr(rounded))
    half.ntotal = flat.ntotal
    return half


def _as_one(maps: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """FAISS's linear transforms, one after the other, as one: weight (p, d) and bias (p,), float32."""
    weight, bias = np.eye(maps[0].d_in), np.zeros(maps[0].d_in)
    for one in maps:
        matrix = faiss.vector_to_array(one.A).reshape(one.d_out, one.d_in).astype(np.float64)
        weight, bias = matrix @ weight, matrix @ bias
        if one.have_bias:
            bias = bias + faiss.vector_to_array(one.b)
    return torch.from_numpy(weight.astype(np.float32)), torch.from_numpy(bias.astype(np.float32))

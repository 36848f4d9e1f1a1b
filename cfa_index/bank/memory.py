"""The memory bank: vectors, where each came from, and the index that finds them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.bank.builder import blocks
from cfa_index.bank.exact import exact_sq_distances, nearest_rows
from cfa_index.bank.half import HalfProducts
from cfa_index.bank.index import SearchIndex, flat_index, search_on_gpu
from cfa_index.bank.neighbors import Neighbors
from cfa_index.bank.threads import shared_threads
from cfa_index.errors import BankError

_SPARE = 3
"""Candidates beyond k that products of half precision are asked for: with none, a fiftieth of the patches got
another neighbour than the nearest; with three, none or one in 25,000 did, and it was as near to 2e-4."""
_MOST_HALVED = 1 << 28
"""Numbers in a bank, M * D', up to which it is held a second time in half precision: 512 MiB."""


@dataclass(frozen=True, kw_only=True)
class PatchSources:
    """For each memory the nearest real patch that the build saw.

    Attributes:
        rows: (M,) int64, row of the image in the store.
        cells: (M,) int64, row-major cell of the patch grid.
    """

    rows: NDArray[np.int64]
    cells: NDArray[np.int64]


class MemoryBank:
    """M normal patches and their index, on one device.

    On the CPU the vectors are held once, as they are given: a file that is mapped copy-on-write stays one.

    Args:
        vectors: (M, D') float32; a memory-mapped array is fine.
        device: where queries live.
        index: over these vectors; None for Flat, which is exact.

    Raises:
        BankError: no vectors, some that are not finite, or an index over others.
        DeviceError: the device is not there, or FAISS has no such index on it.
    """

    def __init__(
        self, vectors: NDArray[np.float32], device: torch.device, index: SearchIndex | None = None
    ) -> None:
        if vectors.ndim != 2 or not len(vectors) or vectors.dtype != np.float32:
            raise BankError(
                expected="(M, D') float32 vectors with M of 1 or more",
                got=f"{vectors.shape} {vectors.dtype}",
                remedy="build the bank again",
            )
        if not all(np.isfinite(block).all() for block in blocks(vectors)):
            raise BankError(
                expected="finite memories", got="a NaN or infinite value", remedy="build the bank again"
            )
        self.vectors = _writable(vectors)
        self.device = device
        self.index: SearchIndex | None = None
        self._gpu_flat = flat_index(vectors, device) if index is None and device.type == "cuda" else None
        self._tensor = torch.from_numpy(self.vectors).to(device)
        self._half: HalfProducts | None = None
        if index is not None:
            self._take(index)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def tensor(self) -> Tensor:
        """The vectors (M, D') float32 on the bank's device; on the CPU their own memory, not to be changed."""
        return self._tensor

    def with_index(self, index: SearchIndex) -> MemoryBank:
        """The same vectors under an index.

        Raises:
            BankError: it is over others.
            DeviceError: FAISS has no such index on the bank's device.
        """
        other = copy.copy(self)
        other._take(index)
        return other

    @shared_threads()
    def with_half_products(self) -> MemoryBank:
        """The same bank, whose exact search takes its candidates from products of bfloat16.

        Distances stay exact, in float32. An index, a card, and a bank too large to be held twice search as
        they did.
        """
        other = copy.copy(self)
        if self.index is None and self.device.type == "cpu" and self.vectors.size <= _MOST_HALVED:
            other._half = HalfProducts(self._tensor)
        return other

    @shared_threads()
    def search(self, queries: Tensor, k: int, *, exact: bool = False) -> Neighbors:
        """The k nearest memories of (n, D') float32 queries.

        With an index, candidates are its own and distances exact: it decides which neighbours are found,
        never how far they are. Flat's distances come from a matrix product, clamped at zero; their rounding
        depends on the batch.

        Args:
            queries: on the bank's device.
            k: at most M.
            exact: compute Flat's distances, too, by direct subtraction and sort by them.

        Raises:
            BankError: k is larger than the bank, a query has another width, or is NaN or infinite.
        """
        self._check(queries, k)
        if self.index is not None:
            shortlist = min(max(self.index.state.shortlist, k), len(self))
            ids = self.index.candidates(queries, shortlist)[1]
            # Some indexes answer a NaN with any rows: an infinite sum is cheaper than looking at every number.
            ids = self._completed(queries, ids, ~queries.sum(dim=1).isfinite())
        elif exact and self._half is not None:
            ids = self._half.candidates(queries, min(k + _SPARE, len(self)))
            ids = self._completed(queries, ids)
        else:
            sq_distances, ids = self._flat(queries, k)
            if not exact:
                return Neighbors(sq_distances=sq_distances.clamp_min_(0), ids=ids)
        sq_distances, order = exact_sq_distances(queries, self._tensor, ids).sort(dim=1)
        return Neighbors(
            sq_distances=sq_distances[:, :k].contiguous(), ids=ids.gather(1, order[:, :k]).contiguous()
        )

    def _take(self, index: SearchIndex) -> None:
        if (index.count, index.width) != self.vectors.shape:
            raise BankError(
                expected=f"an index over {len(self)} x {self.vectors.shape[1]} memories",
                got=f"{index.count} x {index.width}",
                remedy="build the index again",
            )
        self.index = index.to(self.device)

    def _flat(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Every distance computed: (n, k) squared, as FAISS gives them, and rows."""
        if self._gpu_flat is not None:
            sq_distances, ids = search_on_gpu(self._gpu_flat, queries, k)
        else:
            found = nearest_rows(queries.numpy(), self.vectors, k)
            sq_distances, ids = torch.from_numpy(found[0]), torch.from_numpy(found[1])
        # FAISS never returns a row for a NaN or infinite query: its heap keeps -1.
        if len(ids) and int(ids.min()) < 0:
            raise BankError(
                expected="finite queries",
                got="a NaN or infinite patch feature",
                remedy="check the image, the weights and the precision",
            )
        return sq_distances, ids

    def _completed(self, queries: Tensor, ids: Tensor, odd: Tensor | None = None) -> Tensor:
        """Candidates, those of queries that have too few, or are odd (n,), replaced by Flat's."""
        short = (ids < 0).any(dim=1)
        if odd is not None:
            short |= odd
        if bool(short.any()):
            again = short.nonzero()[:, 0]
            ids = ids.clone()
            if self._gpu_flat is None and self.device.type == "cuda":
                self._gpu_flat = flat_index(self.vectors, self.device)
            ids[again] = self._flat(queries[again], ids.shape[1])[1]
        return ids

    def _check(self, queries: Tensor, k: int) -> None:
        if k > len(self):
            raise BankError(
                expected=f"to find {k} neighbours",
                got=f"a bank of {len(self)} memories",
                remedy="ask for fewer neighbours (K + J) or build a larger bank",
            )
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise BankError(
                expected=f"queries of shape (n, {self.vectors.shape[1]})",
                got=f"{tuple(queries.shape)}",
                remedy="use the descriptor that this bank was built with",
            )


def _writable(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """What torch takes without a warning: the same memory, unless it is read-only; a copy then."""
    return vectors if vectors.flags.writeable and vectors.flags.c_contiguous else np.array(vectors)

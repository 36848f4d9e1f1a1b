"""The memory bank: vectors, where each came from, and the index that finds them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.bank.builder import blocks
from cfa_index.bank.exact import exact_sq_distances
from cfa_index.bank.flat import Candidates, flat_of, half_of, tensor_on
from cfa_index.bank.index import SearchIndex
from cfa_index.bank.neighbors import Neighbors
from cfa_index.bank.threads import shared_threads
from cfa_index.card_memory import card_memory
from cfa_index.errors import BankError
from cfa_index.footprint import SMALLER_BANK
from cfa_index.specs import CardSpec

_SPARE = 3
"""Candidates beyond k that products of half precision are asked for: with none, a fiftieth of the patches got
another neighbour than the nearest; with three, none or one in 25,000 did, and it was as near to 2e-4."""


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

    On the CPU the vectors are held once, as they are given: a file that is mapped copy-on-write stays one. A card
    has a copy, which is all that Flat needs there.

    Args:
        vectors: (M, D') float32; a memory-mapped array is fine.
        device: where queries live.
        index: over these vectors; None for Flat, which is exact.
        card: what is taken of a card.

    Raises:
        BankError: no vectors, some that are not finite, or an index over others.
        DeviceError: the device is not there.
        CardMemoryError: the card has no room for it.
    """

    def __init__(
        self,
        vectors: NDArray[np.float32],
        device: torch.device,
        index: SearchIndex | None = None,
        *,
        card: CardSpec = CardSpec(),
    ) -> None:
        if vectors.ndim != 2 or not len(vectors) or vectors.dtype != np.float32:
            raise BankError(
                expected="(M, D') float32 vectors with M of 1 or more",
                got=f"{vectors.shape} {vectors.dtype}",
                remedy="build the bank again",
            )
        # A NaN is the least and the largest of what it is among; a mask would take a quarter of a block besides.
        if not all(np.isfinite((block.min(), block.max())).all() for block in blocks(vectors)):
            raise BankError(
                expected="finite memories", got="a NaN or infinite value", remedy="build the bank again"
            )
        self.vectors = _writable(vectors)
        self.card = card
        self.index: SearchIndex | None = None
        self._half: Candidates | None = None
        with card_memory(device, "the bank", lower=SMALLER_BANK):
            self._tensor = tensor_on(device, self.vectors, card)
            self.device = self._tensor.device
            self._flat = flat_of(self.vectors, self._tensor, card)
            if index is not None:
                self._take(index)
            if self._searching is None:
                self._half = half_of(self._tensor, card, precise=True)

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
            CardMemoryError: there is no room for it on the card.
        """
        other = copy.copy(self)
        other._take(index)
        if other._searching is not None:
            other._half = None
        return other

    def as_flat(self) -> MemoryBank:
        """The same vectors without an index, and without half floats: exact search."""
        other = copy.copy(self)
        other.index = other._half = None
        return other

    @shared_threads()
    def with_half_products(self) -> MemoryBank:
        """The same bank, whose exact search takes its candidates from products of bfloat16.

        Distances stay exact, in float32. An index, a card, and a bank too large to be held twice search as
        they did.
        """
        other = copy.copy(self)
        if self._searching is None and self._half is None:
            other._half = half_of(self._tensor, self.card, precise=False)
        return other

    @shared_threads()
    def search(self, queries: Tensor, k: int, *, exact: bool = False) -> Neighbors:
        """The k nearest memories of (n, D') float32 queries.

        With an index, candidates are its own and distances exact: it decides which neighbours are found,
        never how far they are. Flat's distances come from a matrix product, clamped at zero; their rounding
        depends on the batch.

        On a card nothing here waits for it. So a query that is not finite is no error there: its distances are
        NaN or infinite, and whoever reads on the host what became of them calls `require_finite`.

        Args:
            queries: on the bank's device.
            k: at most M, and at most 2,048 on a card.
            exact: compute Flat's distances, too, by direct subtraction and sort by them.

        Raises:
            BankError: k is too large, a query has another width, or is NaN or infinite.
        """
        check_queries(queries, k, self.vectors.shape)
        if self._searching is not None:
            shortlist = min(max(self._searching.state.shortlist, k), len(self))
            ids = self._flat.completed(queries, self._searching.candidates(queries, shortlist)[1])
        elif self._half is not None:
            ids = self._half.candidates(queries, min(k + _SPARE, len(self)))
            ids = self._flat.completed(queries, ids)
        else:
            sq_distances, ids = self._flat.search(queries, k)
            if not exact:
                return Neighbors(sq_distances=self._flat.settled(queries, sq_distances), ids=ids)
        sq_distances = exact_sq_distances(queries, self._tensor, ids)
        if ids.shape[1] == 1:
            return Neighbors(sq_distances=sq_distances, ids=ids)
        sq_distances, order = sq_distances.sort(dim=1, stable=True)
        return Neighbors(
            sq_distances=sq_distances[:, :k].contiguous(), ids=ids.gather(1, order[:, :k]).contiguous()
        )

    @property
    def _searching(self) -> SearchIndex | None:
        """The index, where there is one on the bank's device; Flat answers elsewhere."""
        index = self.index
        return index if index is not None and index.device.type == self.device.type else None

    def _take(self, index: SearchIndex) -> None:
        if (index.count, index.width) != self.vectors.shape:
            raise BankError(
                expected=f"an index over {len(self)} x {self.vectors.shape[1]} memories",
                got=f"{index.count} x {index.width}",
                remedy="build the index again",
            )
        self.index = index.to(self._tensor, self.card)


def check_queries(queries: Tensor, k: int, shape: tuple[int, ...]) -> None:
    """Raise a BankError unless k neighbours can be found for the queries in a bank of the shape (M, D')."""
    count, width = shape
    if k > count:
        raise BankError(
            expected=f"to find {k} neighbours",
            got=f"a bank of {count} memories",
            remedy="ask for fewer neighbours (K + J) or build a larger bank",
        )
    if queries.ndim != 2 or queries.shape[1] != width:
        raise BankError(
            expected=f"queries of shape (n, {width})",
            got=f"{tuple(queries.shape)}",
            remedy="use the descriptor that this bank was built with",
        )


def _writable(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """What torch takes without a warning: the same memory, unless it is read-only; a copy then."""
    return vectors if vectors.flags.writeable and vectors.flags.c_contiguous else np.array(vectors)

"""A bank over several cards: a copy on each of them, or a range of its rows on each.

    replicas   queries 0..n of card 0 --a part each--> cards --Neighbors of the part--> card 0, one behind the other
    shards     queries 0..n of card 0 --all of them--> cards --Neighbors among their rows--> card 0, one sort

Nothing of ours passes through the host (where two cards cannot reach each other, the driver does). torch copies from
card to card on the source's current stream, which first waits for what is under way on the target's, and the target's
waits for the copy (`copy_device_to_device` in aten/src/ATen/native/cuda/Copy.cu): so a copy is ordered after what made
its source and before what reads it, and no event of ours is needed. But a copy *back* makes the first card wait for the search behind it, and would keep
it from giving another card its queries: all queries go out before anything is searched, and all searches are
under way before an answer is taken. FAISS's own `IndexShards` and `IndexReplicas` merge on the host, a thread a card.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.bank.index import SearchIndex
from cfa_index.bank.memory import MemoryBank, check_queries
from cfa_index.bank.neighbors import Neighbors
from cfa_index.card_memory import card_memory
from cfa_index.errors import DeviceError
from cfa_index.footprint import SMALLER_BATCH
from cfa_index.specs import CardSpec


class Bank(Protocol):
    """What scoring and training ask of a bank, be it on one device or on several; see `MemoryBank`."""

    @property
    def vectors(self) -> NDArray[np.float32]:
        """(M, D'), on the host, may be memory mapped."""

    @property
    def device(self) -> torch.device:
        """Where queries are given and answers come."""

    @property
    def index(self) -> SearchIndex | None:
        """None for Flat."""

    @property
    def tensor(self) -> Tensor:
        """The vectors (M, D') on `device`."""

    @property
    def card(self) -> CardSpec:
        """What is taken of a card."""

    def __len__(self) -> int: ...

    def with_index(self, index: SearchIndex) -> Bank:
        """The same vectors under an index."""

    def as_flat(self) -> MemoryBank:
        """One bank over all the vectors that answers as Flat."""

    def with_half_products(self) -> Bank:
        """The same bank with candidates from products of bfloat16, where that helps."""

    def search(self, queries: Tensor, k: int, *, exact: bool = False) -> Neighbors:
        """The k nearest memories of (n, D') float32 queries on `device`."""


class SpreadBank:
    """M memories over several cards; queries are given on the first, and answers come there.

    It makes a search quicker, or lets a bank be larger than a card. The backbone works on the first card alone: to
    score more images a second, a process a card is simpler (`--engine ray --gpus-per-actor 1`).

    Args:
        vectors: (M, D') float32; a memory-mapped array is fine.
        devices: the cards, two or more, each once.
        index: over these vectors; None for Flat. No part of it answers for a part of the rows: shards search
            by Flat, as a card does that has no such index.
        card: what is taken of each card, and `spread`. As replicas every card holds the bank and answers a
            part of the queries; as shards every card holds a contiguous range of the rows, and answers all queries
            among these. Where memories are fewer than cards, the last cards have none.

    Raises:
        BankError, DeviceError: see `MemoryBank`.
    """

    def __init__(
        self,
        vectors: NDArray[np.float32],
        devices: Sequence[torch.device],
        index: SearchIndex | None = None,
        *,
        card: CardSpec = CardSpec(),
    ) -> None:
        self.vectors = vectors
        self.card = card
        self._starts = [0]
        if card.spread == "replicas":
            self._banks = [MemoryBank(vectors, device, index, card=card) for device in devices]
            self.index = self._banks[0].index
        else:
            parts = max(1, min(len(devices), len(vectors)))
            bounds = [len(vectors) * part // parts for part in range(parts + 1)]
            self._banks = [
                MemoryBank(vectors[start:stop], device, card=card)
                for (start, stop), device in zip(pairwise(bounds), devices, strict=False)
            ]
            self._starts = bounds[:-1]
            self.index = index

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def device(self) -> torch.device:
        """The first card."""
        return self._banks[0].device

    @property
    def tensor(self) -> Tensor:
        """The vectors (M, D') float32 on the first card.

        Raises:
            DeviceError: it has a shard of them only. Training takes replicas: each step gathers memories.
        """
        return self._whole().tensor

    def with_index(self, index: SearchIndex) -> SpreadBank:
        """The same vectors under an index, see `MemoryBank.with_index`."""
        other = copy.copy(self)
        if self.card.spread == "replicas":
            other._banks = [bank.with_index(index) for bank in self._banks]
            index = other._banks[0].index or index
        other.index = index
        return other

    def as_flat(self) -> MemoryBank:
        """The first card's bank as Flat, see `MemoryBank.as_flat`. Raises DeviceError as `tensor` does."""
        return self._whole().as_flat()

    def with_half_products(self) -> SpreadBank:
        """This bank: cards search as they do, see `MemoryBank.with_half_products`."""
        return self

    def search(self, queries: Tensor, k: int, *, exact: bool = False) -> Neighbors:
        """The k nearest memories of (n, D') float32 queries, see `MemoryBank.search`.

        Shards' distances are exact always, since those of matrix products over other rows cannot be compared. Of
        memories as near as each other those of the first shard come first, and in a shard as its card gives them:
        on CPUs, where products have no rounding, the lowest row.

        Args:
            queries: on the first card.
            k: at most M.
            exact: as for `MemoryBank`.

        Raises:
            BankError: as for `MemoryBank`.
            CardMemoryError: the memory of one of them runs out.
        """
        check_queries(queries, k, self.vectors.shape)
        if self.card.spread == "shards":
            return self._ask_shards(queries, k)
        return self._ask_replicas(queries, k, exact)

    def _whole(self) -> MemoryBank:
        """The first card's, with all memories. Raises DeviceError for shards."""
        if self.card.spread == "shards":
            cards = ", ".join(str(bank.device) for bank in self._banks)
            raise DeviceError(
                expected="all memories on one card, which training gathers from",
                got=f"a bank in shards on {cards}",
                remedy="use --card-spread replicas, or train on one card",
            )
        return self._banks[0]

    def _ask_replicas(self, queries: Tensor, k: int, exact: bool) -> Neighbors:
        parts = queries.chunk(len(self._banks))  # of fewer queries than cards one each
        sq_distances, ids = self._answers(parts, [k] * len(parts), exact)
        return Neighbors(sq_distances=torch.cat(sq_distances), ids=torch.cat(ids))

    def _ask_shards(self, queries: Tensor, k: int) -> Neighbors:
        at_most = [min(k, len(bank)) for bank in self._banks]
        sq_distances, rows = self._answers([queries] * len(self._banks), at_most, exact=True)
        ids = torch.cat([part + start for part, start in zip(rows, self._starts, strict=True)], dim=1)
        merged, order = torch.cat(sq_distances, dim=1).sort(dim=1, stable=True)
        return Neighbors(
            sq_distances=merged[:, :k].contiguous(), ids=ids.gather(1, order[:, :k]).contiguous()
        )

    def _answers(
        self, parts: Sequence[Tensor], at_most: Sequence[int], exact: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Distances and rows of the first cards, on the first one: of a part of the queries and as many as k each."""
        banks = self._banks[: len(parts)]
        sent, found = [], []
        for bank, part in zip(banks, parts, strict=True):
            with _memory_of(bank, part):
                sent.append(part.to(bank.device, non_blocking=True))
        for bank, part, k in zip(banks, sent, at_most, strict=True):
            with _memory_of(bank, part):
                found.append(bank.search(part, k, exact=exact))
        sq_distances = [one.sq_distances.to(self.device, non_blocking=True) for one in found]
        return sq_distances, [one.ids.to(self.device, non_blocking=True) for one in found]


def _memory_of(bank: MemoryBank, queries: Tensor) -> AbstractContextManager[None]:
    """Where memory runs out, it is said on which card. Raises CardMemoryError."""
    return card_memory(bank.device, f"a search for {len(queries)} patches", lower=SMALLER_BATCH)


def bank_on(
    vectors: NDArray[np.float32],
    devices: Sequence[torch.device],
    index: SearchIndex | None = None,
    *,
    card: CardSpec = CardSpec(),
) -> Bank:
    """A bank on one device, or over several; see `MemoryBank` and `SpreadBank` for arguments and errors."""
    if len(devices) == 1:
        return MemoryBank(vectors, devices[0], index, card=card)
    return SpreadBank(vectors, devices, index, card=card)

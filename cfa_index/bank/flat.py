"""Exact search, on the host or on a card: here it is decided which."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.bank.card import CardFlat, CardHalf, card_of
from cfa_index.bank.exact import nearest_rows
from cfa_index.bank.half import HalfProducts
from cfa_index.bank.neighbors import not_finite
from cfa_index.card_memory import make_room
from cfa_index.footprint import memories_footprint
from cfa_index.specs import CardSpec

_MOST_HALVED = 1 << 28
"""Numbers in a bank, M * D', up to which a host holds it a second time in half precision: 512 MiB."""


class Flat(Protocol):
    """Every distance to M memories computed."""

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(n, k) squared distances, which a product may have made negative, and rows.

        For a query that is not finite the host raises a BankError; a card would have to be waited for.
        """

    def settled(self, queries: Tensor, sq_distances: Tensor) -> Tensor:
        """Distances that a search gave, not negative; on a card NaN for a query that is not finite."""

    def completed(self, queries: Tensor, ids: Tensor) -> Tensor:
        """Candidates (n, k) of another search with this one's in place of those that are missing or cannot be."""


class Candidates(Protocol):
    """About the nearest memories, more quickly."""

    def candidates(self, queries: Tensor, count: int) -> Tensor:
        """(n, count) int64 rows, in no order."""


class HostFlat:
    """Flat over vectors in memory or in a mapped file, (M, D') float32, which are held once."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self._vectors = vectors

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `Flat`."""
        sq_distances, ids = (
            torch.from_numpy(part) for part in nearest_rows(queries.numpy(), self._vectors, k)
        )
        # FAISS never returns a row for a NaN or infinite query: its heap keeps -1.
        if len(ids) and int(ids.min()) < 0:
            raise not_finite()
        return sq_distances, ids

    def settled(self, queries: Tensor, sq_distances: Tensor) -> Tensor:
        """See `Flat`."""
        del queries
        return sq_distances.clamp_min_(0)

    def completed(self, queries: Tensor, ids: Tensor) -> Tensor:
        """See `Flat`."""
        short = (ids < 0).any(dim=1)
        # Some indexes answer a NaN with any rows: an infinite sum is cheaper than looking at every number.
        short |= ~queries.sum(dim=1).isfinite()
        if bool(short.any()):
            again = short.nonzero()[:, 0]
            ids = ids.clone()
            ids[again] = self.search(queries[again], ids.shape[1])[1]
        return ids


def tensor_on(device: torch.device, vectors: NDArray[np.float32], spec: CardSpec) -> Tensor:
    """The vectors (M, D') on a device; on the CPU their own memory.

    Raises:
        DeviceError: FAISS sees no such card. torch would say so in its own words, or take a card without FAISS.
        CardMemoryError: there is no room for FAISS and for them beside what is on the card.
    """
    if device.type != "cpu":
        device = card_of(device, spec).device
        make_room(memories_footprint(*vectors.shape), device)
    return torch.from_numpy(vectors).to(device)


def flat_of(vectors: NDArray[np.float32], tensor: Tensor, spec: CardSpec) -> Flat:
    """Flat over vectors on the device of their tensor. Raises DeviceError where FAISS sees no such card."""
    if tensor.device.type == "cpu":
        return HostFlat(vectors)
    return CardFlat(tensor, card_of(tensor.device, spec))


def half_of(tensor: Tensor, spec: CardSpec, *, precise: bool) -> Candidates | None:
    """Half floats of (M, D') vectors to search first, where they are wanted.

    Args:
        tensor: the vectors, on their device.
        spec: whether a card keeps them.
        precise: whether the network's products are of float32; a host keeps half floats where they are not.
    """
    if tensor.device.type != "cpu":
        if spec.storage == "fp32":
            return None
        return CardHalf(tensor, card_of(tensor.device, spec))
    return None if precise or tensor.numel() > _MOST_HALVED else HalfProducts(tensor)

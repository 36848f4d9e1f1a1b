"""A card as FAISS uses it, and exact search there.

Queries and answers are torch tensors on the card: no search copies them to the host or waits for the card, and
each is ordered with torch's current stream.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Protocol

import torch
from torch import Tensor

from cfa_index.bank import faiss_gpu
from cfa_index.card_memory import make_room, memory_of
from cfa_index.errors import BankError, DeviceError
from cfa_index.footprint import LESS_TEMPORARY, Footprint, granted_bytes, half_footprint, search_buffers
from cfa_index.specs import CardSpec

MOST_SELECTED = 2048
"""Neighbours, and cells that are probed, that FAISS can select on a card (its getMaxKSelection)."""
_MOST_AT_ONCE = 1 << 20
"""Queries of a call of FAISS."""
ROUNDING_BYTES = 1 << 20
"""FAISS rounds each piece of its scratch memory up to 256 bytes."""
_BESIDE_BYTES = 64 << 20
"""Streams and cuBLAS, which FAISS makes at its first call; where they do not fit it ends the process."""
_LARGEST_HALF = 255.0
"""FAISS squares half floats in half floats, which end at 65,504."""


class Card:
    """A card with FAISS's one object of resources; see `card_of`.

    Raises:
        CardMemoryError: there is no room for what FAISS takes at its first call.
    """

    def __init__(self, device: torch.device, temporary_bytes: int) -> None:
        taken = Footprint.of(LESS_TEMPORARY, temporary_memory=temporary_bytes, beside_it=_BESIDE_BYTES)
        make_room(taken, device)
        self.device = device
        self.number = device.index or 0
        self.resources = faiss_gpu.make_resources(self.number, temporary_bytes)
        self.temporary_bytes = temporary_bytes
        self._turn = threading.RLock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Around every call of FAISS: the card is torch's current device, and no other thread calls.

        FAISS lets go of Python's lock, and two threads on one card end the process, even to read (FAISS #4525).
        Their streams are put in order by FAISS itself, when the stream of its resources is set.
        """
        with self._turn:
            if self.device.type == "cuda":
                with torch.cuda.device(self.number):  # "cuda" alone would leave the one that is current
                    yield
            else:
                yield

    def give(self, temporary_bytes: int) -> None:
        """See to it that FAISS has so much scratch memory; it never gets less."""
        with self.turn():
            if temporary_bytes > self.temporary_bytes:
                more = temporary_bytes - self.temporary_bytes
                make_room(Footprint.of(LESS_TEMPORARY, temporary_memory=more), self.device)
                try:
                    self.resources.setTempMemory(temporary_bytes)
                except RuntimeError:  # it has given back what it had, and the next search would crash
                    self.resources.setTempMemory(self.temporary_bytes)
                    raise
                self.temporary_bytes = temporary_bytes


@cache
def _holder(device: torch.device) -> list[Card]:
    """The one card of a process and device, once it is made. It outlives every index there, and each has memory."""
    del device
    return []


_MAKING = threading.Lock()


def card_of(device: torch.device, spec: CardSpec) -> Card:
    """The card behind a device, the first where it has no number, with a spec's scratch memory or what FAISS grants.

    Raises:
        DeviceError: FAISS sees no such card.
    """
    cards, number = faiss_gpu.gpu_count(), device.index or 0
    if number >= cards:
        raise DeviceError(
            expected=f"a FAISS that sees CUDA device {number}",
            got=f"one that sees {cards} of them",
            remedy="install faiss-gpu, or use --device cpu",
        )
    faiss_gpu.take_tensors()
    device = torch.device(
        device.type, number
    )  # "cuda" alone would be another card than "cuda:0", with its own memory
    # What FAISS would cut off silently would be missed in the middle of a search.
    memory = memory_of(device)
    asked = spec.temporary_bytes
    granted = asked if memory is None else granted_bytes(asked, memory[1])
    with _MAKING:
        held = _holder(device)
        if not held:
            held.append(Card(device, granted))
    held[0].give(granted)
    return held[0]


class CardSearch(Protocol):
    """What searches on a card."""

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(n, k) squared distances as FAISS gives them, and rows, none of them missing for a finite query.

        Raises:
            BankError: k is more than FAISS can select on a card.
        """


class CardFlat:
    """Every distance to M memories on a card computed, by FAISS's brute force over the tensor itself.

    Args:
        vectors: (M, D') float32 on the card, contiguous.
        card: theirs.
    """

    def __init__(self, vectors: Tensor, card: Card) -> None:
        self._vectors = vectors
        self._sq_norms = torch.linalg.vector_norm(vectors, dim=1).square_()
        self._card = card

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `CardSearch`."""
        require_selectable(k)
        room = flat_queries(self._card.temporary_bytes, *self._vectors.shape, k, half_floats=False)

        def found(part: Tensor) -> tuple[Tensor, Tensor]:
            resources = self._card.resources
            return faiss_gpu.brute_force(resources, part, self._vectors, self._sq_norms, k)

        sq_distances, ids = in_parts(queries, k, room, self._card, found)
        return sq_distances, self.completed(queries, ids)

    def settled(self, queries: Tensor, sq_distances: Tensor) -> Tensor:
        """Not negative, and NaN for a query that is not finite: FAISS may give any number for it."""
        odd = ~queries.sum(dim=1, keepdim=True).isfinite()
        return sq_distances.clamp_min_(0).masked_fill_(odd, torch.nan)

    def completed(self, queries: Tensor, ids: Tensor) -> Tensor:
        """Rows that exist: for a query that is not finite FAISS gives -1, or any row.

        torch ends the use of a card, for good, where a row that does not exist is gathered.
        """
        del queries
        return ids.clamp(0, len(self._vectors) - 1)


class CardHalf:
    """M memories as half floats on a card.

    Args:
        vectors: (M, D') float32 on the card, contiguous; they are copied.
        card: theirs.

    Raises:
        BankError: values are too large for half floats.
        CardMemoryError: there is no room for them.
    """

    def __init__(self, vectors: Tensor, card: Card) -> None:
        largest = max(abs(float(bound)) for bound in vectors.aminmax())
        if largest >= _LARGEST_HALF:
            raise BankError(
                expected=f"memories below {_LARGEST_HALF:g}, whose squares are half floats, too",
                got=f"one of {largest:g}",
                remedy="leave out --card-storage fp16, or build with standardised features",
            )
        make_room(half_footprint(*vectors.shape), card.device)
        self._shape = vectors.shape
        self._card = card
        with card.turn():
            self._index = faiss_gpu.half_flat(card.resources, vectors)

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `CardSearch`; the distances are those of rounded memories."""
        require_selectable(k)
        room = flat_queries(self._card.temporary_bytes, *self._shape, k, half_floats=True)
        return in_parts(queries, k, room, self._card, lambda part: faiss_gpu.search(self._index, part, k))

    def candidates(self, queries: Tensor, count: int) -> Tensor:
        """(n, count) rows of about the nearest memories, as `HalfProducts` gives them on the CPU."""
        return self.search(queries, count)[1]


@lru_cache(maxsize=256)
def flat_queries(temporary_bytes: int, count: int, width: int, k: int, *, half_floats: bool) -> int:
    """Queries that a search through (M, D') vectors can take at once within FAISS's scratch memory, at least 1.

    What does not fit FAISS takes from the card and gives back in each call, and giving back waits for all that
    the card has under way (StandardGpuResources.cpp).
    """

    def fits(queries: int) -> bool:
        buffers = search_buffers(queries, count, width, k, half_floats=half_floats)
        return sum(buffers) + ROUNDING_BYTES <= temporary_bytes

    return most_queries(fits)


def most_queries(fits: Callable[[int], bool]) -> int:
    """The most queries that fit, at least 1."""
    return max(1, bisect_left(range(1, _MOST_AT_ONCE), True, key=lambda queries: not fits(queries)))


def in_parts(
    queries: Tensor, k: int, room: int, card: Card, search: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Search for (n, D') float32 queries on a card, `room` at a time. Raises BankError for others.

    FAISS would take queries of another device for the host's, or copy them without order; and torch_utils refuses
    all but plain tensors by an `assert`.
    """
    at = queries.device
    if (at.type, at.index or 0, queries.dtype) != (card.device.type, card.number, torch.float32):
        raise BankError(
            expected=f"float32 queries on {card.device}",
            got=f"{queries.dtype} on {at}",
            remedy="move them to the bank's device",
        )
    if not len(queries):
        return queries.new_empty((0, k)), queries.new_empty((0, k), dtype=torch.int64)
    with card.turn():
        found = [search(part) for part in torch.split(queries.detach().contiguous(), room)]
    if len(found) == 1:
        return found[0]
    return torch.cat([part[0] for part in found]), torch.cat([part[1] for part in found])


def require_selectable(count: int, things: str = "neighbours") -> None:
    """Raise a BankError where FAISS cannot select so many on a card: it would end the process."""
    if count > MOST_SELECTED:
        raise BankError(
            expected=f"at most {MOST_SELECTED} {things}, which is what FAISS selects on a card",
            got=str(count),
            remedy="ask for fewer neighbours, or use --device cpu",
        )

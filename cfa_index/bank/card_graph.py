"""A CAGRA graph on a card, with the vectors that it is walked by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cfa_index.bank import cuvs
from cfa_index.bank.card import Card, CardFlat, in_parts
from cfa_index.card_memory import make_room
from cfa_index.footprint import OTHER_INDEX, Footprint

_MOST_FOUND = 1024
"""The longest list of candidates that cuVS keeps in one block of threads."""
_WIDTH_STEP = 32
_MOST_AT_ONCE = 1 << 15
"""Queries; a card has a limit of 65,535 blocks in this direction."""


class CardGraph:
    """A CAGRA graph on a card.

    Args:
        rows: (M, d) float32 on the card; held, and not copied where d is a multiple of 4.
        lists: (M, degree) uint32, rows of `rows`.
        card: theirs.

    Attributes:
        width: candidates that a walk keeps, efSearch of an HNSW: more find more, and take longer.

    Raises:
        CardMemoryError: there is no room for the lists.
        DeviceError: cuVS is not installed, or refuses them.
    """

    def __init__(self, rows: Tensor, lists: NDArray[np.uint32], card: Card) -> None:
        cuvs.require_cuvs()
        self.width = 0
        self._card = card
        make_room(graph_footprint(rows.shape, lists.shape[1]), card.device)
        self._rows = aligned(rows)
        self._lists = torch.from_numpy(lists.view(np.int32)).to(rows.device)
        self._flat = CardFlat(self._rows, card)
        with card.turn():
            self._graph = cuvs.join_graph(self._rows, self._lists)

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `CardSearch`. More than a walk keeps are found by computing every distance."""
        if k > _MOST_FOUND:
            return self._flat.search(aligned(queries), k)
        width = walk_width(k, self.width)

        def found(part: Tensor) -> tuple[Tensor, Tensor]:
            sq_distances, ids = cuvs.walk(self._graph, part, k, width)
            return sq_distances, completed(ids.long(), len(self._rows))

        return in_parts(aligned(queries), k, _MOST_AT_ONCE, self._card, found)


def graph_footprint(shape: Sequence[int], degree: int) -> Footprint:
    """What a graph over (M, d) vectors on a card takes beside them."""
    count, d = shape
    copied = count * padded_width(d) * 4 if padded_width(d) != d else 0
    return Footprint.of(OTHER_INDEX, graph=4 * count * (degree + 1), padded_vectors=copied)


def build_on_card(
    parts: Iterable[NDArray[np.float32]], count: int, degree: int, card: Card
) -> NDArray[np.uint32]:
    """Neighbour lists found on a card, where the vectors are put together for it.

    Args:
        parts: (M, d) float32 vectors, one part after the other.
        count: M.
        degree: of the graph.
        card: where.

    Returns:
        (M, degree) uint32.

    Raises:
        CardMemoryError: there is no room for vectors and lists.
        DeviceError: cuVS is not installed, or fails.
    """
    cuvs.require_cuvs()
    rows: Tensor | None = None
    start = 0
    for part in parts:
        if rows is None:
            width = padded_width(part.shape[1])
            sizes = {"vectors": 4 * count * width, "graph": 4 * count * degree}
            make_room(Footprint.of(OTHER_INDEX, **sizes), card.device)
            rows = torch.zeros((count, width), dtype=torch.float32, device=card.device)
        given = part if part.flags.writeable else part.copy()  # torch would warn
        rows[start : start + len(part), : part.shape[1]].copy_(torch.from_numpy(given))
        start += len(part)
    assert rows is not None
    with card.turn():
        return cuvs.build_lists(rows, degree)


def walk_width(k: int, width: int) -> int:
    """The list of candidates that cuVS keeps: a multiple of 32, no shorter than k or longer than it can be."""
    return -(-max(k, min(width, _MOST_FOUND)) // _WIDTH_STEP) * _WIDTH_STEP


def aligned(rows: Tensor) -> Tensor:
    """Contiguous (n, d), with zeros up to a multiple of 16 bytes a row, which leave distances what they are."""
    missing = padded_width(rows.shape[1]) - rows.shape[1]
    return F.pad(rows, (0, missing)) if missing else rows.contiguous()


def padded_width(d: int) -> int:
    """The next multiple of 4: cuVS refuses rows of float32 that do not begin at multiples of 16 bytes."""
    return -(-d // 4) * 4


def completed(ids: Tensor, count: int) -> Tensor:
    """(n, k) rows of `count` with the lowest that a query has not got in place of those that are none.

    A walk that ends early would leave a query short, and which one the host cannot know without waiting. Any other
    memory is as good as none: its distance is computed like all others.
    """
    k = ids.shape[1]
    low = min(2 * k, count)  # k of them are taken at most
    missing = (ids < 0) | (ids >= count)
    taken = torch.zeros((len(ids), low + 1), dtype=torch.bool, device=ids.device)
    taken.scatter_(1, torch.where(missing | (ids >= low), low, ids), True)
    free = taken[:, :low].to(torch.uint8).argsort(dim=1, stable=True)  # those not taken first, ascending
    return torch.where(missing, free.gather(1, (missing.cumsum(dim=1) - 1).clamp_min_(0)), ids)

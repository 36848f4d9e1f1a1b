"""A CAGRA graph on the host: FAISS's HNSW index whose lowest level cuVS can walk on a card.

CAGRA (arXiv 2308.15136) is one level of neighbour lists, all equally long. FAISS's `IndexHNSWCagra` keeps them as the
lowest level of an HNSW and writes them as any index, so a graph goes from a card into a file and back, and the CPU
walks what the card built. FAISS built with cuVS does this itself (`GpuIndexCagra::copyTo`); its wheel cannot be
installed beside torch's (docs/cagra.md), so it is done here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from cfa_index.errors import BankError

CAGRA_DEGREE = 64
"""Neighbours of a memory, as many as the lowest level of HNSW32 has."""
FEWEST_FOR_CAGRA = 1024
"""Memories below which a walk has nothing to gain. FAISS's own conversion never ended for 3 or 4 (#4260)."""
_FACTORY = re.compile(r"(?:PCA(\d{1,4}),)?CAGRA(\d{1,3})")


def cagra_index(d: int, factory: str) -> Any:
    """FAISS's empty index for `CAGRA64` or `PCA128,CAGRA64`, which FAISS's own factory has no string for.

    Args:
        d: D', width of the vectors.
        factory: any factory string.

    Returns:
        None where the string is another index's.

    Raises:
        BankError: a graph of odd degree or none, or more directions than the vectors have.
    """
    match = _FACTORY.fullmatch(factory)
    if match is None:
        return None
    width, degree = int(match[1] or d), int(match[2])
    if degree < 4 or degree % 2 or not 0 < width <= d:
        raise BankError(
            expected=f"an even degree of 4 or more, and at most {d} directions",
            got=repr(factory),
            remedy=f"use cagra, or CAGRA{CAGRA_DEGREE}",
        )
    graph = faiss.IndexHNSWCagra(width, degree // 2, faiss.METRIC_L2)
    if not match[1]:
        return graph
    turn = faiss.PCAMatrix(d, width)
    turned = faiss.IndexPreTransform(turn, graph)
    turned.own_fields = True  # it frees both, so Python must not
    for owned in (turn, graph):
        owned.this.disown()
    return turned


def cagra_of(index: Any) -> Any:
    """The `IndexHNSWCagra` inside an index, behind its rotation if it has one; None where there is none."""
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    return inner if isinstance(inner, faiss.IndexHNSWCagra) else None


def degree_of(index: Any) -> int:
    """Neighbours of a memory in the graph of an index; 0 where there is none."""
    graph = cagra_of(index)
    return 0 if graph is None else int(graph.hnsw.nb_neighbors(0))


def before_graph(index: Any, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, p) float32 that a graph is over, of (n, d) vectors of the index."""
    if not isinstance(index, faiss.IndexPreTransform):
        return vectors
    turned: NDArray[np.float32] = faiss.downcast_VectorTransform(index.chain.at(0)).apply(vectors)
    return turned


def neighbor_lists(graph: Any) -> NDArray[np.uint32]:
    """The lowest level of a graph, (M, degree) uint32 rows, as cuVS takes it.

    FAISS may leave the end of a list empty. There the first neighbour stands again, which a walk passes over as
    visited; cuVS wants lists of one length.
    """
    lists = faiss.vector_to_array(graph.hnsw.neighbors)[_places(graph.hnsw)]
    first = np.where(lists[:, :1] < 0, np.arange(len(lists))[:, None], lists[:, :1])
    filled: NDArray[np.uint32] = np.where(lists < 0, first, lists).astype(np.uint32)
    return filled


def fill_graph(index: Any, parts: Iterable[NDArray[np.float32]], lists: NDArray[np.uint32]) -> None:
    """Put vectors and their neighbour lists into an empty index; the levels above are FAISS's to find.

    Args:
        index: `cagra_index` of the lists' degree, trained.
        parts: the vectors, (M, D') float32 one after the other.
        lists: (M, degree) uint32, rows of the vectors.
    """
    graph = cagra_of(index)
    graph.init_level0 = False  # one memory in 32 is on a level above, and those alone are searched for
    try:
        for part in parts:
            index.add(part)
    finally:
        graph.init_level0 = True
    hnsw = graph.hnsw
    held: NDArray[np.int32] = faiss.rev_swig_ptr(hnsw.neighbors.data(), hnsw.neighbors.size())
    held[_places(hnsw)] = lists.astype(np.int32)
    if hnsw.entry_point < 0:  # no memory drew a level above
        hnsw.entry_point, hnsw.max_level = 0, 0


def _places(hnsw: Any) -> NDArray[np.int64]:
    """(M, degree) where each list of the lowest level stands in FAISS's one array of all."""
    starts = faiss.vector_to_array(hnsw.offsets)[:-1].astype(np.int64)
    places: NDArray[np.int64] = starts[:, None] + np.arange(hnsw.nb_neighbors(0))
    return places

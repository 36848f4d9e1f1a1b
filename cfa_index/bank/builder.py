"""Training and filling a FAISS index from vectors that may be larger than memory.

The vectors are read block by block, from a mapped file where they are one. What is held is a sample to train
on, a block, and the index; inverted lists that would not fit the budget go to disk, shard by shard, and are
merged there into one file, which is mapped afterwards.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from cfa_index.bank.cagra import before_graph, cagra_index, degree_of, fill_graph
from cfa_index.bank.card import Card
from cfa_index.bank.card_graph import build_on_card
from cfa_index.bank.threads import shared_threads
from cfa_index.errors import BankError
from cfa_index.files import writing

LISTS_FILE = "index.ivfdata"
"""Inverted lists on disk, beside the index's own file."""
LISTS_BYTES = 1 << 30
"""Inverted lists that may be held in memory while an index is built."""
_TRAINING_ROWS = 65_536
_ROWS_PER_CELL = 64
"""More points for k-means move its centres little (FAISS's own most is 256)."""
_BLOCK_BYTES = 64 << 20
"""Vectors that are read and added at once."""
_EF_CONSTRUCTION = 80
_ID_BYTES = 8
_NO_GRAPH = re.compile(r"(HNSW|NSG|NNDescent)(-|[01](?!\d))")
"""FAISS ends the process on these."""
_PLACE = re.compile(r"^Error in .*? at \S+:\d+: (?:Error: )?")
"""In front of what FAISS says: a signature and a line of C++, which may take all of a short message."""


class BuiltIndex:
    """An index of FAISS's, and the temporary folder of its lists where they are on disk; it goes with this.

    Attributes:
        index: of FAISS.
        lists: the file of its inverted lists; None where they are in memory, or mapped from a model.
    """

    def __init__(self, index: Any, scratch: Path | None = None) -> None:
        self.index = index
        self.lists = None if scratch is None else scratch / LISTS_FILE
        if scratch is not None:
            weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)


@shared_threads()
def build_faiss(
    vectors: NDArray[np.float32],
    factory: str,
    *,
    seed: int,
    budget_bytes: int = LISTS_BYTES,
    scratch_dir: Path | None = None,
    card: Card | None = None,
    advance: Callable[[int], None] | None = None,
) -> BuiltIndex:
    """Train an index on a sample of (M, d) float32 vectors and fill it.

    Args:
        vectors: may be memory mapped.
        factory: FAISS's factory string.
        seed: of the sample and of k-means.
        budget_bytes: inverted lists (but those of fast scan) larger than this go to disk, in shards of this
            size; a training sample beyond 65,536 vectors is no larger, either.
        scratch_dir: where a temporary folder for them is made; None for the system's.
        card: where the neighbour lists of a CAGRA graph are found; None for the CPU.
        advance: told of rows added.

    Raises:
        BankError: FAISS does not know the factory string, or cannot make it of these vectors.
        DeviceError: cuVS is not installed, or fails.
        OutputError: there is no room for the lists.
    """
    count, d = vectors.shape
    if _NO_GRAPH.search(factory):
        raise BankError(
            expected="a graph of at least 2 neighbours",
            got=repr(factory),
            remedy="use hnsw, or HNSW32,Flat",
        )
    try:
        index = cagra_index(d, factory) or faiss.index_factory(d, factory, faiss.METRIC_L2)
    except RuntimeError as error:
        raise BankError(
            expected="a FAISS factory string",
            got=f"{factory!r} ({last_line(error)})",
            remedy="use a short name such as ivf-pq, or correct the string",
        ) from error
    ivf = ivf_of(index)
    if ivf is not None:
        ivf.cp.seed = seed
        ivf.cp.min_points_per_centroid = 1  # a small bank has fewer than FAISS would like: no warning
        if hasattr(ivf, "pq"):
            ivf.pq.cp.min_points_per_centroid = 1
    graph = graph_of(index)
    if graph is not None:
        graph.hnsw.efConstruction = _EF_CONSTRUCTION
    per_cell = _ROWS_PER_CELL * (ivf.nlist if ivf is not None else 0)
    rows = max(_TRAINING_ROWS, min(per_cell, budget_bytes // (4 * d)))
    with _refusals(factory, vectors.shape):
        if not index.is_trained:
            index.train(_sample(vectors, rows, seed))
        if ivf is not None and _lists_bytes(ivf, count) > budget_bytes:
            return _on_disk(index, vectors, budget_bytes, scratch_dir, advance)
    lists = None if card is None else _lists_on_card(index, vectors, card)
    with _refusals(factory, vectors.shape):
        parts = _told(blocks(vectors), advance)
        if lists is not None:
            fill_graph(index, parts, lists)
        for part in parts:
            index.add(part)
    return BuiltIndex(index)


@contextmanager
def _refusals(factory: str, shape: tuple[int, ...]) -> Iterator[None]:
    """What FAISS does not make of (M, d) vectors, as a BankError."""
    try:
        yield
    except RuntimeError as error:
        raise BankError(
            expected=f"to make {factory!r} of {shape[0]} memories of {shape[1]} dimensions",
            got=last_line(error),
            remedy="choose an index with fewer cells or codes, or a larger bank",
        ) from error


def _lists_on_card(index: Any, vectors: NDArray[np.float32], card: Card) -> NDArray[np.uint32] | None:
    """The neighbour lists of a CAGRA graph; None for another index, or too few vectors to choose among."""
    degree = degree_of(index)
    if not 0 < 2 * degree < len(vectors):
        return None
    rows = (before_graph(index, block) for block in blocks(vectors))
    return build_on_card(rows, len(vectors), degree, card)


def _on_disk(
    index: Any,
    vectors: NDArray[np.float32],
    budget_bytes: int,
    scratch_dir: Path | None,
    advance: Callable[[int], None] | None,
) -> BuiltIndex:
    """Fill a trained index whose lists are put together on disk from shards of at most `budget_bytes`."""
    ivf = ivf_of(index)
    shard_rows = max(1, budget_bytes // (ivf.code_size + _ID_BYTES))
    with ExitStack() as undo, writing(Path(scratch_dir or tempfile.gettempdir())):
        folder = Path(tempfile.mkdtemp(prefix="cfa-index-", dir=scratch_dir))
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        parts: list[Path] = []
        for start in range(0, len(vectors), shard_rows):
            shard, row = faiss.clone_index(index), start
            for block in blocks(vectors[start : start + shard_rows]):
                shard.add_with_ids(block, np.arange(row, row + len(block)))
                row += len(block)
                if advance is not None:
                    advance(len(block))
            part = folder / f"{len(parts)}.faiss"
            write_faiss(shard, part)
            del shard
            parts.append(part)
        # Mapped: the lists of all shards are read while the merged file is written, none is held.
        shards = [faiss.read_index(str(part), faiss.IO_FLAG_MMAP) for part in parts]
        ivf.replace_invlists(_merged([ivf_of(shard).invlists for shard in shards], folder / LISTS_FILE), True)
        ivf.ntotal = index.ntotal = len(vectors)
        del shards
        for part in parts:
            part.unlink()
        undo.pop_all()
    return BuiltIndex(index, folder)


def _merged(shards: Sequence[Any], path: Path) -> Any:
    """The inverted lists of shards one after the other in a file, which is mapped.

    FAISS's own merge prints to standard output, and a disk that is full would end the process: here the space
    is taken before anything is written into it. A list is its codes, then its ids; see `OnDiskInvertedLists`.
    """
    nlist, code_size = shards[0].nlist, shards[0].code_size
    sizes = np.array([[part.list_size(cell) for part in shards] for cell in range(nlist)], dtype=np.uint64)
    per_list = sizes.sum(axis=1)
    total = int(per_list.sum()) * (code_size + _ID_BYTES)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, total)
        for cell in range(nlist):
            for read, width in (("get_codes", code_size), ("get_ids", _ID_BYTES)):
                for part, size in zip(shards, sizes[cell].tolist(), strict=True):
                    if size:
                        pointer = getattr(part, read)(cell)
                        entries = size * width if read == "get_codes" else size
                        file.write(faiss.rev_swig_ptr(pointer, entries).data)
    merged = faiss.OnDiskInvertedLists()
    merged.nlist, merged.code_size = nlist, code_size
    merged.filename, merged.totsize, merged.read_only = str(path), total, True
    merged.lists.resize(nlist)
    merged.set_all_lists_sizes(faiss.swig_ptr(per_list))
    merged.do_mmap()
    merged.this.disown()
    return merged


def write_faiss(index: Any, path: Path) -> None:
    """FAISS's file. It says of a disk that is full what it says of a bad index: here that is an OSError."""
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        reason = _PLACE.sub("", str(error).strip()).rpartition(f"{path}: ")[2]
        raise OSError(None, reason) from error


def lists_on_disk(index: Any) -> Any:
    """The inverted lists of an index where they are a file of their own, or None."""
    ivf = ivf_of(index)
    if ivf is None:
        return None
    lists = faiss.downcast_InvertedLists(ivf.invlists)
    return lists if isinstance(lists, faiss.OnDiskInvertedLists) else None


def ivf_of(index: Any) -> Any:
    """The inverted-file index inside, or None."""
    found = faiss.try_extract_index_ivf(index)
    return None if found is None else faiss.downcast_index(found)


def graph_of(index: Any) -> Any:
    """The HNSW index inside, or None."""
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    return inner if isinstance(inner, faiss.IndexHNSW) else None


def last_line(error: Exception) -> str:
    """What FAISS says, without its place in C++."""
    text = str(error).strip()
    if not text:
        return type(error).__name__
    return _PLACE.sub("", text.splitlines()[-1])[:200]


def _lists_bytes(ivf: Any, count: int) -> int:
    """What the lists of an index would hold for `count` vectors; 0 for fast scan's, which have no file."""
    if not isinstance(faiss.downcast_InvertedLists(ivf.invlists), faiss.ArrayInvertedLists):
        return 0
    return int(count * (ivf.code_size + _ID_BYTES))


def blocks(vectors: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """(M, d) vectors in parts of at most `_BLOCK_BYTES`, in order; of a mapped file no more is read at once."""
    rows = max(1, _BLOCK_BYTES // (4 * vectors.shape[1]))
    for start in range(0, len(vectors), rows):
        yield np.ascontiguousarray(vectors[start : start + rows])


def _told(
    parts: Iterator[NDArray[np.float32]], advance: Callable[[int], None] | None
) -> Iterator[NDArray[np.float32]]:
    """Parts as they come; of each that has been dealt with `advance` is told."""
    for part in parts:
        yield part
        if advance is not None:
            advance(len(part))


def _sample(vectors: NDArray[np.float32], rows: int, seed: int) -> NDArray[np.float32]:
    """At most `rows` of the vectors, drawn evenly; read in order, so that a mapped file is read forwards."""
    if len(vectors) <= rows:
        return np.ascontiguousarray(vectors)
    drawn = np.random.default_rng(seed).choice(len(vectors), size=rows, replace=False)
    return np.ascontiguousarray(vectors[np.sort(drawn)])

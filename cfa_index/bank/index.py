"""FAISS indexes over a bank's vectors, on the CPU or on a card."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.bank.builder import (
    LISTS_FILE,
    BuiltIndex,
    blocks,
    build_faiss,
    graph_of,
    ivf_of,
    last_line,
    lists_on_disk,
    write_faiss,
)
from cfa_index.bank.card import MOST_SELECTED, card_of
from cfa_index.bank.card_index import CardIndex, index_on_card
from cfa_index.bank.exact import matrix_products
from cfa_index.bank.named_files import named_files
from cfa_index.bank.state import IndexState
from cfa_index.bank.threads import shared_threads
from cfa_index.card_memory import card_memory
from cfa_index.errors import BankError
from cfa_index.footprint import OTHER_INDEX
from cfa_index.specs import CardSpec


@dataclass
class _Tuned:
    """What an index and its copies on cards have in common."""

    state: IndexState


class SearchIndex:
    """A FAISS index that names candidates; `MemoryBank` computes their distances exactly.

    Attributes:
        device: where it searches.
    """

    def __init__(
        self,
        built: BuiltIndex,
        state: IndexState,
        *,
        file: Path | None = None,
    ) -> None:
        self.device = torch.device("cpu")
        self._tuned = _Tuned(state)
        self._built = built  # with the scratch folder that its lists may be in
        self._index = built.index
        self._on_card: CardIndex | None = None
        self._file = file

    @property
    def state(self) -> IndexState:
        """How it was built and tuned."""
        return self._tuned.state

    @state.setter
    def state(self, state: IndexState) -> None:
        self._tuned.state = state

    @property
    def count(self) -> int:
        """M."""
        return int(self._index.ntotal)

    @property
    def width(self) -> int:
        """D'."""
        return int(self._index.d)

    @shared_threads()
    def candidates(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k memories that seem nearest.

        Args:
            queries: (n, D') float32 on the index's device.
            k: at most M.

        Returns:
            (n, k) float32 squared distances as FAISS gives them, which may be those of shortened or rounded
            vectors, and (n, k) int64 rows; -1 where it found fewer, or the query is not finite.
        """
        if self._on_card is not None:
            return self._on_card.search(queries, k, self.state.parameters)
        with matrix_products():
            found = self._index.search(queries.contiguous().numpy(), k)
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])

    def tuned(self, parameters: Mapping[str, int], shortlist: int) -> Self:
        """This index with other parameters of its searches; they are set on the index itself."""
        set_parameters(self._index, parameters)
        self.state = replace(self.state, parameters=dict(parameters), shortlist=shortlist)
        return self

    def resident_bytes(self) -> int:
        """Bytes of the index as it would be written, which is what it holds in memory."""
        if self._file is not None:  # what is mapped from it, FAISS would leave out
            return self._file.stat().st_size
        total = 0

        def count(part: bytes) -> None:
            nonlocal total
            total += len(part)

        faiss.write_index(self._index, faiss.PyCallbackIOWriter(count))
        return total

    @property
    def lists(self) -> Path | None:
        """The file of the inverted lists, where they have one; it belongs beside the index's own."""
        beside = self._file.with_name(LISTS_FILE) if self._file else self._built.lists
        return beside if beside is not None and beside.exists() else None

    def write(self, path: Path) -> None:
        """Write FAISS's file, without `lists`: of the index on the CPU, which a card has a copy of.

        Raises:
            OSError: the disk is full or read-only.
        """
        if self._file is not None:  # its lists are mapped from there, and FAISS would write that path
            shutil.copyfile(self._file, path)
            return
        index = self._index
        on_disk = lists_on_disk(index)
        if on_disk is None:
            write_faiss(index, path)
            return
        mapped_from = on_disk.filename
        on_disk.filename = LISTS_FILE  # a reader takes the file of this name beside the index, no other
        try:
            write_faiss(index, path)
        finally:
            on_disk.filename = mapped_from

    @property
    def faiss_index(self) -> Any:
        """FAISS's own object, on the CPU."""
        return self._index

    def to(self, vectors: Tensor, card: CardSpec) -> SearchIndex:
        """This index on the device of its vectors; on the CPU, still, where FAISS has none of its kind on a card.

        The two have one state: what is tuned or measured of one holds for the other.

        Args:
            vectors: (M, D') float32, what it was made of.
            card: what may be taken of a card.

        Raises:
            DeviceError: FAISS sees no such card.
            CardMemoryError: there is no room for it.
        """
        if vectors.device == self.device:
            return self
        other = copy.copy(self)
        other.device, other._on_card = torch.device("cpu"), None
        if vectors.device.type != "cpu":
            with card_memory(vectors.device, "the index", lower=OTHER_INDEX):
                on = card_of(vectors.device, card)
                other._on_card = index_on_card(self._index, vectors, on, card.storage)
        if other._on_card is not None:
            other.device = vectors.device
        return other


def read_faiss(path: Path, state: IndexState, shape: tuple[int, int]) -> SearchIndex:
    """An index from its file, inverted lists memory mapped; its checksum has to be known to be right.

    Raises:
        BankError: it is no index, or one over vectors of another shape (M, d).
    """
    index = _read(path)
    if (index.ntotal, index.d) != shape:
        raise BankError(
            expected=f"an index over {shape[0]} x {shape[1]} vectors in {path}",
            got=f"{index.ntotal} x {index.d}",
            remedy="load the model with --rebuild-index",
        )
    set_parameters(index, state.parameters)
    return SearchIndex(BuiltIndex(index), state, file=path)


def changed_faiss(
    path: Path, state: IndexState, vectors: NDArray[np.float32], *, kept: int, seed: int
) -> SearchIndex:
    """The index of a file, as it was trained, over other vectors; the file stays as it is.

    Args:
        path: of the file; its checksum has to be known to be right.
        state: of the index in it.
        vectors: (M, d) float32, what it is to hold.
        kept: how many rows at the beginning it holds already, in their order; 0 to fill it anew.
        seed: for an index whose lists are too large to be held, which is built again.

    Raises:
        BankError: it is no index, or cannot take the vectors.
    """
    mapped = _read(path)  # kept: its lists are its own
    lists = lists_on_disk(mapped)
    if lists is not None and lists.filename == str(path.with_name(LISTS_FILE)):
        built = build_faiss(vectors, state.factory, seed=seed)
    else:
        index = faiss.read_index(str(path))  # in memory, to be changed
        if not kept:
            index.reset()
        for block in blocks(vectors[kept:]):
            index.add(block)
        built = BuiltIndex(index)
    set_parameters(built.index, state.parameters)
    return SearchIndex(built, state)


def _read(path: Path) -> Any:
    """FAISS's object from its file, its inverted lists mapped: from the file, or from `LISTS_FILE` beside it.

    A path stored inside is never followed: an index that names any other file is refused before FAISS sees it.
    FAISS leaves the index's own lists alone when it maps; they are opened here.
    """
    try:
        names = named_files(path)
        if names not in ([], [LISTS_FILE]):
            raise _other_lists(path, names)
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except (OSError, RuntimeError) as error:
        raise BankError(
            expected=f"a FAISS index in {path}",
            got=last_line(error),
            remedy="load the model with --rebuild-index",
        ) from error
    if not names:  # its lists are in memory, or mapped from the index's own file
        return index
    on_disk, beside = lists_on_disk(index), path.with_name(LISTS_FILE)
    if on_disk is None or on_disk.filename != LISTS_FILE:  # something nested in it has lists on disk
        raise _other_lists(path, names)
    if not beside.exists() or beside.stat().st_size != on_disk.totsize:
        raise _other_lists(path, [f"{LISTS_FILE} of {on_disk.totsize} bytes"])
    on_disk.filename, on_disk.read_only = str(beside), True
    on_disk.do_mmap()
    return index


def _other_lists(path: Path, names: list[str]) -> BankError:
    return BankError(
        expected=f"an index whose lists are in {LISTS_FILE} beside {path}, whole",
        got=f"one that names {', '.join(map(repr, names))}",
        remedy="load the model with --rebuild-index",
    )


def set_parameters(index: Any, parameters: Mapping[str, int]) -> None:
    """Set FAISS's parameters of a search by name.

    Raises:
        BankError: the index has no such parameter.
    """
    space = faiss.ParameterSpace()
    for name, value in parameters.items():
        try:
            space.set_index_parameter(index, name, value)
        except RuntimeError as error:
            raise BankError(
                expected=f"an index with the parameter {name}",
                got=last_line(error),
                remedy="load the model with --rebuild-index",
            ) from error


def tunable(index: Any, *, on_card: bool = False) -> dict[str, int]:
    """What can be tuned in an index, and the most that makes sense: `nprobe`, `efSearch`, or nothing."""
    if ivf_of(index) is not None:
        cells = int(ivf_of(index).nlist)
        return {"nprobe": min(cells, MOST_SELECTED) if on_card else cells}
    if graph_of(index) is not None:
        return {"efSearch": 1024}
    return {}


def faiss_version() -> str:
    """Version of the installed FAISS."""
    return str(faiss.__version__)

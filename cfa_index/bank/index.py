"""FAISS indexes over a bank's vectors, on the CPU or on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.bank.exact import matrix_products
from cfa_index.bank.state import IndexState
from cfa_index.bank.threads import shared_threads
from cfa_index.errors import BankError, DeviceError

_GPU_TEMPORARY_BYTES = 256 << 20
"""FAISS would take up to 1.5 GiB a card for itself, in competition with torch's cache."""
_TRAINING_ROWS = 65_536
_ROWS_PER_CELL = 64
"""More points for k-means move its centres little (FAISS's own most is 256)."""
_ADD_ROWS = 65_536
_EF_CONSTRUCTION = 80


class SearchIndex:
    """A FAISS index that names candidates; `MemoryBank` computes their distances exactly.

    Not safe for two threads on a GPU, even to read (FAISS #4525).

    Attributes:
        device: where it lives.
        state: how it was built and tuned.
    """

    def __init__(
        self, index: Any, state: IndexState, device: torch.device, host: SearchIndex | None = None
    ) -> None:
        self.device = device
        self.state = state
        self._index = index
        self._host = host or self

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
        if self.device.type == "cuda":
            # Importing it teaches FAISS's classes to take torch tensors, on torch's current stream.
            import faiss.contrib.torch_utils  # noqa: F401

            with torch.cuda.device(self.device):
                sq_distances, ids = self._index.search(queries.contiguous(), k)
            return sq_distances, ids
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
        total = 0

        def count(part: bytes) -> None:
            nonlocal total
            total += len(part)

        faiss.write_index(self._index, faiss.PyCallbackIOWriter(count))
        return total

    def write(self, path: Path) -> None:
        """Write FAISS's file. Of an index on a GPU it is the one that was moved there."""
        faiss.write_index(self._host.faiss_index, str(path))

    @property
    def faiss_index(self) -> Any:
        """FAISS's own object."""
        return self._index

    def to(self, device: torch.device) -> SearchIndex:
        """This index on a device.

        Raises:
            DeviceError: FAISS sees no card, or has no such index on one.
        """
        if device.type != "cuda":
            return self
        return SearchIndex(move_to_gpu(self._index, device), self.state, device, host=self)


@shared_threads()
def build_faiss(
    vectors: NDArray[np.float32],
    factory: str,
    *,
    seed: int,
    advance: Callable[[int], None] | None = None,
) -> Any:
    """Train an index on a sample of (M, d) float32 vectors and fill it, a block at a time.

    `advance` is told of rows added. The vectors may be memory mapped: what is held is the index, a sample
    and a block.

    Raises:
        BankError: FAISS does not know the factory string, or cannot make it of these vectors.
    """
    count, d = vectors.shape
    try:
        index = faiss.index_factory(d, factory, faiss.METRIC_L2)
    except RuntimeError as error:
        raise BankError(
            expected="a FAISS factory string",
            got=f"{factory!r} ({_last_line(error)})",
            remedy="use a short name such as ivf-pq, or correct the string",
        ) from error
    parts = faiss.downcast_index(index)
    inner = faiss.downcast_index(faiss.extract_index_ivf(index)) if _is_ivf(index) else None
    if inner is not None:
        inner.cp.seed = seed
        inner.cp.min_points_per_centroid = 1  # a small bank has fewer than FAISS would like: no warning
    graph = _graph_of(parts)
    if graph is not None:
        graph.hnsw.efConstruction = _EF_CONSTRUCTION
    rows = max(_TRAINING_ROWS, _ROWS_PER_CELL * (inner.nlist if inner is not None else 0))
    try:
        if not index.is_trained:
            index.train(_sample(vectors, rows, seed))
        for start in range(0, count, _ADD_ROWS):
            block = np.ascontiguousarray(vectors[start : start + _ADD_ROWS])
            index.add(block)
            if advance is not None:
                advance(len(block))
    except RuntimeError as error:
        raise BankError(
            expected=f"to make {factory!r} of {count} memories of {d} dimensions",
            got=_last_line(error),
            remedy="choose an index with fewer cells or codes, or a larger bank",
        ) from error
    return index


def read_faiss(path: Path, state: IndexState, shape: tuple[int, int]) -> SearchIndex:
    """An index from its file, inverted lists memory mapped; its checksum has to be known to be right.

    Raises:
        BankError: it is no index, or one over vectors of another shape (M, d).
    """
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_ONDISK_SAME_DIR)
    except RuntimeError as error:
        raise BankError(
            expected=f"a FAISS index in {path}",
            got=_last_line(error),
            remedy="load the model with --rebuild-index",
        ) from error
    if (index.ntotal, index.d) != shape:
        raise BankError(
            expected=f"an index over {shape[0]} x {shape[1]} vectors in {path}",
            got=f"{index.ntotal} x {index.d}",
            remedy="load the model with --rebuild-index",
        )
    set_parameters(index, state.parameters)
    return SearchIndex(index, state, torch.device("cpu"))


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
                got=_last_line(error),
                remedy="load the model with --rebuild-index",
            ) from error


def tunable(index: Any) -> dict[str, int]:
    """What can be tuned in an index, and the most that makes sense: `nprobe`, `efSearch`, or nothing."""
    if _is_ivf(index):
        return {"nprobe": int(faiss.extract_index_ivf(index).nlist)}
    if _graph_of(faiss.downcast_index(index)) is not None:
        return {"efSearch": 1024}
    return {}


def flat_index(vectors: NDArray[np.float32], device: torch.device) -> Any:
    """FAISS's Flat index on a CUDA device. On the CPU `nearest_rows` needs none."""
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    return move_to_gpu(index, device)


def move_to_gpu(index: Any, device: torch.device) -> Any:
    """A CPU index on a CUDA device.

    Raises:
        DeviceError: FAISS sees no card, or has no such index on one.
    """
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        raise DeviceError(
            expected="a FAISS that sees a CUDA device",
            got=f"faiss {faiss.__version__} with {getattr(faiss, 'get_num_gpus', int)()} GPUs",
            remedy="install faiss-gpu, or use --device cpu",
        )
    number = device.index or 0
    try:
        return faiss.index_cpu_to_gpu(_gpu_resources(number), number, index)
    except RuntimeError as error:
        raise DeviceError(
            expected="an index that FAISS has on a GPU",
            got=_last_line(error),
            remedy="use --index flat or ivf, or --device cpu",
        ) from error


@cache
def _gpu_resources(device: int) -> Any:
    """FAISS's one resource object of a process and device; it must outlive every index on the card."""
    del device
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(_GPU_TEMPORARY_BYTES)
    return resources


def gpu_count() -> int:
    """CUDA devices that this build of FAISS sees."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


def faiss_version() -> str:
    """Version of the installed FAISS."""
    return str(faiss.__version__)


def _is_ivf(index: Any) -> bool:
    return faiss.try_extract_index_ivf(index) is not None


def _graph_of(index: Any) -> Any:
    """The HNSW index inside, or None."""
    if isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return index if isinstance(index, faiss.IndexHNSW) else None


def _sample(vectors: NDArray[np.float32], rows: int, seed: int) -> NDArray[np.float32]:
    """At most `rows` of the vectors, drawn evenly; read in order, so that a mapped file is read forwards."""
    if len(vectors) <= rows:
        return np.ascontiguousarray(vectors)
    drawn = np.random.default_rng(seed).choice(len(vectors), size=rows, replace=False)
    return np.ascontiguousarray(vectors[np.sort(drawn)])


def _last_line(error: Exception) -> str:
    """What FAISS says, without its place in C++."""
    return str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__

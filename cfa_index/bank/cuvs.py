"""Every call of NVIDIA's cuVS that this package makes (the extra `cuvs`): torch tensors on a card in and out.

The caller holds the card's turn and has made it torch's current device (`Card.turn`). Tensors are handed over by
`__cuda_array_interface__`, so nothing is copied; cuVS reads their addresses, and keeps none of them alive.
Written against cuVS 26.10 and its sources, which are named in docs/cagra.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.errors import DeviceError

_DEFAULT_STREAM = 1
"""CUDA's handle of the default stream. torch's 0 would be none to cuVS, which then takes a stream of its own."""
_KEPT_BYTES = 256 << 20
"""What cuVS's pool keeps of memory that it has freed. By itself it would keep all, in competition with torch."""


def has_cuvs() -> bool:
    """Whether cuVS is installed and can be loaded."""
    try:
        _loaded()
    except (ImportError, OSError):
        return False
    return True


def require_cuvs() -> None:
    """Raise a DeviceError where cuVS is not installed, or cannot be loaded."""
    try:
        _loaded()
    except (ImportError, OSError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "cuvs"
        got = "no package cuvs" if missing else f"{type(error).__name__}: {error}"
        raise DeviceError(
            expected="cuVS, which builds and walks a CAGRA graph on a card",
            got=got,
            remedy="pip install 'cfa-index[cuvs]', or use --index ivf or flat, or --device cpu",
        ) from error


def build_lists(rows: Tensor, degree: int) -> NDArray[np.uint32]:
    """The neighbour lists of a CAGRA graph, (M, degree) uint32 on the host, which waits for them.

    NN-descent draws at random: no two runs agree wholly.

    Args:
        rows: (M, d) float32 on the card, contiguous.
        degree: neighbours of each, less than M / 2.

    Raises:
        DeviceError: it fails.
    """
    cagra = _loaded().cagra
    asked = cagra.IndexParams(
        metric="sqeuclidean",
        intermediate_graph_degree=2 * degree,
        graph_degree=degree,
        build_algo="nn_descent",
    )
    with _call(rows.device, "build a graph") as resources:
        built = cagra.build(asked, rows, resources=resources)
        lists: NDArray[np.uint32] = built.graph.copy_to_host(resources=resources)
        resources.sync()
    return lists


def join_graph(rows: Tensor, lists: Tensor) -> Any:
    """What can be walked.

    Args:
        rows: (M, d) float32 on the card, contiguous, d a multiple of 4: cuVS refuses rows that do not begin at 16
            bytes. It must outlive the graph.
        lists: (M, degree) int32 on the card, rows of `rows`; it must, too.

    Raises:
        DeviceError: cuVS refuses them.
    """
    with _call(rows.device, "take a graph") as resources:
        return _loaded().cagra.from_graph(
            lists.view(torch.uint32), rows, metric="sqeuclidean", resources=resources
        )


def walk(graph: Any, queries: Tensor, k: int, width: int) -> tuple[Tensor, Tensor]:
    """What a walk finds: (n, k) float32 squared distances and int32 rows, -1 where it found fewer.

    Args:
        graph: of `join_graph`.
        queries: (n, d) float32 on its card, contiguous, n at least 1.
        k: at most `width`.
        width: candidates that are kept (cuVS's itopk_size), a multiple of 32.
    """
    cagra = _loaded().cagra
    sq_distances = queries.new_empty((len(queries), k))
    found = queries.new_empty((len(queries), k), dtype=torch.int32)
    with _call(queries.device, "search") as resources:
        cagra.search(
            cagra.SearchParams(itopk_size=width),
            graph,
            queries.detach(),  # torch hands over no other
            k,
            neighbors=found.view(torch.uint32),  # what it leaves empty has all bits set
            distances=sq_distances,
            resources=resources,
        )
    return sq_distances, found


class _Cuvs:
    """The parts of cuVS, and of RMM, its manager of memory, that are used."""

    def __init__(self) -> None:
        from cuvs.common import Resources
        from cuvs.common.exceptions import CuvsException
        from cuvs.neighbors import cagra
        from rmm import mr

        self.cagra, self.Resources, self.Error, self.memory = cagra, Resources, CuvsException, mr


@cache
def _loaded() -> _Cuvs:
    """CuVS, imported when it is first needed: not by importing this package."""
    return _Cuvs()


@contextmanager
def _call(device: torch.device, what: str) -> Iterator[Any]:
    """Around a call: cuVS's resources on torch's current stream, and memory that is taken in that stream's order.

    RMM takes memory by cudaMalloc unless somebody chooses otherwise, and cudaFree waits for all that the card has
    under way. A pool is chosen for the call alone, so that the process finds RMM as it was.
    """
    cuvs, number = _loaded(), device.index or 0
    before = cuvs.memory.get_per_device_resource(number)
    try:
        cuvs.memory.set_per_device_resource(number, _pool(number))
        yield _resources(number, torch.cuda.current_stream(device).cuda_stream or _DEFAULT_STREAM)
    except (cuvs.Error, RuntimeError) as error:  # the latter RMM's, of a card that has no pools
        said = next(iter(str(error).splitlines()), "")
        if "out_of_memory" in said or "bad_alloc" in said:
            raise RuntimeError(f"cuVS: out of memory: {said}") from error
        raise DeviceError(
            expected=f"cuVS to {what} on {device}",
            got=said[-200:] or type(error).__name__,
            remedy="use --index ivf or flat",
        ) from error
    finally:
        cuvs.memory.set_per_device_resource(number, before)


@cache
def _pool(number: int) -> Any:
    """The pool of a process and card; it stays, since what it gave must be freed before it goes."""
    del number  # it is made for the current card
    return _loaded().memory.CudaAsyncMemoryResource(release_threshold=_KEPT_BYTES)


@cache
def _resources(number: int, stream: int) -> Any:
    """One of cuVS's resource objects a process, card and stream; a call that is given one does not wait."""
    del number
    return _loaded().Resources(stream=stream)

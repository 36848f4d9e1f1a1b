"""Every call of FAISS's GPU side that this package makes: torch tensors on a card in, tensors on the card out.

The caller holds the card's turn and has made it torch's current device (`Card.turn`): FAISS works on torch's
current stream of the current device, and on one of its own, unordered, where that is another than the index's.
Most of what FAISS does not like here ends the process, so what it would check is checked before: a card that is
there with room on it, k, contiguous float32. The rules and their sources are in docs/gpu-rules.md.
"""

from __future__ import annotations

from typing import Any

import faiss
import torch
from torch import Tensor


def gpu_count() -> int:
    """CUDA devices that this build of FAISS sees."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


def take_tensors() -> None:
    """Teach FAISS's functions and classes to take torch tensors: importing does. numpy arrays still work."""
    import faiss.contrib.torch_utils  # noqa: F401


def make_resources(number: int, temporary_bytes: int) -> Any:
    """FAISS's resources, which take of a card at once what they need: later it might be missing."""
    resources = faiss.StandardGpuResources()
    # It is there for queries in the host's memory, of which we have none.
    resources.setPinnedMemory(0)
    resources.setTempMemory(temporary_bytes)
    resources.getDefaultStream(number)  # streams, cuBLAS and scratch memory are made by the first call
    return resources


def brute_force(
    resources: Any, queries: Tensor, vectors: Tensor, sq_norms: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k nearest of (M, D') vectors for (n, D') queries, n and M at least 1: (n, k) squared distances and rows.

    `faiss.knn_gpu` is this without the norms (M,), which it computes anew in each call.
    """
    from faiss.contrib import torch_utils

    sq_distances = queries.new_empty((len(queries), k))
    ids = queries.new_empty((len(queries), k), dtype=torch.int64)
    asked = faiss.GpuDistanceParams()
    asked.metric = faiss.METRIC_L2
    asked.k = k
    asked.dims = vectors.shape[1]
    asked.vectors = torch_utils.swig_ptr_from_FloatTensor(vectors)
    asked.vectorType = faiss.DistanceDataType_F32
    asked.vectorsRowMajor = True
    asked.vectorNorms = torch_utils.swig_ptr_from_FloatTensor(sq_norms)
    asked.numVectors = len(vectors)
    asked.queries = torch_utils.swig_ptr_from_FloatTensor(queries)
    asked.queryType = faiss.DistanceDataType_F32
    asked.queriesRowMajor = True
    asked.numQueries = len(queries)
    asked.outDistances = torch_utils.swig_ptr_from_FloatTensor(sq_distances)
    asked.outIndices = torch_utils.swig_ptr_from_IndicesTensor(ids)
    asked.outIndicesType = faiss.IndicesDataType_I64
    asked.device = queries.get_device()
    asked.use_cuvs = False
    with torch_utils.using_stream(resources):
        faiss.bfKnn(resources, asked)
    return sq_distances, ids


def half_flat(resources: Any, vectors: Tensor) -> Any:
    """A Flat index that keeps (M, D') vectors as half floats on their card."""
    from faiss.contrib import torch_utils

    config = faiss.GpuIndexFlatConfig()
    config.device = vectors.get_device()
    config.useFloat16 = True
    config.use_cuvs = False
    index = faiss.GpuIndexFlatL2(resources, vectors.shape[1], config)
    with torch_utils.using_stream(resources):
        # `add` would come page by page, each of which moves what is there to a larger piece of memory.
        index.add_c(len(vectors), torch_utils.swig_ptr_from_FloatTensor(vectors))
    return index


def to_card(resources: Any, number: int, index: Any) -> Any:
    """A copy of an inverted file on a card, whose searches stay there."""
    options = faiss.GpuClonerOptions()
    options.indicesOptions = faiss.INDICES_64_BIT  # else rows are looked up on the host
    options.allowCpuCoarseQuantizer = False
    options.use_cuvs = False
    return faiss.index_cpu_to_gpu(resources, number, index, options)


def search(index: Any, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What an index on a card finds: (n, k) squared distances and rows."""
    found: tuple[Tensor, Tensor] = index.search(queries, k)
    return found

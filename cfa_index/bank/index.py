"""FAISS indexes over a bank's vectors, on the CPU or on a CUDA device."""

from __future__ import annotations

from functools import cache
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.bank.neighbors import Neighbors
from cfa_index.bank.threads import shared_threads
from cfa_index.errors import BankError, DeviceError
from cfa_index.specs import IndexSpec

_GPU_TEMPORARY_BYTES = 256 << 20
"""FAISS would take up to 1.5 GiB a card for itself, in competition with torch's cache."""


class SearchIndex:
    """An index over (M, D') float32 vectors that answers torch queries on its own device.

    Not safe for two threads on a GPU, even to read (FAISS #4525).
    """

    def __init__(self, vectors: NDArray[np.float32], spec: IndexSpec, device: torch.device) -> None:
        self.device = device
        self._index: Any = faiss.IndexFlatL2(vectors.shape[1])
        self._index.add(np.ascontiguousarray(vectors))
        del spec  # Flat is the one kind so far, and takes no settings
        if device.type == "cuda":
            self._move_to_gpu()

    @property
    def count(self) -> int:
        """M."""
        return int(self._index.ntotal)

    @shared_threads()
    def search(self, queries: Tensor, k: int) -> Neighbors:
        """The k nearest memories.

        Distances are FAISS's own, clamped at zero: above 20 queries they come from the BLAS
        expansion, whose rounding depends on the batch. `exact_sq_distances` mends that.

        Args:
            queries: (n, D') float32 on the index's device.
            k: at most M.

        Raises:
            BankError: k is larger than the bank, a query has another width, or is NaN or infinite.
        """
        if k > self.count:
            raise BankError(
                expected=f"to find {k} neighbours",
                got=f"a bank of {self.count} memories",
                remedy="ask for fewer neighbours (K + J) or build a larger bank",
            )
        if queries.ndim != 2 or queries.shape[1] != self._index.d:
            raise BankError(
                expected=f"queries of shape (n, {self._index.d})",
                got=f"{tuple(queries.shape)}",
                remedy="use the descriptor that this bank was built with",
            )
        if self.device.type == "cuda":
            # Importing it teaches FAISS's classes to take torch tensors, on torch's current stream.
            import faiss.contrib.torch_utils  # noqa: F401

            with torch.cuda.device(self.device):
                sq_distances, ids = self._index.search(queries.contiguous(), k)
        else:
            found = self._index.search(queries.contiguous().numpy(), k)
            sq_distances, ids = torch.from_numpy(found[0]), torch.from_numpy(found[1])
        # FAISS never returns a row for a NaN or infinite query: its heap keeps -1.
        if len(ids) and int(ids.min()) < 0:
            raise BankError(
                expected="finite queries",
                got="a NaN or infinite patch feature",
                remedy="check the image, the weights and the precision",
            )
        return Neighbors(sq_distances=sq_distances.clamp_min_(0), ids=ids)

    def _move_to_gpu(self) -> None:
        if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
            raise DeviceError(
                expected="a FAISS that sees a CUDA device",
                got=f"faiss {faiss.__version__} with {getattr(faiss, 'get_num_gpus', int)()} GPUs",
                remedy="install faiss-gpu, or use --device cpu",
            )
        number = self.device.index or 0
        self._index = faiss.index_cpu_to_gpu(_gpu_resources(number), number, self._index)


@cache
def _gpu_resources(device: int) -> Any:
    """FAISS's one resource object of a process and device; it must outlive every index on the card."""
    del device
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(_GPU_TEMPORARY_BYTES)
    return resources


@shared_threads()
def exact_sq_distances(queries: Tensor, vectors: Tensor, ids: Tensor) -> Tensor:
    """||q - c||^2 by direct subtraction, for neighbours that a search has found.

    Args:
        queries: (n, D') float32.
        vectors: (M, D') float32, on the same device.
        ids: (n, k) int64.

    Returns:
        (n, k) float32, the same for a query whatever batch it comes in.
    """
    if queries.device.type == "cpu":
        result = torch.empty(ids.shape, dtype=torch.float32)
        x, y, picked = queries.contiguous(), vectors.contiguous(), ids.contiguous()
        count, k = ids.shape
        if count:
            faiss.fvec_L2sqr_by_idx(
                faiss.swig_ptr(result.numpy()),
                faiss.swig_ptr(x.numpy()),
                faiss.swig_ptr(y.numpy()),
                faiss.swig_ptr(picked.numpy()),
                x.shape[1],
                count,
                k,
            )
        return result
    columns = [(queries - vectors[ids[:, j]]).square().sum(dim=1) for j in range(ids.shape[1])]
    return torch.stack(columns, dim=1)


@shared_threads()
def nearest_rows(
    queries: NDArray[np.float32], base: NDArray[np.float32], k: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Brute-force k nearest rows of `base` (n, d) for `queries` (m, d): squared distances and ids (m, k)."""
    sq_distances, ids = faiss.knn(np.ascontiguousarray(queries), np.ascontiguousarray(base), k)
    return sq_distances, ids


def gpu_count() -> int:
    """CUDA devices that this build of FAISS sees."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


def faiss_version() -> str:
    """Version of the installed FAISS."""
    return str(faiss.__version__)

"""Exact distances and exact search: what every index is measured against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.bank.threads import shared_threads
from cfa_index.footprint import RANKED_BYTES

_EXPANSION_FROM = 20
"""Queries times width from which FAISS multiplies matrices. Its own 128,000 leaves the 784 patches of an
image to loops that take up to five times as long (3,136 to 50,000 memories of 152 dimensions)."""


@shared_threads()
def exact_sq_distances(queries: Tensor, vectors: Tensor, ids: Tensor) -> Tensor:
    """||q - c||^2 by direct subtraction, for neighbours that a search has found.

    Args:
        queries: (n, D') float32.
        vectors: (M, D') float32, on the same device; may be memory mapped.
        ids: (n, k) int64, rows of `vectors`.

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
    # On a card in a few large steps, each with a copy of the memories that it looks at.
    at_once = max(1, RANKED_BYTES // (4 * max(1, len(queries)) * vectors.shape[1]))
    parts = [
        (queries[:, None] - vectors[part]).square_().sum(dim=2) for part in torch.split(ids, at_once, dim=1)
    ]
    return torch.cat(parts, dim=1)


@shared_threads()
def nearest_rows(
    queries: NDArray[np.float32], base: NDArray[np.float32], k: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Brute-force k nearest rows of `base` (n, d) for `queries` (m, d): squared distances and ids (m, k).

    `base` may be memory mapped: it is read block by block. ids are -1 for a query that is not finite.
    """
    with matrix_products():
        sq_distances, ids = faiss.knn(np.ascontiguousarray(queries), np.ascontiguousarray(base), k)
    return sq_distances, ids


@contextmanager
def matrix_products() -> Iterator[None]:
    """Let FAISS multiply matrices in the body. The switch is the process's; both ways give the same result."""
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = _EXPANSION_FROM
    try:
        yield
    finally:
        if before != _EXPANSION_FROM:  # else another thread has switched, and will switch back
            faiss.cvar.distance_compute_blas_threshold = before

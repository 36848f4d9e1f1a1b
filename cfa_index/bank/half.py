"""Candidates of an exact search by products of half precision: quicker where the CPU multiplies bfloat16.

    ||q - c||^2 / 2 = ||q||^2 / 2 + ||c||^2 / 2 - q.c

is one matrix product, when the two norms are columns of their own. So the product itself is the distance,
and what bfloat16 rounds off it is a share of the distance: it does not grow with the norms.
"""

from __future__ import annotations

import faiss
import numpy as np
import torch
from torch import Tensor

_ROWS = 1024
_COLUMNS = 1024
"""Queries and memories a product: its distances, 4 MiB, are still in the cache when they are compared."""
_NORM_PARTS = 3
"""bfloat16 numbers that add up to a float32."""


class HalfProducts:
    """M memories as bfloat16 columns, on the CPU: half the bytes of the vectors.

    Args:
        vectors: (M, D') float32. They are centred here, so that a common offset costs no precision.
    """

    def __init__(self, vectors: Tensor) -> None:
        self._centre = vectors.mean(dim=0)
        self._depth = vectors.shape[1]
        self._blocks = [self._columns(block) for block in torch.split(vectors, _COLUMNS)]

    def _columns(self, vectors: Tensor) -> Tensor:
        """(D' + 6, m) bfloat16, contiguous."""
        centred = vectors - self._centre
        parts = _parts(centred.square().sum(dim=1) / 2)
        ones = torch.ones_like(parts)
        return torch.cat([-centred.bfloat16(), parts, ones], dim=1).T.contiguous()

    def candidates(self, queries: Tensor, count: int) -> Tensor:
        """Rows of about the nearest memories.

        Args:
            queries: (n, D') float32.
            count: candidates a query, at most M.

        Returns:
            (n, count) int64 in no order; all -1 for a query that is not finite.
        """
        found = np.full((len(queries), count), -1, dtype=np.int64)
        farthest = np.full(found.shape, np.inf, dtype=np.float32)
        heaps = faiss.float_maxheap_array_t()
        heaps.nh, heaps.k = found.shape
        heaps.ids, heaps.val = faiss.swig_ptr(found), faiss.swig_ptr(farthest)
        rows = torch.empty((min(_ROWS, len(queries)), self._depth + 2 * _NORM_PARTS), dtype=torch.bfloat16)
        rows[:, self._depth : -_NORM_PARTS] = 1
        for start in range(0, len(queries), _ROWS):
            centred = queries[start : start + _ROWS] - self._centre
            part = rows[: len(centred)]
            part[:, : self._depth] = centred
            part[:, -_NORM_PARTS:] = _parts(torch.linalg.vector_norm(centred, dim=1).square_() / 2)
            first = 0
            for columns in self._blocks:
                half_distances = (part @ columns).float()
                heaps.addn(columns.shape[1], faiss.swig_ptr(half_distances.numpy()), first, start, len(part))
                first += columns.shape[1]
        return torch.from_numpy(found)


def _parts(values: Tensor) -> Tensor:
    """(n,) float32 as (n, 3) bfloat16 that add up to it."""
    parts = []
    for _ in range(_NORM_PARTS):
        parts.append(values.bfloat16())
        values = values - parts[-1].float()
    return torch.stack(parts, dim=1)

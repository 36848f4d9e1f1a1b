"""The memory bank: vectors, where each came from, and the index that finds them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.bank.index import SearchIndex, exact_sq_distances
from cfa_index.bank.neighbors import Neighbors
from cfa_index.errors import BankError
from cfa_index.specs import IndexSpec


@dataclass(frozen=True, kw_only=True)
class PatchSources:
    """For each memory the nearest real patch that the build saw.

    Attributes:
        rows: (M,) int64, row of the image in the store.
        cells: (M,) int64, row-major cell of the patch grid.
    """

    rows: NDArray[np.int64]
    cells: NDArray[np.int64]


class MemoryBank:
    """M normal patches and their index, on one device.

    Args:
        vectors: (M, D') float32; a memory-mapped array is fine.
        spec: which index.
        device: where queries live.

    Raises:
        BankError: no vectors, or some that are not finite.
        DeviceError: the device is not there.
    """

    def __init__(self, vectors: NDArray[np.float32], spec: IndexSpec, device: torch.device) -> None:
        if vectors.ndim != 2 or not len(vectors) or vectors.dtype != np.float32:
            raise BankError(
                expected="(M, D') float32 vectors with M of 1 or more",
                got=f"{vectors.shape} {vectors.dtype}",
                remedy="build the bank again",
            )
        if not np.isfinite(vectors).all():
            raise BankError(
                expected="finite memories", got="a NaN or infinite value", remedy="build the bank again"
            )
        self.vectors = vectors
        self.device = device
        self._tensor = torch.tensor(vectors, device=device)
        self._index = SearchIndex(vectors, spec, device)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def tensor(self) -> Tensor:
        """The vectors (M, D') float32 on the bank's device."""
        return self._tensor

    def search(self, queries: Tensor, k: int, *, exact: bool = False) -> Neighbors:
        """The k nearest memories of (n, D') float32 queries.

        Args:
            queries: on the bank's device.
            k: at most M.
            exact: compute the distances of the k returned again by direct subtraction and sort by
                them, so that the rounding of the search does not show in a score.

        Raises:
            BankError: see `SearchIndex.search`.
        """
        found = self._index.search(queries, k)
        if not exact:
            return found
        sq_distances, order = exact_sq_distances(queries, self._tensor, found.ids).sort(dim=1)
        return Neighbors(sq_distances=sq_distances, ids=found.ids.gather(1, order))

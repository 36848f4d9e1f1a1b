"""A step of k-means on a card: its points are uploaded once, where FAISS would upload them in every step."""

from __future__ import annotations

from itertools import cycle

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.bank.card import CardFlat, card_of
from cfa_index.bank.neighbors import require_finite
from cfa_index.card_memory import has_room
from cfa_index.footprint import points_footprint
from cfa_index.specs import CardSpec
from cfa_index.transfers import Uploads

_BLOCK_BYTES = 64 << 20
"""Points that are uploaded at once where they cannot all stay on the card."""
_SPLIT_SEED, _SPLIT_SHARE = 1234, 1 / 1024
"""FAISS's, of the draw and of the distance between the halves (Clustering.cpp, split_clusters)."""


class CardStep:
    """Lloyd's algorithm over (n, d) points, a step a call.

    A centre is the mean of its points, which one thread adds up in their order (torch's EmbeddingBag.cu): nothing is
    added atomically, so that the same cells have the same centres, bit by bit.

    Args:
        x: the points, float32. They stay on the card where there is room; else they come block by block.
        k: number of centres.
        device, card: the card, and what may be taken of it.

    Raises:
        DeviceError, CardMemoryError: see `card_of`.
    """

    def __init__(self, x: NDArray[np.float32], k: int, device: torch.device, card: CardSpec) -> None:
        self._card = card_of(device, card)
        self._uploads = Uploads(device)
        self._count = len(x)
        self._cells = torch.arange(k, device=device)
        points = torch.from_numpy(x)
        rows = max(1, _BLOCK_BYTES // x[0].nbytes)
        resident = has_room(points_footprint(*x.shape), device)
        self._blocks = [points.to(device)] if resident else list(torch.split(points, rows))

    def __call__(self, centres: Tensor) -> tuple[Tensor, float]:
        """The next centres (k, d), and the mean squared distance to these. The card is waited for once.

        Raises:
            BankError: a point is NaN or infinite.
        """
        flat = CardFlat(centres, self._card)
        sums, sizes = torch.zeros_like(centres), torch.zeros_like(self._cells)
        error = sums.new_zeros(1, dtype=torch.float64)
        for block in self._blocks:
            [points] = self._uploads([block])
            sq_distances, ids = flat.search(points, 1)
            error += flat.settled(points, sq_distances).sum(dtype=torch.float64)
            cells, order = ids[:, 0].sort(stable=True)
            first = torch.searchsorted(cells, self._cells)
            sums += F.embedding_bag(order, points, first, mode="sum")
            sizes += torch.searchsorted(cells, self._cells, right=True) - first
        *counts, total = torch.cat([sizes.double(), error]).cpu().tolist()
        require_finite(total)
        centres = sums.div_(sizes.clamp_min(1)[:, None])
        if 0 in counts:
            halved, even, odd = self._uploads([torch.from_numpy(part) for part in split_empty(counts)])
            centres = centres[halved]
            centres[:, 0::2] *= even[:, None]
            centres[:, 1::2] *= odd[:, None]
        return centres, total / self._count


def split_empty(sizes: list[float]) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """New centres for empty cells, each half of another's, by FAISS's rule and with its random numbers.

    Args:
        sizes: points in each of k cells, in all more than k.

    Returns:
        For each cell the one whose centre it takes, and by what the even and the odd dimensions are multiplied.
    """
    sizes = list(sizes)
    spare = sum(sizes) - len(sizes)
    taken = np.arange(len(sizes))
    even, odd = np.ones(len(sizes), np.float32), np.ones(len(sizes), np.float32)
    draw = faiss.RandomGenerator(_SPLIT_SEED)
    for empty in [cell for cell, size in enumerate(sizes) if not size]:
        # Cell after cell, each with a chance that grows with its size.
        halved = next(
            cell for cell in cycle(range(len(sizes))) if draw.rand_float() < (sizes[cell] - 1) / spare
        )
        taken[empty] = taken[halved]
        even[empty], odd[empty] = even[halved] * (1 + _SPLIT_SHARE), odd[halved] * (1 - _SPLIT_SHARE)
        even[halved] *= 1 - _SPLIT_SHARE
        odd[halved] *= 1 + _SPLIT_SHARE
        sizes[empty] = sizes[halved] / 2
        sizes[halved] -= sizes[empty]
    return taken, even, odd

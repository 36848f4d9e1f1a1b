"""The nearest of some vectors for others, all of them in the host's memory, searched for on any device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index.bank.flat import flat_of, tensor_on
from cfa_index.bank.neighbors import not_finite
from cfa_index.specs import CardSpec
from cfa_index.transfers import Uploads


class NearestRow:
    """Exact search for one neighbour.

    Args:
        base: (n, d) float32. A card gets a copy.
        device: where it is searched.
        card: what may be taken of a card.

    Raises:
        DeviceError, CardMemoryError: the card is not there, or has no room.
    """

    def __init__(self, base: NDArray[np.float32], device: torch.device, card: CardSpec) -> None:
        self._flat = flat_of(base, tensor_on(device, base, card), card)
        self._uploads = Uploads(device)

    def __call__(self, queries: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Squared distances (m,), which a product may have made negative, and rows (m,) for queries (m, d).

        Raises:
            BankError: a query is NaN or infinite.
        """
        [x] = self._uploads([torch.from_numpy(queries)])
        found, ids = self._flat.search(x, 1)
        if x.device.type != "cpu":  # the host has refused already, and clamps nothing
            found = self._flat.settled(x, found)
        sq_distances, rows = (part[:, 0].cpu().numpy() for part in (found, ids))
        if np.isnan(sq_distances).any():
            raise not_finite()
        return sq_distances, rows

"""K-means: on the host FAISS's, on a card the same steps over points that stay there."""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.bank.card_kmeans import CardStep
from cfa_index.bank.threads import shared_threads
from cfa_index.errors import BankError
from cfa_index.specs import CardSpec


@shared_threads()
def kmeans(
    x: NDArray[np.float32],
    k: int,
    *,
    iterations: int,
    seed: int,
    on_iteration: Callable[[float], None] | None = None,
    device: torch.device = torch.device("cpu"),
    card: CardSpec = CardSpec(),
) -> NDArray[np.float32]:
    """Centres of k-means.

    Every device starts from the same rows, takes the same steps and splits empty cells by the same rule. A point
    that lies between two centres to within rounding may fall to either, and the runs part from there.

    Args:
        x: (n, d) float32 training vectors, all of them used.
        k: number of centres, at most n.
        iterations: Lloyd steps.
        seed: of the starting centres, which are rows of x.
        on_iteration: called after each step with the mean squared distance to the nearest centre.
        device: where the steps are computed; a card is waited for once a step.
        card: what may be taken of a card.

    Returns:
        (k, d) float32. At k = n it is x itself.

    Raises:
        BankError: k is larger than n; or, on a card, a vector is NaN or infinite.
        DeviceError, CardMemoryError: the card is not there, or has no room.
    """
    n = len(x)
    if k > n:
        raise BankError(
            expected=f"at least {k} patches for {k} memories",
            got=f"{n} patches",
            remedy=f"ask for a bank of at most {n}, or give more good images",
        )
    if k == n:
        return np.array(x, dtype=np.float32)
    x = np.ascontiguousarray(x)
    start = np.random.default_rng(seed).choice(n, size=k, replace=False)
    step = _host_step(x, k) if device.type == "cpu" else CardStep(x, k, device, card)
    centres = torch.from_numpy(x[np.sort(start)]).to(device)
    for _ in range(iterations):
        centres, error = step(centres)
        if on_iteration is not None:
            on_iteration(error)
    found: NDArray[np.float32] = centres.cpu().numpy()
    return found


def _host_step(x: NDArray[np.float32], k: int) -> Callable[[Tensor], tuple[Tensor, float]]:
    """A step of FAISS's, as `CardStep` takes it; FAISS splits empty cells itself."""
    n, d = x.shape

    def step(centres: Tensor) -> tuple[Tensor, float]:
        clustering = faiss.Kmeans(
            d, k, niter=1, min_points_per_centroid=1, max_points_per_centroid=-(-n // k)
        )
        clustering.train(x, init_centroids=centres.numpy())
        return torch.from_numpy(clustering.centroids), float(clustering.obj[-1]) / n

    return step

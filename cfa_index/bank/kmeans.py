"""K-means on FAISS."""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np
from numpy.typing import NDArray

from cfa_index.bank.threads import shared_threads
from cfa_index.errors import BankError


@shared_threads()
def kmeans(
    x: NDArray[np.float32],
    k: int,
    *,
    iterations: int,
    seed: int,
    on_iteration: Callable[[float], None] | None = None,
) -> NDArray[np.float32]:
    """Centres of k-means.

    Args:
        x: (n, d) float32 training vectors, all of them used.
        k: number of centres, at most n.
        iterations: Lloyd steps.
        seed: of the starting centres, which are rows of x.
        on_iteration: called after each step with the mean squared distance to the nearest centre.

    Returns:
        (k, d) float32. At k = n it is x itself.

    Raises:
        BankError: k is larger than n.
    """
    n, d = x.shape
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
    centres: NDArray[np.float32] = x[np.sort(start)]
    for _ in range(iterations):
        # One step at a time, so that a caller sees progress; FAISS splits empty clusters itself.
        clustering = faiss.Kmeans(
            d, k, niter=1, min_points_per_centroid=1, max_points_per_centroid=-(-n // k)
        )
        clustering.train(x, init_centroids=centres)
        centres = clustering.centroids
        if on_iteration is not None:
            on_iteration(float(clustering.obj[-1]) / n)
    return centres

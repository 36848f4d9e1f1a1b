"""Memories for what is frequent and for what is rare: centres of k-means, and what they cover worst."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index.bank import kmeans, nearest_rows
from cfa_index.compress.gallery import check_enough
from cfa_index.compress.k_centre import greedy_k_centre
from cfa_index.compress.sample import PatchSample


def hybrid_bank(
    sample: PatchSample,
    memories: int,
    *,
    coverage: float,
    iterations: int,
    seed: int,
    on_iteration: Callable[[float], None] | None = None,
) -> NDArray[np.float32]:
    """Centres of k-means, then greedy k-centre picks that begin where the centres are farthest away.

    k-means spends its centres where patches are dense, and a rare normal patch is left far from all of
    them: a false alarm. A coreset covers the rare ones, and takes noisy single patches for the dense ones.
    Half of each is better than either (docs/adaptation.md).

    Args:
        sample: patches of the whole store.
        memories: M.
        coverage: share of the memories that are picks; the rest are centres.
        iterations: of k-means.
        seed: of k-means.
        on_iteration: as for `bank.kmeans`.

    Returns:
        (M, D') float32, the centres first.

    Raises:
        BankError: more memories than sampled patches.
    """
    check_enough(memories, len(sample.features))
    picks = min(round(memories * coverage), memories - 1)
    centres = kmeans(
        sample.features, memories - picks, iterations=iterations, seed=seed, on_iteration=on_iteration
    )
    if picks == 0:
        return centres
    sq_distances, _ = nearest_rows(sample.features, centres)
    covered = torch.from_numpy(sq_distances[:, 0]).clamp_(min=0)
    rows = greedy_k_centre(torch.from_numpy(sample.features), picks, seed=seed, covered=covered)
    return np.concatenate([centres, sample.features[rows]])

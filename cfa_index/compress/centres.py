"""Centres of k-means as memories."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index.bank import kmeans
from cfa_index.compress.sample import PatchSample
from cfa_index.specs import CardSpec


def kmeans_bank(
    sample: PatchSample,
    memories: int,
    *,
    iterations: int,
    seed: int,
    on_iteration: Callable[[float], None] | None = None,
    device: torch.device = torch.device("cpu"),
    card: CardSpec = CardSpec(),
) -> NDArray[np.float32]:
    """Centres of k-means over a sample of the whole store: (M, D') float32, any M up to the sample.

    Raises:
        BankError: more memories than sampled patches.
    """
    return kmeans(
        sample.features,
        memories,
        iterations=iterations,
        seed=seed,
        on_iteration=on_iteration,
        device=device,
        card=card,
    )

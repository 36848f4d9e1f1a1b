"""Made-up patch vectors: clusters of low intrinsic dimension, not white noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def clustered(n: int, d: int, seed: int = 0) -> NDArray[np.float32]:
    """(n, d) float32 around 12 centres that are the same for every seed, spread along 4 directions."""
    space = np.random.default_rng(99)
    centres, directions = 3 * space.normal(size=(12, d)), space.normal(size=(4, d))
    rng = np.random.default_rng(seed)
    spread = rng.normal(size=(n, 4)) @ directions + 0.1 * rng.normal(size=(n, d))
    return (centres[rng.integers(0, 12, size=n)] + spread).astype(np.float32)

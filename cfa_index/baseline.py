"""What a good patch's score usually is at each place of the frame, so that only the excess is judged.

Products that lie the same way in every image have places that are never quite like the memories: an edge, a
seam, a rounded corner. A defect elsewhere has to stand out against these. The baseline is the mean score of
good images at each cell, drawn towards the mean over all cells as far as the images cannot tell the cells
apart (James and Stein's weight): where parts lie anyhow, it fades away by itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class RunningBaseline:
    """Adds the patch scores of good images; memory is that of one grid (h, w), whatever their number."""

    def __init__(self, grid: tuple[int, int]) -> None:
        self._sum = np.zeros(grid)
        self._squares = np.zeros(grid)
        self._count = np.zeros(grid, dtype=np.int64)

    def update(self, patch_scores: NDArray[np.float32], inspected: NDArray[np.bool_]) -> None:
        """Add images.

        Args:
            patch_scores: (B, h, w) float32, without any baseline.
            inspected: bool (B, h, w), the patches that count.
        """
        counted = np.where(inspected, patch_scores, 0).astype(np.float64)
        self._sum += counted.sum(axis=0)
        self._squares += np.square(counted).sum(axis=0)
        self._count += inspected.sum(axis=0)

    def result(self) -> NDArray[np.float32]:
        """The excess of each cell's usual score over the lowest such cell: float32 (h, w), 0 or more.

        With b_t the mean over n_t images and v_t its variance, the weight of the cells' differences is
        w = max(0, 1 - mean(v_t) / var(b_t)): what of their variance is more than the images' noise. Cells
        seen in fewer than two images take the mean of the others; with none, all are 0.
        """
        seen = self._count >= 2
        result = np.zeros(self._count.shape, dtype=np.float32)
        if not seen.any():
            return result
        count = self._count[seen]
        means = self._sum[seen] / count
        noise = np.maximum(self._squares[seen] / count - np.square(means), 0) / (count - 1)
        spread = float(means.var())
        weight = max(0.0, 1 - float(noise.mean()) / spread) if spread > 0 else 0.0
        usual = np.full(self._count.shape, means.mean())
        usual[seen] += weight * (means - means.mean())
        excess: NDArray[np.float32] = (usual - usual.min()).astype(np.float32)
        return excess

from __future__ import annotations

import numpy as np
import reference
import torch

from cfa_index.pyramid import patches, patches_at, upsampling_matrix


def test_upsampling_matrix_agrees_with_plain_loops() -> None:
    line = np.random.default_rng(0).normal(size=7)
    expected = reference.bilinear(line.reshape(1, 7, 1), 28, 1)[0, :, 0]
    np.testing.assert_allclose(upsampling_matrix(7, 28).numpy() @ line, expected, atol=1e-6)


def test_patches_at_picks_rows_of_the_upsampled_pyramid() -> None:
    levels = [torch.randn(1, 3, 8, 8), torch.randn(1, 5, 4, 4), torch.randn(1, 2, 2, 2)]
    cells = torch.tensor([0, 7, 9, 63, 9])
    picked = patches_at([level[0] for level in levels], cells)
    torch.testing.assert_close(picked, patches(levels)[0][cells], atol=1e-6, rtol=1e-5)

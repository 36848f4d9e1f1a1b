"""The patch grid behind a feature pyramid: bilinear upsampling as matrices, and patches picked from it.

A level is (B, C_l, h_l, w_l). The patch at cell (i, j) of the finest grid is the concatenation over
levels of the level's value there, bilinearly upsampled (PAPER, Features). Upsampling is linear and
separable, so any set of cells is a product with a few rows of two small matrices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def upsampling_matrix(cells: int, size: int) -> Tensor:
    """Matrix (size, cells), float32, of bilinear upsampling along one axis (align_corners=False)."""
    identity = torch.eye(cells).unsqueeze(0)  # (1, cells, cells): each row is one input cell
    return F.interpolate(identity, size=size, mode="linear", align_corners=False)[0].T.contiguous()


def upsample_level(level: Tensor, grid: tuple[int, int]) -> Tensor:
    """A level (B, C, h_l, w_l) on the grid (h, w), bilinear; float32 (B, C, h, w), as it is if it fits."""
    if level.shape[-2:] == grid:
        return level
    return F.interpolate(level, size=grid, mode="bilinear", align_corners=False)


def patches(levels: Sequence[Tensor]) -> Tensor:
    """All patches of a pyramid, upsampled first: float32 (B, h*w, D). Four times the memory; an oracle."""
    grid = (levels[0].shape[-2], levels[0].shape[-1])
    full = torch.cat([upsample_level(level.float(), grid) for level in levels], dim=1)
    return full.flatten(2).transpose(1, 2)


def patches_at(levels: Sequence[Tensor], cells: Tensor) -> Tensor:
    """Some patches of one image.

    Args:
        levels: (C_l, h_l, w_l) each, finest first, float16 or float32.
        cells: (s,) int64, row-major cells of the finest grid.

    Returns:
        float32 (s, D).
    """
    height, width = levels[0].shape[-2:]
    rows, columns = cells // width, cells % width
    picked = []
    for level in levels:
        channels, level_height, level_width = level.shape
        weights = upsampling_matrix(level_height, height)[rows].unsqueeze(2) * upsampling_matrix(
            level_width, width
        )[columns].unsqueeze(1)  # (s, h_l, w_l)
        flat = level.float().permute(1, 2, 0).reshape(-1, channels)
        picked.append(weights.reshape(len(cells), -1) @ flat)
    return torch.cat(picked, dim=1)

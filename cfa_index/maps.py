"""From the patch grid to the anomaly map and the image score.

Bilinear upsampling and the Gaussian are both linear and separable, so one small matrix an axis holds
the two of them: map = A_h @ grid @ A_w^T, two matrix products instead of an interpolation and a
convolution at full resolution. The paper (arXiv 2206.04325) smooths with sigma 4; as in its code, the
image score is the map's maximum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cfa_index.errors import SpecError

_TRUNCATE = 4.0
"""The Gaussian ends at this many sigmas, as in `scipy.ndimage.gaussian_filter`."""


def smoothing_matrix(
    cells: int,
    size_px: int,
    sigma_px: float,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The matrix A = G @ U of one axis: bilinear upsampling U, then the Gaussian G.

    U is `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`, G is
    `scipy.ndimage.gaussian_filter1d(mode="reflect", truncate=4.0)`. Rows are non-negative and sum
    to 1, so a constant stays that constant and no value leaves the range of the patches.

    Args:
        cells: patches along the axis.
        size_px: pixels of the map along the axis.
        sigma_px: standard deviation of the Gaussian in pixels of the map; 0 does not smooth.
        dtype: of the result; the sums are in float64.
        device: of the result.

    Returns:
        (size_px, cells).

    Raises:
        SpecError: no cells, no pixels, or a sigma that is negative or not finite.
    """
    if cells < 1 or size_px < 1:
        raise SpecError(
            expected="at least one cell and one pixel",
            got=f"{cells} cells and {size_px} pixels",
            remedy="give a grid and a size_px of 1 or more",
        )
    if not (math.isfinite(sigma_px) and sigma_px >= 0):
        raise SpecError(
            expected="sigma_px to be 0 or more", got=repr(sigma_px), remedy="give 0 for no smoothing"
        )
    # On the CPU: some accelerators have no float64.
    pixels = torch.arange(size_px)
    position = ((pixels.double() + 0.5) * (cells / size_px) - 0.5).clamp(0, cells - 1)
    low = position.floor().long()
    weight = position - low
    upsampling = torch.zeros(size_px, cells, dtype=torch.float64)
    upsampling[pixels, low] = 1 - weight
    upsampling[pixels, (low + 1).clamp(max=cells - 1)] += weight
    return _smoothed(upsampling, sigma_px).to(device=device, dtype=dtype)


def _smoothed(rows: Tensor, sigma_px: float) -> Tensor:
    """The Gaussian along axis 0 of `rows` (n, m) float64, the axis mirrored at its ends (d c b a | a b c d)."""
    radius = int(_TRUNCATE * sigma_px + 0.5)
    if radius == 0:
        return rows
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma_px) ** 2)
    kernel /= kernel.sum()
    count = len(rows)
    # One offset at a time: memory is that of A, not of the (n, n) matrix G.
    smoothed = torch.zeros_like(rows)
    for offset, share in zip(offsets.tolist(), kernel.tolist(), strict=True):
        wrapped = (torch.arange(count) + offset) % (2 * count)  # mirrored as often as the kernel is long
        smoothed.add_(rows[torch.minimum(wrapped, 2 * count - 1 - wrapped)], alpha=share)
    return smoothed


@dataclass(frozen=True)
class MapMaker:
    """Patch scores to anomaly maps; holds the two matrices of one grid, size, sigma and device.

    Example:
        >>> make = MapMaker((2, 2), 4, 0.0)
        >>> make(torch.ones(1, 2, 2)).shape
        torch.Size([1, 4, 4])

    Attributes:
        grid: (h, w) of the patch grid.
        size_px: S, side of the square map.
        sigma_px: standard deviation of the Gaussian in pixels of the map.
        device: where the matrices, the scores and the maps live.
    """

    grid: tuple[int, int]
    size_px: int
    sigma_px: float
    device: torch.device | str = "cpu"
    _rows: Tensor = field(init=False, repr=False, compare=False)  # (S, h)
    _columns: Tensor = field(init=False, repr=False, compare=False)  # (S, w)

    def __post_init__(self) -> None:
        height, width = self.grid
        rows = smoothing_matrix(height, self.size_px, self.sigma_px, device=self.device)
        same = width == height
        columns = rows if same else smoothing_matrix(width, self.size_px, self.sigma_px, device=self.device)
        object.__setattr__(self, "_rows", rows)
        object.__setattr__(self, "_columns", columns)

    def __call__(self, patch_scores: Tensor, valid: Tensor | None = None) -> Tensor:
        """Upsample and smooth a batch of patch grids.

        With `valid`, the convolution is normalised: A (s m) A^T / A m A^T. Patches outside `valid`
        (letterbox padding) then influence nothing, even when they are NaN, the border of the content
        is not darkened by them, and pixels whose own patch is not valid are 0.

        Args:
            patch_scores: (B, h, w) float32, non-negative.
            valid: (B, h, w) bool, or None when every patch is.

        Returns:
            (B, S, S) float32.

        Raises:
            SpecError: a shape or a type is not as above.
        """
        self._check(patch_scores, "patch_scores", torch.float32)
        if valid is None:
            return self._spread(patch_scores)
        self._check(valid, "valid", torch.bool)
        if len(valid) != len(patch_scores):
            raise SpecError(
                expected=f"valid for {len(patch_scores)} images",
                got=f"{len(valid)}",
                remedy="pass one mask an image",
            )
        scores = self._spread(torch.where(valid, patch_scores, 0.0))
        support = self._spread(valid.to(patch_scores.dtype))
        inside = valid[:, self._nearest(0)][:, :, self._nearest(1)]  # (B, S, S)
        # A pixel of a valid patch has that patch within reach: its support is never 0.
        return torch.where(inside, scores / torch.where(inside, support, 1.0), 0.0)

    def _spread(self, grid: Tensor) -> Tensor:
        return self._rows @ (grid @ self._columns.T)  # (S, h) @ (B, h, S)

    def _nearest(self, axis: int) -> Tensor:
        """Index of the patch that holds each pixel's centre: (S,) int64."""
        doubled_centres = 2 * torch.arange(self.size_px, device=self.device) + 1
        return doubled_centres * self.grid[axis] // (2 * self.size_px)

    def _check(self, batch: Tensor, name: str, dtype: torch.dtype) -> None:
        if batch.ndim != 3 or tuple(batch.shape[1:]) != tuple(self.grid) or batch.dtype != dtype:
            raise SpecError(
                expected=f"{name} (B, {self.grid[0]}, {self.grid[1]}) {dtype}",
                got=f"{tuple(batch.shape)} {batch.dtype}",
                remedy="make the MapMaker with the patch grid of these scores",
            )


def image_scores(maps: Tensor) -> Tensor:
    """The score of each image: its map's maximum. (B, S, S) to (B,); a NaN in a map stays NaN."""
    return maps.amax(dim=(1, 2))

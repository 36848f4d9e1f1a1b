"""From the patch grid to the anomaly map, the image score, and back to the pixels of the source image.

Bilinear upsampling and the Gaussian are both linear and separable, so one small matrix an axis holds
the two of them: map = A_h @ grid @ A_w^T, two matrix products instead of an interpolation and a
convolution at full resolution. The paper (arXiv 2206.04325) smooths with sigma 4; as in its code, the
image score is the map's maximum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cfa_index.errors import SpecError

_TRUNCATE = 4.0
"""The Gaussian ends at this many sigmas, as in `scipy.ndimage.gaussian_filter`."""
_ROWS_A_CHUNK = 64
_ON_THE_EDGE = 1e-6


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


def to_source(
    anomaly_map: npt.NDArray[Any] | Tensor,
    *,
    width: int,
    height: int,
    scale_x: float,
    scale_y: float,
    offset_x: float,
    offset_y: float,
) -> npt.NDArray[np.float32]:
    """Resample a map bilinearly on the pixels of the source image.

    The affine x_net = scale_x * x_src + offset_x speaks of pixel edges: pixel i covers [i, i + 1] and
    its centre is i + 0.5, on both sides. Source pixels whose centre lies outside the network's square
    were not inspected: NaN. Map pixels whose centre lies outside the source frame (letterbox padding)
    are never read; the border's value goes on instead. Beside the result, memory is one row of the
    source image for each row of the map.

    Args:
        anomaly_map: (S, S), or any (rows, columns), in network pixels; a map of tiles starts at offset 0.
        width, height: of the source image in pixels.
        scale_x, scale_y: network pixels a source pixel, more than 0.
        offset_x, offset_y: network position of the source's left and upper edge.

    Returns:
        (height, width) float32.

    Raises:
        SpecError: the map has not two axes, a size is below 1, or the affine is not as above.
    """
    if isinstance(anomaly_map, Tensor):
        anomaly_map = anomaly_map.detach().cpu().numpy()
    if anomaly_map.ndim != 2 or anomaly_map.size == 0:
        raise SpecError(expected="one map (S, S)", got=f"{anomaly_map.shape}", remedy="pass one map a call")
    net = anomaly_map.astype(np.float32, copy=False)
    x, y = (
        _samples(width, net.shape[1], scale_x, offset_x),
        _samples(height, net.shape[0], scale_y, offset_y),
    )
    source = np.full((height, width), np.nan, dtype=np.float32)
    if x.start == x.stop or y.start == y.stop:
        return source
    columns = _mix(net[:, x.low], net[:, x.high], x.weight[None, :])  # (S, columns inside)
    for begin in range(0, y.stop - y.start, _ROWS_A_CHUNK):
        part = slice(begin, begin + _ROWS_A_CHUNK)
        rows = _mix(columns[y.low[part]], columns[y.high[part]], y.weight[part, None])
        top = y.start + begin
        source[top : top + len(rows), x.start : x.stop] = rows
    return source


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """Where source pixels start..stop of one axis read the map: at low and high, mixed by weight."""

    start: int
    stop: int
    low: npt.NDArray[np.intp]
    high: npt.NDArray[np.intp]
    weight: npt.NDArray[np.float32]


def _samples(source_px: int, net_px: int, scale: float, offset: float) -> _Samples:
    if source_px < 1 or not (math.isfinite(scale) and scale > 0 and math.isfinite(offset)):
        raise SpecError(
            expected="a source of 1 pixel or more, a scale above 0 and a finite offset",
            got=f"{source_px} pixels, scale {scale!r}, offset {offset!r}",
            remedy="give the affine from source pixels to network pixels",
        )
    centres = scale * (np.arange(source_px) + 0.5) + offset
    start = int(np.searchsorted(centres, 0.0, side="left"))
    stop = int(np.searchsorted(centres, float(net_px), side="right"))
    # The map's pixels that have their centre in the source frame; all of them, without a letterbox.
    first = min(max(0, math.ceil(offset - 0.5 - _ON_THE_EDGE)), net_px - 1)
    last = max(min(net_px - 1, math.floor(scale * source_px + offset - 0.5 + _ON_THE_EDGE)), first)
    at = (centres[start:stop] - 0.5).clip(first, last)
    low = np.floor(at).astype(np.intp)
    return _Samples(
        start=start,
        stop=stop,
        low=low,
        high=np.minimum(low + 1, last),
        weight=(at - low).astype(np.float32),
    )


def fuse_maps(maps: Iterable[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """CFA++ as an ensemble: the mean of several models' maps of one image, pixel by pixel.

    A pixel counts the models that inspected it: outside the crop of one, the others stand. The mean is
    plain, as in the paper (arXiv 2206.04325): it is fair between models whose raw scores have one scale,
    such as those that differ in geometry or seed alone, and leans to the one with the larger scores
    otherwise. Nothing is rescaled, since what would do it (held-out scores) is not there for every model.

    Args:
        maps: one or more, (H, W) float32 each, in source pixels, NaN where not inspected; taken one at a
            time.

    Returns:
        (H, W) float32; NaN where no model looked.

    Raises:
        SpecError: no map, or maps of different shapes.
    """
    total: npt.NDArray[np.float32] | None = None
    seen_by = np.zeros(0, dtype=np.float32)
    for one in maps:
        if total is None:
            total, seen_by = np.zeros_like(one), np.zeros_like(one)
        if one.ndim != 2 or one.shape != total.shape:
            raise SpecError(
                expected=f"maps (H, W) of one image, as the first: {total.shape}",
                got=f"{one.shape}",
                remedy="bring each to the source pixels of the same image with to_source",
            )
        seen = ~np.isnan(one)
        np.add(total, one, out=total, where=seen)
        seen_by += seen
    if total is None:
        raise SpecError(expected="at least one map", got="none", remedy="pass the map of one model or more")
    total[seen_by == 0] = np.nan
    return np.divide(total, seen_by, out=total, where=seen_by > 0)


def _mix(
    low: npt.NDArray[np.float32], high: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """low + weight * (high - low), written over `high`; equal ends give exactly themselves."""
    high -= low
    high *= weight
    high += low
    return high

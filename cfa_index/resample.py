"""From a map in network pixels to the pixels of the source image. Without torch, for processes that draw."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cfa_index.errors import SpecError

_ROWS_A_CHUNK = 64
_ON_THE_EDGE = 1e-6


def to_source(
    anomaly_map: npt.NDArray[Any],
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
        anomaly_map: (S, S), or any (rows, columns), in network pixels; a map of tiles begins at offset 0.
        width, height: of the source image in pixels.
        scale_x, scale_y: network pixels a source pixel, more than 0.
        offset_x, offset_y: network position of the source's left and upper edge.

    Returns:
        (height, width) float32.

    Raises:
        SpecError: the map has not two axes, a size is below 1, or the affine is not as above.
    """
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

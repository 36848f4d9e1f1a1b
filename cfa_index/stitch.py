"""The maps of overlapping tiles as one map of their image, without seams and in bounded memory.

Where tiles overlap they are mixed by a partition of unity: each tile's weight falls linearly from 1 to 0
across what it shares with a neighbour, and at every pixel the weights sum to 1. So a field that the tiles
agree on is that field, and where they differ the map passes from one to the other without a step. Tiles lie
on a grid, so that the weight of a tile is that of its column times that of its row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cfa_index.errors import SpecError

Band = Callable[[int, NDArray[np.float32]], None]
"""Takes the number of a band's first row and its rows, (n, W') float32: to be copied, if they are kept."""

_ROUNDING = 1e-6


def no_band(top: int, rows: NDArray[np.float32]) -> None:
    """Keeps nothing."""


@dataclass(frozen=True)
class _Part:
    """A tile along one axis: where it lies in the map, how it is read there, and how much it counts.

    Attributes:
        start: its first pixel in the map.
        low, high: (n,) the tile's own pixels on either side of each of the map's pixels.
        mix: (n,) float32 share of `high`; None where the tile's pixels are the map's.
        weight: (n,) float32 in [0, 1].
    """

    start: int
    low: NDArray[np.intp]
    high: NDArray[np.intp]
    mix: NDArray[np.float32] | None
    weight: NDArray[np.float32]

    @property
    def stop(self) -> int:
        return self.start + len(self.weight)

    def along(self, values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
        """The tile's values at the map's pixels of one axis, times their weight."""
        shape = (-1, 1) if axis == 0 else (1, -1)
        found = values.take(self.low, axis)
        if self.mix is not None:
            found += self.mix.reshape(shape) * (values.take(self.high, axis) - found)
        found *= self.weight.reshape(shape)
        return found


class Stitcher:
    """Joins the maps of the tiles of one image as they come.

    A row of the map is final when no later tile reaches it; it then counts for the score, goes out to
    `on_band`, and is forgotten. So memory is that of S + 1 rows of the map, whatever the image's height.
    The map has S pixels for every tile_px of the source. Tiles that lie between its pixels, which happens
    where size_px and tile_px differ, are read by linear interpolation.

    Args:
        width, height: of the image in source pixels.
        boxes: of its tiles in source pixels, squares of one size, on a grid, row after row.
        size_px: S, side of each tile's map.
        on_band: is given every row of the map once, some at a time, from top to bottom.

    Raises:
        SpecError: there is no tile.
    """

    def __init__(
        self,
        width: int,
        height: int,
        boxes: Sequence[tuple[int, int, int, int]],
        size_px: int,
        on_band: Band = no_band,
    ) -> None:
        if not boxes:
            raise SpecError(expected="at least one tile", got="none", remedy="give the tiles of an image")
        tile_px = boxes[0][2] - boxes[0][0]
        self._columns = _parts(sorted({box[0] for box in boxes}), tile_px, size_px, width)
        self._rows = _parts(sorted({box[1] for box in boxes}), tile_px, size_px, height)
        self._size_px = size_px
        self._on_band = on_band
        self._added = 0
        self._top = 0
        self._open = np.zeros((max(len(part.weight) for part in self._rows), self.shape[1]), np.float32)
        self._highest = -math.inf

    @property
    def shape(self) -> tuple[int, int]:
        """(H', W') of the whole map."""
        return self._rows[-1].stop, self._columns[-1].stop

    @property
    def left(self) -> int:
        """Tiles that are still to come."""
        return len(self._rows) * len(self._columns) - self._added

    @property
    def score(self) -> float:
        """The map's maximum, the image's score; a NaN in a map stays NaN.

        Raises:
            SpecError: tiles are missing.
        """
        if self.left:
            raise SpecError(
                expected="all tiles before the score",
                got=f"{self.left} missing",
                remedy="add the maps of all tiles first",
            )
        return self._highest

    def add(self, tile_map: NDArray[np.float32]) -> None:
        """Add the map (S, S) float32 of the next tile, row after row of tiles.

        Raises:
            SpecError: the map has another shape, or all tiles are there.
        """
        side = self._size_px
        if tile_map.shape != (side, side) or not self.left:
            raise SpecError(
                expected=f"the map ({side}, {side}) of each of {len(self._rows) * len(self._columns)} tiles",
                got=f"{tile_map.shape} as number {self._added + 1}",
                remedy="add every tile's map once, in the order of the tiles",
            )
        row, column = divmod(self._added, len(self._columns))
        down, across = self._rows[row], self._columns[column]
        if column == 0:
            self._give_out(down.start)
        values = across.along(down.along(tile_map, 0), 1)
        self._open[down.start - self._top : down.stop - self._top, across.start : across.stop] += values
        self._added += 1
        if not self.left:
            self._give_out(down.stop)

    def _give_out(self, stop: int) -> None:
        """The rows before `stop` are final."""
        count = stop - self._top
        if count <= 0:
            return
        band = self._open[:count]
        self._highest = float(np.maximum(self._highest, band.max()))
        self._on_band(self._top, band)
        kept = len(self._open) - count
        self._open[:kept] = self._open[count:].copy()
        self._open[kept:] = 0
        self._top = stop


def block_maxima(values: NDArray[np.float32], side: int, above: int = 0) -> NDArray[np.float32]:
    """The maximum of each block of `side` x `side` of a map (H, W); those at its edges may be cut short.

    Args:
        values: (H, W), or some rows of a map.
        side: of a block; 1 gives the values themselves.
        above: rows of the first block that lie above `values`.
    """
    if side == 1:
        return values
    rows = np.maximum.reduceat(values, [0, *range(side - above, len(values), side)], axis=0)
    return np.maximum.reduceat(rows, np.arange(0, values.shape[1], side), axis=1)


def map_px(source_px: int, tile_px: int, size_px: int) -> int:
    """Pixels of a map along an axis of `source_px`, size_px for every tile_px; one that is cut by the edge counts."""
    return math.ceil(source_px * size_px / tile_px - _ROUNDING)


def _parts(starts: Sequence[int], tile_px: int, size_px: int, source_px: int) -> list[_Part]:
    """The tiles of one axis that begin at `starts`, in source pixels, as they lie in the map."""
    scale = size_px / tile_px
    length = map_px(source_px, tile_px, size_px)
    lefts = [start * scale for start in starts]
    centres = np.arange(length) + 0.5
    ranges, raw = [], []
    total = np.zeros(length)
    for number, left in enumerate(lefts):
        right = left + size_px
        first = max(0, math.ceil(left - 0.5 - _ROUNDING))
        is_last = number + 1 == len(lefts)
        inside = slice(first, length if is_last else math.ceil(right - 0.5 - _ROUNDING))
        ramps = np.ones(inside.stop - first)
        if number and (shared := lefts[number - 1] + size_px - left) > _ROUNDING:
            ramps *= np.clip((centres[inside] - left) / shared, 0, 1)
        if not is_last and (shared := right - lefts[number + 1]) > _ROUNDING:
            ramps *= np.clip((right - centres[inside]) / shared, 0, 1)
        ranges.append(inside)
        raw.append(ramps)
        total[inside] += ramps
    parts = []
    for left, inside, ramps in zip(lefts, ranges, raw, strict=True):
        at = np.clip(np.arange(inside.start, inside.stop) - left, 0, size_px - 1)
        low = np.floor(at + _ROUNDING).astype(np.intp)
        mix = np.clip(at - low, 0, 1).astype(np.float32)
        parts.append(
            _Part(
                start=inside.start,
                low=low,
                high=np.minimum(low + 1, size_px - 1),
                mix=mix if mix.max() > _ROUNDING else None,
                weight=(ramps / total[inside]).astype(np.float32),
            )
        )
    return parts

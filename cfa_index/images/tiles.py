"""The views of an image: the whole of it, or the tiles that it is cut into, and their maps as one.

A view is what the network sees at a time. Its `Frame` says where it lies in the source, so that boxes and
maps of a tile are found in the source's own pixels like those of a whole image. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cfa_index.errors import ImageError
from cfa_index.images.decode import MAX_PIXELS, opened
from cfa_index.images.frame import Box, Frame, frame_of, square_pixels
from cfa_index.specs import FeatureSpec
from cfa_index.stitch import Band, Stitcher, block_maxima, map_px, no_band

_ON_THE_EDGE = 1e-6

_ViewMap = tuple[int, Frame, npt.NDArray[np.float32]]
"""Number of its image, frame, and map (S, S) of a view."""


def view_count(width: int, height: int, features: FeatureSpec) -> int:
    """How many views an image of `width` x `height` source pixels has; 1 without tiles."""
    if not features.tile_px:
        return 1
    return len(_starts(width, features)) * len(_starts(height, features))


def count_views(path: Path, features: FeatureSpec) -> int:
    """How many views the image of a file has, by its header: turning it upright does not change that.

    Raises:
        ImageError: see `decode`.
    """
    if not features.tile_px:
        return 1
    with opened(path, max_pixels=MAX_PIXELS) as image:
        return view_count(*image.size, features)


def tile_boxes(width: int, height: int, features: FeatureSpec) -> tuple[Box, ...]:
    """The tiles of an image in source pixels, row after row.

    Squares of tile_px, tile_px - overlap_px apart; the last of a row and of a column is moved back inside, so
    that it shares more with its neighbour and the image's edge is seen. The tile of an image that is smaller
    reaches beyond its right or lower edge.

    Args:
        width, height: of the image in pixels.
        features: with tile_px above 0.
    """
    side = features.tile_px
    return tuple(
        (left, top, left + side, top + side)
        for top in _starts(height, features)
        for left in _starts(width, features)
    )


def _starts(source_px: int, features: FeatureSpec) -> list[int]:
    """Where the tiles along one axis begin."""
    last = max(source_px - features.tile_px, 0)
    return [*range(0, last, features.tile_px - features.overlap_px), last]


def frame_at(width: int, height: int, features: FeatureSpec, number: int) -> Frame:
    """How view `number` of an image lies in it; looks at no pixel."""
    if not features.tile_px:
        assert number == 0, "an image without tiles has one view"
        return frame_of(width, height, features)
    lefts, tops = _starts(width, features), _starts(height, features)
    row, column = divmod(number, len(lefts))
    left, top, scale = lefts[column], tops[row], features.size_px / features.tile_px
    return Frame(
        source_width=width,
        source_height=height,
        scale_x=scale,
        scale_y=scale,
        offset_x=-left * scale,
        offset_y=-top * scale,
        size_px=features.size_px,
        valid=(0, 0, _shown(width - left, features), _shown(height - top, features)),
    )


def _shown(source_px: int, features: FeatureSpec) -> int:
    """Network pixels, rounded up, of a tile that has `source_px` source pixels before the image ends."""
    side = features.size_px
    return min(side, math.ceil(source_px * side / features.tile_px - _ON_THE_EDGE))


def frames_of(width: int, height: int, features: FeatureSpec) -> tuple[Frame, ...]:
    """The frame of every view of an image, in order; looks at no pixel."""
    return tuple(
        frame_at(width, height, features, number) for number in range(view_count(width, height, features))
    )


def view_at(image: Image.Image, features: FeatureSpec, number: int) -> tuple[npt.NDArray[np.uint8], Frame]:
    """One view of an image.

    A tile is cut out first and then resized, so that nothing outside it shows in it: it has the very pixels of
    the crop. What lies beyond a small image is black.

    Args:
        image: mode RGB, upright.
        features: tiles, geometry and size_px.
        number: of the view.

    Returns:
        uint8 (3, size_px, size_px), not normalised, and the frame.

    Raises:
        ImageError: the image is not RGB.
    """
    if not features.tile_px:
        return square_pixels(image, features)
    if image.mode != "RGB":
        raise ImageError(expected="an RGB image", got=f"mode {image.mode}", remedy="pass it through to_rgb")
    frame = frame_at(image.width, image.height, features, number)
    lefts, tops = _starts(image.width, features), _starts(image.height, features)
    left, top = lefts[number % len(lefts)], tops[number // len(lefts)]
    tile = image.crop((left, top, left + features.tile_px, top + features.tile_px))
    if features.tile_px != features.size_px:
        tile = tile.resize((features.size_px, features.size_px), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(tile).transpose(2, 0, 1)), frame  # (3, S, S)


def views_of(image: Image.Image, features: FeatureSpec) -> Iterator[tuple[npt.NDArray[np.uint8], Frame]]:
    """Every view of an image in order, cut when it is asked for; see `view_at`."""
    for number in range(view_count(image.width, image.height, features)):
        yield view_at(image, features, number)


def map_frame(width: int, height: int, features: FeatureSpec) -> Frame:
    """How the map of a whole image lies in it.

    Without tiles it is the frame of the network's square. A map of tiles, (H', W'), is the `valid` part, from
    the upper left corner on, of a square that is as large as its longer side.
    """
    if not features.tile_px:
        return frame_of(width, height, features)
    columns, rows = (map_px(px, features.tile_px, features.size_px) for px in (width, height))
    scale = features.size_px / features.tile_px
    return Frame(
        source_width=width,
        source_height=height,
        scale_x=scale,
        scale_y=scale,
        offset_x=0.0,
        offset_y=0.0,
        size_px=max(rows, columns),
        valid=(0, 0, columns, rows),
    )


def stitcher_of(width: int, height: int, features: FeatureSpec, on_band: Band = no_band) -> Stitcher:
    """What joins the maps of an image's views; that of its only view, without tiles, stays as it is."""
    side = features.size_px
    if not features.tile_px:
        return Stitcher(side, side, [(0, 0, side, side)], side, on_band)
    return Stitcher(width, height, tile_boxes(width, height, features), side, on_band)


@dataclass(frozen=True, kw_only=True)
class ImageMap:
    """The map of a whole image.

    Attributes:
        pixels: (H', W') float32; (S, S) without tiles.
        frame: how it lies in the source, see `map_frame`.
        score: its maximum.
    """

    pixels: npt.NDArray[np.float32]
    frame: Frame
    score: float


class MapJoiner:
    """Makes the map of a whole image from those of its views.

    Args:
        width, height: of the image in source pixels.
        features: that cut it.
        longest_px: most pixels that the map is to have on its longer side, for pictures of large images in little
            memory: then each is the highest of a square block. The score stays that of the whole map.
    """

    def __init__(
        self, width: int, height: int, features: FeatureSpec, *, longest_px: int | None = None
    ) -> None:
        frame, side = map_frame(width, height, features), features.size_px
        columns, rows = frame.valid[2:] if features.tile_px else (side, side)
        block = 1 if longest_px is None else -(-max(rows, columns) // longest_px)
        self._pixels = np.full((-(-rows // block), -(-columns // block)), -np.inf, dtype=np.float32)
        self._frame = _shrunk(frame, block)
        # Not a method: a map must go with its joiner, and not wait for the collector of cycles.
        self._stitcher = stitcher_of(width, height, features, partial(_keep, self._pixels, block))

    def add(self, view_map: npt.NDArray[np.float32]) -> None:
        """Add the map (S, S) float32 of the next view."""
        self._stitcher.add(view_map)

    def result(self) -> ImageMap:
        """The whole map. Raises SpecError where views are missing."""
        return ImageMap(pixels=self._pixels, frame=self._frame, score=self._stitcher.score)


def _keep(pixels: npt.NDArray[np.float32], block: int, top: int, rows: npt.NDArray[np.float32]) -> None:
    """Put a band into a map of which `block` x `block` pixels are one."""
    first, above = divmod(top, block)
    blocks = block_maxima(rows, block, above)
    kept = pixels[first : first + len(blocks)]
    np.maximum(kept, blocks, out=kept)


def _shrunk(frame: Frame, side: int) -> Frame:
    """The frame of a map of which `side` x `side` pixels have become one."""
    if side == 1:
        return frame
    left, top, right, bottom = frame.valid
    return replace(
        frame,
        scale_x=frame.scale_x / side,
        scale_y=frame.scale_y / side,
        offset_x=frame.offset_x / side,
        offset_y=frame.offset_y / side,
        size_px=-(-frame.size_px // side),
        valid=(left // side, top // side, -(-right // side), -(-bottom // side)),
    )


def image_scores_of(views: Iterable[_ViewMap], features: FeatureSpec) -> Iterator[tuple[int, float]]:
    """The score of each image from the maps of its views; its map is not held.

    Args:
        views: image, frame and map (S, S) of each view, the views of an image one after another, all of them.
        features: that cut them.
    """
    for image, frame, maps in _by_image(views):
        stitcher = stitcher_of(frame.source_width, frame.source_height, features)
        for view_map in maps:
            stitcher.add(view_map)
        yield image, stitcher.score


def image_maps_of(views: Iterable[_ViewMap], features: FeatureSpec) -> Iterator[tuple[int, ImageMap]]:
    """The map of each image from those of its views; arguments as for `image_scores_of`."""
    for image, frame, maps in _by_image(views):
        joiner = MapJoiner(frame.source_width, frame.source_height, features)
        for view_map in maps:
            joiner.add(view_map)
        yield image, joiner.result()


def _by_image(views: Iterable[_ViewMap]) -> Iterator[tuple[int, Frame, Iterator[npt.NDArray[np.float32]]]]:
    """Each image with the frame of its first view and the maps of all of them."""
    for image, group in groupby(views, key=lambda view: view[0]):
        rest = iter(group)
        _, frame, first = next(rest)
        yield image, frame, chain([first], (view_map for _, _, view_map in rest))

"""Geometry: where the network's square lies in the source image, and the pixels in it.

One axis-aligned affine says it all: x_net = scale_x * x_src + offset_x. It speaks of pixel edges, not
centres: pixel i covers [i, i + 1], so a box maps to a box and nothing is off by half a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from cfa_index.errors import ImageError
from cfa_index.specs import CROP_RATIO, FeatureSpec

if TYPE_CHECKING:  # a process that only decodes does without
    import torch

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixel edges; right and bottom are outside."""

_ON_THE_EDGE = 1e-6
"""Source pixels: an edge as near as this is the same edge, so that rounding outwards adds no pixel."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """How one source image lies in the network's square.

    Attributes:
        source_width, source_height: pixels of the upright source image.
        scale_x, scale_y: network pixels a source pixel.
        offset_x, offset_y: network position of the source's left and upper edge.
        size_px: side of the square.
        valid: the part of the square, in network pixels, that shows the image and not padding.
    """

    source_width: int
    source_height: int
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float
    size_px: int
    valid: Box

    @property
    def is_full(self) -> bool:
        """Whether the image covers the whole square: nothing is padding."""
        return self.valid == (0, 0, self.size_px, self.size_px)

    @property
    def inspected(self) -> Box:
        """The part of the source that the network sees, rounded outwards to source pixels."""
        return self.to_source_box(*self.valid)

    def to_source_box(self, left: float, top: float, right: float, bottom: float) -> Box:
        """A box of network pixels in source pixels, rounded outwards and clamped to the source.

        It is never empty: a box that lies in the padding becomes the source's nearest row or column.
        """
        x0, x1 = _span(left, right, self.scale_x, self.offset_x, self.source_width)
        y0, y1 = _span(top, bottom, self.scale_y, self.offset_y, self.source_height)
        return x0, y0, x1, y1

    def patch_box(self, row: int, column: int, grid: tuple[int, int]) -> Box:
        """The box in source pixels of one patch of a grid (h, w) over the square."""
        height, width = grid
        assert 0 <= row < height, "a patch outside its grid"
        assert 0 <= column < width, "a patch outside its grid"
        return self.to_source_box(
            column * self.size_px / width,
            row * self.size_px / height,
            (column + 1) * self.size_px / width,
            (row + 1) * self.size_px / height,
        )


def _span(low: float, high: float, scale: float, offset: float, source_px: int) -> tuple[int, int]:
    first = math.floor((low - offset) / scale + _ON_THE_EDGE)
    last = math.ceil((high - offset) / scale - _ON_THE_EDGE)
    first = min(max(first, 0), source_px - 1)
    return first, min(max(last, first + 1), source_px)


@dataclass(frozen=True)
class Plan:
    """Resize to (width, height), then put the result's upper left corner at (left, top) of the square."""

    width: int
    height: int
    left: int
    top: int


def plan_of(width: int, height: int, features: FeatureSpec) -> Plan:
    """How an image of `width` x `height` pixels is fitted to the square."""
    side = features.size_px
    if features.geometry == "crop":
        resized = round(side / CROP_RATIO)
        margin = (resized - side) // 2
        return Plan(resized, resized, -margin, -margin)
    if features.geometry == "letterbox":
        longest = max(width, height)
        inner_width, inner_height = (max(1, round(px * side / longest)) for px in (width, height))
        return Plan(inner_width, inner_height, (side - inner_width) // 2, (side - inner_height) // 2)
    return Plan(side, side, 0, 0)


def frame_of(width: int, height: int, features: FeatureSpec) -> Frame:
    """The frame of an image of `width` x `height` source pixels; looks at no pixel.

    `whole` resizes both sides to size_px. `crop` resizes both to round(size_px / CROP_RATIO) and keeps
    the centre (paper, Sec. 4.1). `letterbox` resizes the longer side to size_px and the other in
    proportion (to whole pixels: the two scales may differ a little), centred on black.
    """
    plan, side = plan_of(width, height, features), features.size_px
    return Frame(
        source_width=width,
        source_height=height,
        scale_x=plan.width / width,
        scale_y=plan.height / height,
        offset_x=float(plan.left),
        offset_y=float(plan.top),
        size_px=side,
        valid=(
            max(plan.left, 0),
            max(plan.top, 0),
            min(plan.left + plan.width, side),
            min(plan.top + plan.height, side),
        ),
    )


def square_pixels(image: Image.Image, features: FeatureSpec) -> tuple[npt.NDArray[np.uint8], Frame]:
    """The square that the network sees, resized by Pillow's antialiased bilinear filter.

    Not normalised: each backbone brings its own normalisation.

    Args:
        image: mode RGB, upright, of any size.
        features: geometry and size_px.

    Returns:
        uint8 (3, size_px, size_px), and the frame.

    Raises:
        ImageError: the image is not RGB.
    """
    if image.mode != "RGB":
        raise ImageError(expected="an RGB image", got=f"mode {image.mode}", remedy="pass it through to_rgb")
    frame = frame_of(image.width, image.height, features)
    plan = plan_of(image.width, image.height, features)
    resized = image.resize((plan.width, plan.height), Image.Resampling.BILINEAR)
    if resized.size != (features.size_px, features.size_px):
        square = Image.new("RGB", (features.size_px, features.size_px))
        square.paste(resized, (plan.left, plan.top))  # what falls outside is cropped
        resized = square
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1)), frame  # (3, S, S)


def network_pixels(image: Image.Image, features: FeatureSpec) -> tuple[torch.Tensor, Frame]:
    """`square_pixels` as a tensor: uint8 (3, size_px, size_px), and the frame. Raises ImageError."""
    import torch

    pixels, frame = square_pixels(image, features)
    return torch.from_numpy(pixels), frame


def valid_mask(frames: Sequence[Frame], grid: tuple[int, int]) -> torch.Tensor:
    """Which patches show any of the image: those that reach into `valid`.

    Args:
        frames: B of them.
        grid: (h, w) patches over the square.

    Returns:
        bool (B, h, w), on the CPU.
    """
    import torch

    height, width = grid
    mask = torch.zeros(len(frames), height, width, dtype=torch.bool)
    for number, frame in enumerate(frames):
        left, top, right, bottom = frame.valid
        rows, columns = (_inside(top, bottom, height, frame), _inside(left, right, width, frame))
        mask[number] = rows[:, None] & columns[None, :]
    return mask


def _inside(low: int, high: int, cells: int, frame: Frame) -> torch.Tensor:
    """(cells,) bool: which reach into [low, high) network pixels."""
    import torch

    size = frame.size_px / cells
    edges = torch.arange(cells, dtype=torch.float64) * size
    return (edges + size > low) & (edges < high)

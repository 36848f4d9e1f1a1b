"""A heatmap over its image, in the image's own pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from cfa_index.files import write_bytes
from cfa_index.images import Frame
from cfa_index.report.colours import heat_colours
from cfa_index.resample import to_source
from cfa_index.stitch import block_maxima

_LARGEST_SIDE_PX = 1024
_OPACITY = 0.65
_CONTEXT_PATCHES = 6
"""A picture of a patch shows this many patches across: one alone is too little to recognise."""


def overlay(
    image: Image.Image, anomaly_map: NDArray[np.float32], frame: Frame, threshold: float | None
) -> Image.Image:
    """The image with its anomaly map over it.

    The colour scale starts at half the threshold and is full at one and a half times it, or at the
    map's own peak where that is higher, so that a good image stays dark; without a threshold it spans
    the map's own range. What lies above the threshold is outlined. Where the network did not look, the
    image is darkened.

    Args:
        image: RGB source, upright.
        anomaly_map: (S, S) in network pixels, or (H', W') of an image in tiles. Where the picture is the
            smaller of the two, a pixel shows the highest value of the map below it.
        frame: how the map lies in the source.
        threshold: of the model.

    Returns:
        RGB, at most 1,024 pixels on its longer side.
    """
    shrink = min(1.0, _LARGEST_SIDE_PX / max(image.size))
    size = (max(1, round(image.width * shrink)), max(1, round(image.height * shrink)))
    base = np.asarray(image.resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
    scale_x = frame.scale_x * frame.source_width / size[0]
    scale_y = frame.scale_y * frame.source_height / size[1]
    shrunk = max(1, int(min(scale_x, scale_y)))
    heat = to_source(
        block_maxima(anomaly_map, shrunk),
        width=size[0],
        height=size[1],
        scale_x=scale_x / shrunk,
        scale_y=scale_y / shrunk,
        offset_x=frame.offset_x / shrunk,
        offset_y=frame.offset_y / shrunk,
    )
    seen = np.isfinite(heat)
    mixed = heat_over(base, heat, *heat_limits(heat[seen], threshold))
    if threshold is not None:
        mixed[outline(np.where(seen, heat, -np.inf) > threshold)] = (0, 255, 120)
    return Image.fromarray(mixed)


def heat_over(
    base: NDArray[np.floating], heat: NDArray[np.float32], low: float, high: float
) -> NDArray[np.uint8]:
    """Colours of a map over an image, stronger from `low` to `high`; darkened where the map is NaN.

    Args:
        base: (H, W, 3), 0 to 255.
        heat: (H, W).
        low, high: the values where the colour begins and is full.

    Returns:
        (H, W, 3) uint8.
    """
    seen = np.isfinite(heat)
    level = np.where(seen, np.clip((heat - low) / max(high - low, 1e-12), 0, 1), 0)
    weight = (_OPACITY * level)[..., None]
    mixed = (1 - weight) * base + weight * heat_colours(level)
    mixed[~seen] = base[~seen] * 0.4
    return mixed.round().astype(np.uint8)


def heat_limits(values: NDArray[np.float32], threshold: float | None) -> tuple[float, float]:
    """Where the colours of a map begin and are full, see `overlay`; its inspected values in any shape."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if threshold is not None and threshold > 0:
        return 0.5 * threshold, max(1.5 * threshold, high)
    return low, high


def outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels (H, W) inside a region with a direct neighbour outside it."""
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core


def boxed(
    image: Image.Image, boxes: list[tuple[int, int, int, int]], colours: list[tuple[int, int, int]]
) -> Image.Image:
    """A copy of the image with a rectangle around each box."""
    copy = image.copy()
    draw = ImageDraw.Draw(copy)
    for box, colour in zip(boxes, colours, strict=True):
        left, top, right, bottom = box
        draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=max(1, image.width // 200))
    return copy


def save_picture(image: Image.Image, path: Path, credit: str = "") -> None:
    """Write a PNG whole, its folder too; a credit becomes its text chunk `Copyright`. Raises OutputError."""
    write_bytes(path, png_bytes(image, credit))


def png_bytes(image: Image.Image, credit: str = "") -> bytes:
    """A picture as the content of a PNG file; a credit becomes its text chunk `Copyright`."""
    texts = PngInfo()
    if credit:
        texts.add_text("Copyright", credit)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=texts)
    return buffer.getvalue()


def context_box(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The square to show of a patch's box: larger, and moved inside an image of `size` (width, height)."""
    left, top, right, bottom = box
    width, height = size
    side = min(width, height, _CONTEXT_PATCHES * max(right - left, bottom - top))
    x = min(max((left + right - side) // 2, 0), width - side)
    y = min(max((top + bottom - side) // 2, 0), height - side)
    return x, y, x + side, y + side

"""The picture behind `query`: the image, its heatmap, its worst patches and the normal ones they matched."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cfa_index.images import Frame
from cfa_index.report.pictures import boxed, context_box, overlay

_VIEW_PX = 360
_CELL_PX = 104
_GAP_PX = 12
_LINE_PX = 16
_CAPTION_LETTERS = 16
_INK = (32, 33, 36)
_FAINT = (110, 114, 120)
_PATCH_COLOURS = (
    (230, 57, 70),
    (29, 111, 220),
    (244, 140, 6),
    (131, 56, 236),
    (0, 150, 136),
    (120, 120, 120),
)


@dataclass(frozen=True, kw_only=True)
class PatchPicture:
    """One worst patch: its box in source pixels, its score, and (JPEG, distance, caption) a match."""

    box: tuple[int, int, int, int]
    score: float
    matches: Sequence[tuple[bytes, float, str]]


def query_panel(
    image: Image.Image,
    anomaly_map: NDArray[np.float32],
    frame: Frame,
    *,
    score: float,
    threshold: float | None,
    patches: Sequence[PatchPicture],
    footer: str = "",
) -> Image.Image:
    """Draw the panel.

    Args:
        image: RGB source.
        anomaly_map: (S, S) in network pixels, or (H', W') of an image in tiles.
        frame: how they lie in the source.
        score, threshold: of the image and of the model.
        patches: the worst ones, in order.
        footer: a line at the bottom, such as the credit of the images.

    Returns:
        RGB picture: on the left the image with its patches and the heatmap over it; on the right a
        row a patch, the patch first and then the normal patches that it matched.
    """
    colours = [_PATCH_COLOURS[number % len(_PATCH_COLOURS)] for number in range(len(patches))]
    view = _fit(boxed(image, [patch.box for patch in patches], colours), _VIEW_PX)
    heat = _fit(overlay(image, anomaly_map, frame, threshold), _VIEW_PX)
    columns = 1 + max((len(patch.matches) for patch in patches), default=0)
    row_height = _CELL_PX + 2 * _LINE_PX + _GAP_PX
    width = 4 * _GAP_PX + 2 * _VIEW_PX + columns * (_CELL_PX + _GAP_PX)
    top = _GAP_PX + 2 * _LINE_PX
    height = top + max(max(view.height, heat.height) + _LINE_PX, len(patches) * row_height) + _GAP_PX
    height += _LINE_PX if footer else 0
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    _write(draw, (_GAP_PX, _GAP_PX), _verdict(score, threshold), _INK, 15)
    canvas.paste(view, (_GAP_PX, top))
    canvas.paste(heat, (2 * _GAP_PX + _VIEW_PX, top))
    caption_y = top + max(view.height, heat.height) + 2
    _write(draw, (_GAP_PX, caption_y), "input, worst patches boxed", _FAINT)
    legend = "anomaly map" if threshold is None else "anomaly map; green: outline of the threshold"
    _write(draw, (2 * _GAP_PX + _VIEW_PX, caption_y), legend, _FAINT)
    left = 4 * _GAP_PX + 2 * _VIEW_PX
    for number, patch in enumerate(patches):
        y = top + number * row_height
        _draw_row(canvas, draw, (left, y), image, patch, colours[number])
    if footer:
        _write(draw, (_GAP_PX, height - _LINE_PX - 4), footer, _FAINT)
    return canvas


def _draw_row(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    image: Image.Image,
    patch: PatchPicture,
    colour: tuple[int, int, int],
) -> None:
    left, y = corner
    _write(draw, (left, y), f"patch {patch.score:.3g}", colour)
    crop = image.crop(context_box(patch.box, image.size)).resize(
        (_CELL_PX, _CELL_PX), Image.Resampling.BILINEAR
    )
    canvas.paste(crop, (left, y + _LINE_PX))
    draw.rectangle(
        (left, y + _LINE_PX, left + _CELL_PX - 1, y + _LINE_PX + _CELL_PX - 1), outline=colour, width=3
    )
    for number, (jpeg, distance, caption) in enumerate(patch.matches, start=1):
        x = left + number * (_CELL_PX + _GAP_PX)
        _write(draw, (x, y), f"normal, d {distance:.3g}", _INK)
        if jpeg:
            with Image.open(io.BytesIO(jpeg)) as exemplar:
                canvas.paste(exemplar.convert("RGB").resize((_CELL_PX, _CELL_PX)), (x, y + _LINE_PX))
        else:
            draw.rectangle((x, y + _LINE_PX, x + _CELL_PX - 1, y + _LINE_PX + _CELL_PX - 1), outline=_FAINT)
        _write(draw, (x, y + _LINE_PX + _CELL_PX), _short(caption), _FAINT)


def _short(uri: str) -> str:
    """The last part of a path, cut to the width of a cell."""
    name = uri.rsplit("/", 1)[-1]
    return name if len(name) <= _CAPTION_LETTERS else name[: _CAPTION_LETTERS - 3] + "..."


def _verdict(score: float, threshold: float | None) -> str:
    if threshold is None:
        return f"score {score:.4g} (the model has no threshold)"
    word = "ANOMALOUS" if score > threshold else "normal"
    return f"{word}: score {score:.4g}, threshold {threshold:.4g}"


def _fit(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def _write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    colour: tuple[int, int, int],
    size: int = 12,
) -> None:
    draw.text(corner, text, fill=colour, font=ImageFont.load_default(size))

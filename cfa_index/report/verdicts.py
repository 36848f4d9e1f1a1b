"""The panel of one test image (the paper's Figure 4): input, ground truth, anomaly map, segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cfa_index.report.pictures import heat_limits, heat_over, outline
from cfa_index.report.plots import FAINT, INK, Page, shortened

Outcome = Literal["missed", "false alarm", "found", "passed"]
"""Of a defect below and of a good image above the threshold; of a defect above and a good image below it."""

_TILE_PX, _LEAST_PX = 400, 360
_GAP_PX = 20
_HEADER_PX, _CAPTION_PX, _FOOTER_PX = 60, 64, 28
_BAR_PX, _BAR_LABELS_PX = 14, 56
_CAPTION_SIZE_PX, _NOTE_SIZE_PX = 19, 16
_LONGEST_DEFECT = 40
_TRUTH = np.array([0, 230, 118])
_SEGMENT = np.array([41, 121, 255])
_SEGMENT_INK = "#2979ff"
_BAD, _WELL = "#c62828", "#1a7f37"


@dataclass(frozen=True, kw_only=True)
class VerdictPicture:
    """What the panel of one image shows.

    Attributes:
        image: upright RGB source of H x W pixels.
        anomaly_map: (H, W) float32 in source pixels, NaN where not inspected.
        mask: (H, W) bool, the ground truth; None where there is none.
        defect: its name; `good` for none.
        name: of the image, for the reader.
        score: raw.
        outcome: what became of it at `threshold`.
        threshold: that the score was compared with.
        threshold_by: where that value comes from, in a few words.
        segment_from: lowest value of the map inside the segmentation.
        segment_by: where that value comes from, in a few words.
    """

    image: Image.Image
    anomaly_map: NDArray[np.float32]
    mask: NDArray[np.bool_] | None
    defect: str
    name: str
    score: float
    outcome: Outcome
    threshold: float
    threshold_by: str
    segment_from: float
    segment_by: str


def verdict_panel(picture: VerdictPicture, *, footer: str = "") -> Page:
    """Draw the panel: four tiles side by side under a line that says what happened.

    The map is coloured as in `overlay`, by the threshold; marks on its bar are the threshold and
    `segment_from`.

    Args:
        picture: one image.
        footer: a line at the bottom, such as the credit of the images.

    Raises:
        OutputError: matplotlib is not installed.
    """
    width, height = _fitted(picture.image.size)
    base = np.asarray(picture.image.resize((width, height), Image.Resampling.BILINEAR))
    rows, columns = (_nearest(*axis) for axis in zip(picture.anomaly_map.shape, (height, width), strict=True))
    heat = picture.anomaly_map[rows][:, columns]
    segments = _fitted_region(picture.anomaly_map >= picture.segment_from, (height, width))
    truth = None if picture.mask is None else _fitted_region(picture.mask, (height, width))
    seen = np.isfinite(heat)
    limits = heat_limits(heat[seen], picture.threshold)
    marks = "on the bar: threshold" + (", segmentation" if picture.segment_from != picture.threshold else "")
    marks += "" if seen.all() else "; dark: unseen"
    tiles = (
        ("input", picture.name, base),
        ("ground truth", *_ground_truth(base, truth, picture.defect)),
        ("anomaly map", marks, heat_over(base, heat, *limits)),
        (
            "segmentation",
            f"map ≥ {picture.segment_from:.3g}, {picture.segment_by}",
            _segmented(base, segments, truth),
        ),
    )
    cell = max(width, _LEAST_PX)
    lefts = [_GAP_PX + number * (cell + _GAP_PX) + (number == 3) * _BAR_LABELS_PX for number in range(4)]
    under = _HEADER_PX + height
    page = Page(lefts[3] + cell + _GAP_PX, under + _CAPTION_PX + (_FOOTER_PX if footer else 0))
    page.write(_GAP_PX, 16, _headline(picture), size_px=25, bold=True, colour=_colour(picture.outcome))
    for left, (caption, note, pixels) in zip(lefts, tiles, strict=True):
        page.picture(left, _HEADER_PX, pixels)
        page.write(left, under + 7, caption, size_px=_CAPTION_SIZE_PX)
        page.write(
            left, under + 32, shortened(note, cell, _NOTE_SIZE_PX), size_px=_NOTE_SIZE_PX, colour=FAINT
        )
    page.bar(
        lefts[2] + width + 6,
        _HEADER_PX,
        _BAR_PX,
        height,
        limits,
        marks=((picture.threshold, INK), (picture.segment_from, _SEGMENT_INK)),
    )
    if footer:
        page.write(_GAP_PX, under + _CAPTION_PX, footer, size_px=15, colour=FAINT)
    return page


def _headline(picture: VerdictPicture) -> str:
    defect = "" if picture.defect == "good" else f": {picture.defect[:_LONGEST_DEFECT]}"
    return f"{picture.outcome}{defect}, score {picture.score:.4g} against {picture.threshold:.4g}, {picture.threshold_by}"


def _colour(outcome: Outcome) -> str:
    return _WELL if outcome in ("found", "passed") else _BAD


def _fitted(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a tile for an image of that size; a sliver is stretched to be seen."""
    scale = _TILE_PX / max(size)
    return max(round(size[0] * scale), _TILE_PX // 8), max(round(size[1] * scale), _TILE_PX // 8)


def _ground_truth(
    base: NDArray[np.uint8], truth: NDArray[np.bool_] | None, defect: str
) -> tuple[str, NDArray[np.uint8]]:
    """A note and the pixels of the second tile."""
    if defect == "good":
        return "good: nothing to find", base
    if truth is None:
        return f"{defect}: no mask", (base * 0.35 + 255 * 0.65).astype(np.uint8)
    return f"{defect}: outline of its mask", _drawn(base, _thick(outline(truth)), _TRUTH)


def _segmented(
    base: NDArray[np.uint8], segments: NDArray[np.bool_], truth: NDArray[np.bool_] | None
) -> NDArray[np.uint8]:
    """The segmentation filled and outlined, the ground truth's outline over it."""
    filled = base.copy()
    filled[segments] = (0.55 * base[segments] + 0.45 * _SEGMENT).astype(np.uint8)
    drawn = _drawn(filled, _thick(outline(segments)), _SEGMENT)
    return drawn if truth is None else _drawn(drawn, _thick(outline(truth)), _TRUTH)


def _drawn(base: NDArray[np.uint8], where: NDArray[np.bool_], colour: NDArray[np.int_]) -> NDArray[np.uint8]:
    drawn = base.copy()
    drawn[where] = colour
    return drawn


def _thick(line: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A line with its direct neighbours."""
    padded = np.pad(line, 1)
    return line | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def _nearest(source_px: int, target_px: int) -> NDArray[np.int64]:
    """Of each pixel of an axis after resizing, the one of before that it begins in: (target_px,)."""
    return np.arange(target_px) * source_px // target_px


def _fitted_region(region: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """A region resized to `shape` (h, w); a pixel is inside where any of what it covers is, so none is lost."""
    for axis, target_px in enumerate(shape):
        first = _nearest(region.shape[axis], target_px)
        smaller = target_px < region.shape[axis]
        region = np.logical_or.reduceat(region, first, axis) if smaller else region.take(first, axis)
    return region

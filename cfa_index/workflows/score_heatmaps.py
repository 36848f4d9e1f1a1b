"""Heatmaps of a run, drawn in other processes: what a worker imports of it has no torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cfa_index.errors import ImageError
from cfa_index.images import Frame, decode
from cfa_index.places import Entry, Place
from cfa_index.report import overlay, png_bytes


@dataclass(frozen=True, kw_only=True)
class Heatmaps:
    """Where the heatmaps of a run go, and how they look; it can be sent to another process.

    Attributes:
        source, target: of the images, and of heatmaps/<image_id>_<name>.png.
        threshold: that is outlined.
        credit: whom the images are from, for the text chunk `Copyright`.
        max_pixels: as in `decode`.
    """

    source: Place
    target: Place
    threshold: float | None
    credit: str
    max_pixels: int

    def draw(
        self, image_id: int, entry: Entry, anomaly_map: NDArray[np.float32], frame: Frame
    ) -> ImageError | None:
        """Draw one; an image that cannot be read any more is returned as its error. Raises OutputError."""
        try:
            image = decode(self.source.source(entry.path), max_pixels=self.max_pixels)
        except ImageError as error:
            return error
        picture = overlay(image, anomaly_map, frame, self.threshold)
        self.target.write(_file(image_id, entry), png_bytes(picture, self.credit))
        return None

    def remove(self, image_id: int, entry: Entry) -> None:
        """Delete the one of an image that has no map any more. Raises OutputError."""
        self.target.remove(_file(image_id, entry))


def _file(image_id: int, entry: Entry) -> str:
    stem = os.fsdecode(entry.path).rpartition("/")[2].rpartition(".")[0]
    safe = re.sub(r"[^\w.-]", "_", stem)[:40]
    return f"heatmaps/{image_id:08d}_{safe}.png"

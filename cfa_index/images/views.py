"""What the network sees of one image, read in a process that may have neither torch nor FAISS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cfa_index.errors import ImageError
from cfa_index.images.decode import MAX_PIXELS, decode
from cfa_index.images.frame import Frame
from cfa_index.images.tiles import view_count, views_of
from cfa_index.places import Entry, Place
from cfa_index.specs import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class Views:
    """The squares of one image: one, or one a tile.

    Attributes:
        pixels: (n, 3, S, S) uint8, not normalised.
        frames: n of them: how each lies in the source.
    """

    pixels: npt.NDArray[np.uint8]
    frames: tuple[Frame, ...]


def read_views(
    place: Place, path: bytes, features: FeatureSpec, max_pixels: int = MAX_PIXELS
) -> Views | ImageError:
    """Read and fit one image; what is wrong with it is returned, not raised.

    Args:
        place, path: where it is.
        features: geometry, size_px and tiles.
        max_pixels: as in `decode`.
    """
    try:
        source = place.source(path)
    except ImageError as error:
        return error
    return read_source(source, features, max_pixels)


def read_source(source: Path | bytes, features: FeatureSpec, max_pixels: int) -> Views | ImageError:
    """Fit one image, a file or its content."""
    try:
        image = decode(source, max_pixels=max_pixels)
    except ImageError as error:
        return error
    side, frames = features.size_px, []
    pixels = np.empty((view_count(image.width, image.height, features), 3, side, side), dtype=np.uint8)
    for number, (square, frame) in enumerate(views_of(image, features)):
        pixels[number] = square
        frames.append(frame)
    return Views(pixels=pixels, frames=tuple(frames))


def read_entry(
    place: Place, entry: Entry, features: FeatureSpec, max_pixels: int = MAX_PIXELS
) -> Views | ImageError | str:
    """Read an image of a list; one that could not even be listed is its error."""
    return entry.error or read_views(place, entry.path, features, max_pixels)

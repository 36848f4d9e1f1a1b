"""Where each memory came from: its box in the source image, and a small picture of it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cfa_index.bank import PatchSources
from cfa_index.bundle import MemorySource, Sources
from cfa_index.errors import ImageError
from cfa_index.events import Listener, ignore, stage
from cfa_index.images import decode
from cfa_index.report import context_box
from cfa_index.store import PatchStore
from cfa_index.workflows.extract import image_rows, stored_frames

MOST_EXEMPLARS = 20_000
"""Larger banks carry no pictures: they would outgrow the vectors."""
_EXEMPLAR_PX = 64


def memory_sources(store: PatchStore, sources: PatchSources) -> Sources:
    """The image, cell of the image's or the tile's grid, and box in source pixels of each memory's nearest patch."""
    features = store.header.features
    height, width = grid = features.grid
    rows, columns = np.divmod(sources.cells, width)
    # A patch's left and right depend on its column and the frame alone, top and bottom on its row.
    used, view_of = np.unique(sources.rows, return_inverse=True)
    frames = stored_frames(store, used.tolist())
    numbers = {frame: number for number, frame in enumerate(dict.fromkeys(frames))}
    boxes = np.zeros((len(numbers), max(grid), 4), dtype=np.int64)
    for frame, number in numbers.items():
        diagonal = [(min(i, height - 1), min(i, width - 1)) for i in range(max(grid))]
        boxes[number] = [frame.patch_box(row, column, grid) for row, column in diagonal]
    frame_of = np.array([numbers[frame] for frame in frames], dtype=np.int64)[view_of]
    left, right = boxes[frame_of, columns, 0], boxes[frame_of, columns, 2]
    top, bottom = boxes[frame_of, rows, 1], boxes[frame_of, rows, 3]
    return Sources.of_columns(
        [image.uri for image in store.images],
        image_rows(store, sources.rows),
        {"row": rows, "column": columns, "left": left, "top": top, "right": right, "bottom": bottom},
    )


def exemplar_crops(
    store: PatchStore,
    sources: PatchSources,
    places: Sequence[MemorySource],
    listener: Listener = ignore,
) -> list[bytes]:
    """A small JPEG around each memory's source patch; every image is decoded once."""
    crops = [b""] * len(places)
    images = image_rows(store, sources.rows)
    order = np.argsort(images, kind="stable").tolist()
    with stage(listener, "exemplars", len(order), "memories") as advance:
        image, opened = None, -1
        for memory in order:
            source, row = places[memory], int(images[memory])
            if row != opened:
                try:
                    image, opened = decode(Path(store.header.source) / source.uri), row
                except ImageError:  # it was readable a moment ago; the model does not need the picture
                    image, opened = None, row
            if image is not None:
                crop = image.crop(context_box(source.box, image.size)).resize((_EXEMPLAR_PX, _EXEMPLAR_PX))
                buffer = io.BytesIO()
                crop.save(buffer, "JPEG", quality=80)
                crops[memory] = buffer.getvalue()
            advance(1)
    return crops

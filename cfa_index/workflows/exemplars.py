"""Where each memory came from: its box in the source image, and a small picture of it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cfa_index.bank import PatchSources
from cfa_index.bundle import MemorySource
from cfa_index.errors import ImageError
from cfa_index.events import Listener, ignore, stage
from cfa_index.images import decode, frame_of
from cfa_index.report import context_box
from cfa_index.store import PatchStore

MOST_EXEMPLARS = 20_000
"""Larger banks carry no pictures: they would outgrow the vectors."""
_EXEMPLAR_PX = 64


def memory_sources(store: PatchStore, sources: PatchSources) -> list[MemorySource]:
    """The image, cell and box in source pixels of each memory's nearest real patch."""
    found = []
    grid = store.header.features.grid
    for row, cell in zip(sources.rows.tolist(), sources.cells.tolist(), strict=True):
        y, x = divmod(cell, grid[1])
        image = store.images[row]
        box = frame_of(image.width, image.height, store.header.features).patch_box(y, x, grid)
        found.append(MemorySource(uri=image.uri, row=y, column=x, box=box))
    return found


def exemplar_crops(
    store: PatchStore,
    sources: PatchSources,
    places: Sequence[MemorySource],
    listener: Listener = ignore,
) -> list[bytes]:
    """A small JPEG around each memory's source patch; every image is decoded once."""
    crops = [b""] * len(places)
    order = np.argsort(sources.rows, kind="stable").tolist()
    with stage(listener, "exemplars", len(order), "memories") as advance:
        image, opened = None, -1
        for memory in order:
            source, row = places[memory], int(sources.rows[memory])
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

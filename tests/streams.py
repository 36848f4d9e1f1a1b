"""Made-up streams of patches, as `cfa_index.compress` takes them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cfa_index.compress import PatchStream

Patches = NDArray[np.float32]


def stream_of(images: list[Patches], rows: list[int] | None = None) -> PatchStream:
    def stream() -> Iterator[tuple[int, NDArray[np.int64], Patches]]:
        for row, patches in zip(rows or range(len(images)), images, strict=True):
            yield row, np.arange(len(patches)), patches

    return stream


def random_images(count: int, cells: int = 9, width: int = 4, seed: int = 0) -> list[Patches]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(cells, width)).astype(np.float32) for _ in range(count)]

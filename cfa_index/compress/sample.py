"""A bounded sample of a stream, which k-means runs over and sources are searched in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index.bank import NearestRow, PatchSources
from cfa_index.compress.stream import OnStep, PatchStream, no_patches, nothing
from cfa_index.specs import CardSpec


@dataclass(frozen=True, kw_only=True)
class PatchSample:
    """Patches drawn from the whole stream: features (n, D') float32, and the (n,) row and cell of each."""

    features: NDArray[np.float32]
    rows: NDArray[np.int64]
    cells: NDArray[np.int64]


def sample_patches(
    stream: PatchStream, *, images: int, per_image: int, limit: int, seed: int, on_image: OnStep = nothing
) -> PatchSample:
    """All patches where they fit in `limit`, else about the same number from each image.

    Args:
        stream: the patches.
        images: how many images it gives.
        per_image: h*w, the most patches of an image.
        limit: patches to hold, rounded up to a whole number an image; memory is that times D' * 4 bytes.
        seed: of the draw; with more images than `limit`, images are drawn too.
        on_image: called after each image.

    Raises:
        BankError: the stream is empty.
    """
    chosen = range(images)
    if images > limit:
        chosen = np.sort(np.random.default_rng(seed).choice(images, limit, replace=False)).tolist()
    wanted = set(chosen)
    quota = min(per_image, -(-limit // max(1, len(wanted))))
    rows, cells = np.empty(len(wanted) * quota, np.int64), np.empty(len(wanted) * quota, np.int64)
    features: NDArray[np.float32] | None = None
    count = 0
    for number, (row, shown, patches) in enumerate(stream()):
        if features is None:
            features = np.empty((len(rows), patches.shape[1]), dtype=np.float32)
        if number in wanted:
            draw = np.random.default_rng([seed, row])
            picked = np.sort(draw.choice(len(patches), min(quota, len(patches)), replace=False))
            part = slice(count, count + len(picked))
            features[part], rows[part], cells[part] = patches[picked], row, shown[picked]
            count += len(picked)
        on_image()
    if features is None:
        raise no_patches()
    return PatchSample(features=features[:count], rows=rows[:count], cells=cells[:count])


def nearest_sources(
    vectors: NDArray[np.float32],
    sample: PatchSample,
    *,
    block: int = 8192,
    device: torch.device = torch.device("cpu"),
    card: CardSpec = CardSpec(),
) -> PatchSources:
    """For each memory (M, D') its nearest patch of the sample, searched `block` patches at a time on a device."""
    best = np.full(len(vectors), np.inf, dtype=np.float32)
    nearest = np.zeros(len(vectors), np.int64)
    for start in range(0, len(sample.features), block):
        sq_distances, ids = NearestRow(sample.features[start : start + block], device, card)(vectors)
        closer = sq_distances < best
        best[closer] = sq_distances[closer]
        nearest[closer] = start + ids[closer]
    return PatchSources(rows=sample.rows[nearest], cells=sample.cells[nearest])

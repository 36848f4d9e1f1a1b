"""Memories for what is frequent and for what is rare: centres of k-means, and what they cover worst."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index.bank import NearestRow
from cfa_index.compress.centres import kmeans_bank
from cfa_index.compress.gallery import check_enough
from cfa_index.compress.k_centre import greedy_k_centre
from cfa_index.compress.sample import PatchSample, nearest_sources
from cfa_index.compress.stream import OnStep, PatchStream, nothing
from cfa_index.events import Listener, ignore, stage
from cfa_index.specs import CardSpec


def hybrid_bank(
    stream: PatchStream,
    sample: PatchSample,
    memories: int,
    *,
    images: int,
    coverage: float,
    iterations: int,
    seed: int,
    device: torch.device = torch.device("cpu"),
    card: CardSpec = CardSpec(),
    listener: Listener = ignore,
) -> PatchSample:
    """Centres of k-means, then greedy k-centre picks that begin where the centres are farthest away.

    k-means spends its centres where patches are dense, and a rare normal patch is left far from all of
    them: a false alarm. A coreset covers the rare ones, and takes noisy single patches for the dense ones.
    Half of each is better than either (docs/adaptation.md).

    Memory is that of the sample once more, whatever the number of images: of all patches, as many as the
    sample has are kept, those farthest from the centres. The greedy search over these is the one over all
    patches as long as its picks are farther out than what was left behind.

    Args:
        stream: all patches, read once.
        sample: of them, for k-means and for the centres' sources.
        memories: M.
        images: how many the stream gives.
        coverage: share of the memories that are picks; the rest are centres.
        iterations: of k-means.
        seed: of k-means.
        device: where distances are computed.
        card: what may be taken of a card.
        listener: told of progress.

    Returns:
        Features (M, D') float32, the centres first; the place of each pick, and of a centre that of its
        nearest patch of the sample.

    Raises:
        BankError: more memories than sampled patches.
    """
    check_enough(memories, len(sample.features))
    picks = min(round(memories * coverage), memories - 1)
    with stage(listener, "k-means", iterations, "iterations") as advance:
        centres = kmeans_bank(
            sample,
            memories - picks,
            iterations=iterations,
            seed=seed,
            on_iteration=lambda error: advance(1, sq_distance=error),
            device=device,
            card=card,
        )
    sources = nearest_sources(centres, sample, device=device, card=card)
    with stage(listener, "coverage", images, "images") as advance:
        rare, sq_distances = worst_covered(
            stream,
            centres,
            limit=len(sample.features),
            device=device,
            card=card,
            on_image=lambda: advance(1),
        )
    covered = torch.from_numpy(sq_distances)
    chosen = greedy_k_centre(
        torch.from_numpy(rare.features), picks, seed=seed, covered=covered, device=device
    )
    return PatchSample(
        features=np.concatenate([centres, rare.features[chosen]]),
        rows=np.concatenate([sources.rows, rare.rows[chosen]]),
        cells=np.concatenate([sources.cells, rare.cells[chosen]]),
    )


def worst_covered(
    stream: PatchStream,
    centres: NDArray[np.float32],
    *,
    limit: int,
    device: torch.device = torch.device("cpu"),
    card: CardSpec = CardSpec(),
    on_image: OnStep = nothing,
) -> tuple[PatchSample, NDArray[np.float32]]:
    """The patches of a stream that are farthest from their nearest centre, in no order.

    Args:
        stream: the patches.
        centres: (k, D') float32.
        limit: how many are held and kept; all of them where there are fewer.
        device: where they are searched; a card is waited for once an image.
        card: what may be taken of a card.
        on_image: called after each image.

    Returns:
        The patches, and their squared distances (n,) float32.
    """
    features = np.empty((limit, centres.shape[1]), np.float32)
    rows, cells = np.empty(limit, np.int64), np.empty(limit, np.int64)
    sq_distances = np.empty(limit, np.float32)
    count, least = 0, -np.inf
    nearest = NearestRow(centres, device, card)
    for row, shown, patches in stream():
        found = np.maximum(nearest(patches)[0], 0)
        coming = np.flatnonzero(found > least)
        before, count = count, min(limit, count + len(coming))
        slots = np.arange(before, count)
        crowd = len(coming) - len(slots)
        if crowd:  # as many as there is no room for give way: the nearest of those held and those coming
            held = np.concatenate([sq_distances[:before], found[coming]])
            leaving = np.argpartition(held, crowd - 1)[:crowd]
            was_held = leaving < before
            coming = np.delete(coming, leaving[~was_held] - before)
            slots = np.concatenate([slots, leaving[was_held]])
        features[slots], rows[slots], cells[slots] = patches[coming], row, shown[coming]
        sq_distances[slots] = found[coming]
        if count == limit:
            least = float(sq_distances.min())
        on_image()
    sample = PatchSample(features=features[:count], rows=rows[:count], cells=cells[:count])
    return sample, sq_distances[:count]

"""From the patches of all good images to a bank of M memories, in bounded memory.

A stream is a function that gives a fresh iterator over images: (row, cells, patches), the row of the
image in the store, the (n,) int64 cells of the grid that show it (all h*w but for a letterbox), and
their adapted patches (n, D') float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cfa_index.bank import PatchSources, kmeans, nearest_rows
from cfa_index.errors import BankError

PatchStream = Callable[[], Iterator[tuple[int, NDArray[np.int64], NDArray[np.float32]]]]
OnStep = Callable[[], None]


def _nothing() -> None:
    return


@dataclass(frozen=True, kw_only=True)
class PatchSample:
    """Patches drawn from the whole stream: features (n, D') float32, and the (n,) row and cell of each."""

    features: NDArray[np.float32]
    rows: NDArray[np.int64]
    cells: NDArray[np.int64]


def sample_patches(
    stream: PatchStream, *, images: int, per_image: int, limit: int, seed: int, on_image: OnStep = _nothing
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
        raise BankError(
            expected="patches of at least one image", got="none", remedy="give at least one good image"
        )
    return PatchSample(features=features[:count], rows=rows[:count], cells=cells[:count])


def kmeans_bank(
    sample: PatchSample,
    memories: int,
    *,
    iterations: int,
    seed: int,
    on_iteration: Callable[[float], None] | None = None,
) -> NDArray[np.float32]:
    """Centres of k-means over a sample of the whole store: (M, D') float32, any M up to the sample.

    Raises:
        BankError: more memories than sampled patches.
    """
    return kmeans(sample.features, memories, iterations=iterations, seed=seed, on_iteration=on_iteration)


def mean_bank(
    stream: PatchStream, memories: int, *, iterations: int, seed: int, on_image: OnStep = _nothing
) -> NDArray[np.float32]:
    """The published code's bank: mean of phi_0 at each position, then k-means down to M < h*w.

    Args:
        stream: whole grids only, as a position's mean needs them.
        memories: M.
        iterations, seed: of k-means.
        on_image: called after each image.

    Returns:
        (M, D') float32.

    Raises:
        BankError: M is larger than h*w, or the stream is empty.
    """
    total: NDArray[np.float64] | None = None
    count = 0
    for _, _, patches in stream():
        total = patches.astype(np.float64) if total is None else total + patches
        count += 1
        on_image()
    if total is None:
        raise BankError(
            expected="patches of at least one image", got="none", remedy="give at least one good image"
        )
    _check_fits(memories, len(total), "mean")
    means = (total / count).astype(np.float32)
    return kmeans(means, memories, iterations=iterations, seed=seed)


def ema_bank(
    stream: PatchStream,
    memories: int,
    *,
    beta: float,
    iterations: int,
    seed: int,
    on_image: OnStep = _nothing,
) -> NDArray[np.float32]:
    """The paper's Algorithm 1: C_i = (1 - beta) C_{i-1} + beta C_i^NN, without replacement.

    C_0 is k-means of the first image's patches (at M = h*w these patches themselves). For every
    image, the first one too, each memory in turn takes its nearest patch that no other memory of
    this image has taken.

    Args:
        stream: the patches, in the order that the average moves.
        memories: M.
        beta: weight of an image.
        iterations, seed: of the k-means behind C_0.
        on_image: called after each image.

    Returns:
        (M, D') float32.

    Raises:
        BankError: M is larger than h*w, or the stream is empty.
    """
    bank: NDArray[np.float32] | None = None
    for _, _, patches in stream():
        if bank is None:
            _check_fits(memories, len(patches), "ema")
            bank = kmeans(patches, memories, iterations=iterations, seed=seed)
        bank = ((1 - beta) * bank + beta * patches[_take_in_turn(bank, patches)]).astype(np.float32)
        on_image()
    if bank is None:
        raise BankError(
            expected="patches of at least one image", got="none", remedy="give at least one good image"
        )
    return bank


def _take_in_turn(bank: NDArray[np.float32], patches: NDArray[np.float32]) -> NDArray[np.int64]:
    """For each memory in turn its nearest patch not yet taken: (M,) int64, all different."""
    # ||c||^2 is the same along a row and does not change which patch is nearest.
    sq_distances = (patches * patches).sum(axis=1) - 2 * (bank @ patches.T)  # (M, h*w)
    taken = np.empty(len(bank), dtype=np.int64)
    for memory, row in enumerate(sq_distances):
        taken[memory] = row.argmin()
        sq_distances[memory + 1 :, taken[memory]] = np.inf
    return taken


def _check_fits(memories: int, patches: int, method: str) -> None:
    if memories > patches:
        raise BankError(
            expected=f"at most h*w = {patches} memories with method '{method}'",
            got=str(memories),
            remedy="ask for fewer, or use --method kmeans",
        )


def nearest_sources(vectors: NDArray[np.float32], sample: PatchSample, *, block: int = 8192) -> PatchSources:
    """For each memory (M, D') its nearest patch of the sample, searched `block` patches at a time."""
    best = np.full(len(vectors), np.inf, dtype=np.float32)
    nearest = np.zeros(len(vectors), np.int64)
    for start in range(0, len(sample.features), block):
        sq_distances, ids = nearest_rows(vectors, sample.features[start : start + block])
        closer = sq_distances[:, 0] < best
        best[closer] = sq_distances[closer, 0]
        nearest[closer] = start + ids[closer, 0]
    return PatchSources(rows=sample.rows[nearest], cells=sample.cells[nearest])

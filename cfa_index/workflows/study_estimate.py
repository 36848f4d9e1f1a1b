"""How long a study takes, before it starts: its multiplications over this machine's rate, then as cells go."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cfa_index.bank import nearest_rows
from cfa_index.specs import ModelSpec
from cfa_index.workflows.calibrate import BASELINE_IMAGES
from cfa_index.workflows.indexing import query_count

_PASSES = {"hybrid": 2, "coreset": 2}
"""Readings of the store by a bank's method; 1 where nothing is said."""
_READ_S, _MAP_S = 0.01, 0.003
"""An image's features from the store, and its map: small beside the rest."""
_TUNING_SEARCHES = 40
"""Of an image's patches, for the latency of every setting that is tried."""
_PROBE_QUERIES, _PROBE_VECTORS, _PROBE_S = 784, 3136, 0.5


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """What the time of a cell grows with.

    Attributes:
        fit, test: images, or tiles of them, in the bank, and of the test split.
        timed: scorings of one for its latency and for throughput.
        channels: D.
        queries: patches for recall.
    """

    fit: int
    test: int
    timed: int
    channels: int
    queries: int


def probe_products_per_s(width: int) -> float:
    """Multiplications a second of a search in `width` dimensions, measured for half a second.

    Threads that start make the first searches up to ten times slower: the median of the latter half counts.
    """
    draw = np.random.default_rng(0)
    queries, vectors = (
        draw.standard_normal((count, width), dtype=np.float32) for count in (_PROBE_QUERIES, _PROBE_VECTORS)
    )
    taken: list[float] = []
    while sum(taken) < _PROBE_S or len(taken) < 2:
        started = time.perf_counter()
        nearest_rows(queries, vectors, 3)
        taken.append(time.perf_counter() - started)
    return _PROBE_QUERIES * _PROBE_VECTORS * width / statistics.median(taken[len(taken) // 2 :])


def guess_seconds(spec: ModelSpec, amounts: Amounts, products_per_s: float, *, makes_bank: bool) -> float:
    """Seconds of one cell; within a factor of two or so, and too many for an index that is faster than Flat.

    Args:
        spec: all settings of the cell.
        amounts: of images and patches.
        products_per_s: of this machine.
        makes_bank: whether the bank has to be made for it, or is that of the cell before.
    """
    patches = spec.features.patches_per_image
    width = spec.descriptor.width(amounts.channels)
    memories = spec.bank.memories(patches, amounts.fit * patches)
    adapt = patches * amounts.channels * width
    search = patches * memories * width
    images = min(BASELINE_IMAGES, amounts.fit) + amounts.test + amounts.timed
    products = float(images * (adapt + search) + 2 * amounts.queries * memories * width)
    seconds = images * (_READ_S + _MAP_S)
    if spec.index.factory.lower() != "flat":
        products += query_count((memories, width)) * memories * width + _TUNING_SEARCHES * search
    if makes_bank:
        passes = _PASSES.get(spec.bank.method, 1)
        seconds += passes * amounts.fit * _READ_S
        products += passes * amounts.fit * adapt + _bank_products(
            spec, amounts.fit * patches, memories, width
        )
    return seconds + products / products_per_s


def _bank_products(spec: ModelSpec, total: int, memories: int, width: int) -> float:
    """Multiplications of a bank's method over all `total` patches."""
    method, rounds = spec.bank.method, spec.bank.iterations + 1
    sample = min(total, max(spec.bank.sample_patches, 8 * memories))
    if method in ("kmeans", "mean"):
        return float(rounds * sample * memories * width)
    if method == "hybrid":
        return (rounds * sample + total + sample) * memories / 2 * width
    return 0.0 if method == "random" else float(total * memories * width)


def pace(measured: Iterable[tuple[float, float]]) -> float:
    """By what the guesses have to be multiplied: cells' seconds over their guesses, 1 without any."""
    done = list(measured)
    guessed = sum(guess for _, guess in done)
    return sum(seconds for seconds, _ in done) / guessed if guessed > 0 else 1.0

"""The paper's arithmetic in float64 and plain loops, written from the equations: the oracle of the tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def sq_distance(a: Array, b: Array) -> float:
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))


def nearest(patch: Array, bank: Array, k: int) -> list[int]:
    """Rows of the k nearest memories, nearest first; the lower row first among equals."""
    return sorted(range(len(bank)), key=lambda row: (sq_distance(patch, bank[row]), row))[:k]


def losses(
    patches: Array, bank: Array, *, attract: int, repel: int, radius: float, margin: float
) -> tuple[float, float]:
    """L_att and L_rep (Eqs. 1-2)."""
    attraction = repulsion = 0.0
    for patch in patches:
        ids = nearest(patch, bank, attract + repel)
        for row in ids[:attract]:
            attraction += max(0.0, sq_distance(patch, bank[row]) - radius**2)
        for row in ids[attract:]:
            repulsion += max(0.0, radius**2 - sq_distance(patch, bank[row]) - margin)
    count = len(patches)
    return attraction / (count * attract), repulsion / (count * repel) if repel else 0.0


def loss_gradients(
    patches: Array, bank: Array, *, attract: int, repel: int, radius: float, margin: float
) -> tuple[Array, float]:
    """Gradient of Eq. 3 in the patches (n, D') and in the radius."""
    gradient = np.zeros_like(patches)
    by_radius = 0.0
    count = len(patches)
    for number, patch in enumerate(patches):
        ids = nearest(patch, bank, attract + repel)
        for row in ids[:attract]:
            if sq_distance(patch, bank[row]) - radius**2 > 0:
                gradient[number] += 2 * (patch - bank[row]) / (count * attract)
                by_radius -= 2 * radius / (count * attract)
        for row in ids[attract:]:
            if radius**2 - sq_distance(patch, bank[row]) - margin > 0:
                gradient[number] -= 2 * (patch - bank[row]) / (count * repel)
                by_radius += 2 * radius / (count * repel)
    return gradient, by_radius


def certainty_score(distances: Sequence[float]) -> float:
    """Eqs. 4-5 from rooted distances."""
    nearest_distance = min(distances)
    weight = math.exp(-nearest_distance) / sum(math.exp(-distance) for distance in distances)
    return weight * nearest_distance


def bilinear(level: Array, height: int, width: int) -> Array:
    """(C, h, w) to (C, height, width), pixel centres at half-integers (align_corners=False)."""
    channels, rows, columns = level.shape
    result = np.zeros((channels, height, width))
    for i in range(height):
        y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
        top, bottom = int(y), min(int(y) + 1, rows - 1)
        for j in range(width):
            x = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            left, right = int(x), min(int(x) + 1, columns - 1)
            upper = (1 - (x - left)) * level[:, top, left] + (x - left) * level[:, top, right]
            lower = (1 - (x - left)) * level[:, bottom, left] + (x - left) * level[:, bottom, right]
            result[:, i, j] = (1 - (y - top)) * upper + (y - top) * lower
    return result


def ema(images: Sequence[Array], start: Array, beta: float) -> Array:
    """Algorithm 1 after C_0: each memory in turn takes its nearest patch not yet taken."""
    bank = start.copy()
    for patches in images:
        free = list(range(len(patches)))
        chosen = []
        for memory in bank:
            best = min(free, key=lambda patch: (sq_distance(memory, patches[patch]), patch))
            free.remove(best)
            chosen.append(best)
        bank = (1 - beta) * bank + beta * patches[chosen]
    return bank


def greedy_k_centre(points: Array, k: int, first: int) -> list[int]:
    """Each next pick is the point farthest from its nearest pick; the lower row first among equals."""
    picks = [first]
    while len(picks) < k:
        free = [row for row in range(len(points)) if row not in picks]
        cover = [min(sq_distance(points[row], points[pick]) for pick in picks) for row in free]
        picks.append(free[cover.index(max(cover))])
    return picks

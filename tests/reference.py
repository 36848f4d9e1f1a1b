"""The paper's arithmetic in float64 and plain loops, written from the equations: the oracle of the tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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
    """L_att and L_rep (Eqs. 1-2); L_rep is zero where J is."""
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
    patches: Array,
    bank: Array,
    *,
    attract: int,
    repel: int,
    radius: float,
    margin: float,
    neighbors: Sequence[Sequence[int]] | None = None,
) -> tuple[Array, float]:
    """Gradient of Eq. 3 in the patches (n, D') and in the radius.

    Where the K-th and the next memory are equally far, either may be the one that pulls: `neighbors`
    says which, as the rows of the K + J nearest of each patch.
    """
    gradient = np.zeros_like(patches)
    by_radius = 0.0
    count = len(patches)
    for number, patch in enumerate(patches):
        ids = nearest(patch, bank, attract + repel) if neighbors is None else neighbors[number]
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


class AdamW:
    """One parameter's AdamW (Loshchilov and Hutter, 2019) with the maximum of AMSGrad (Reddi et al., 2018).

    As torch has it: the maximum is taken before the bias is corrected, and the decay comes first.
    """

    def __init__(self, *, learning_rate: float, weight_decay: float) -> None:
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.steps = 0
        self.first: Array | float = 0.0
        self.second: Array | float = 0.0
        self.largest: Array | float = 0.0

    def step(self, value: Array, gradient: Array | float) -> Array:
        """The parameter after an update."""
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * np.square(gradient)
        self.largest = np.maximum(self.largest, self.second)
        first = self.first / (1 - 0.9**self.steps)
        root = np.sqrt(self.largest) / math.sqrt(1 - 0.999**self.steps)
        decayed = value * (1 - self.learning_rate * self.weight_decay)
        return np.asarray(decayed - self.learning_rate * first / (root + 1e-8))


def training(
    images: Mapping[int, Array],
    bank: Array,
    weight: Array,
    bias: Array,
    radius: float,
    *,
    epochs: Sequence[Sequence[Sequence[int]]],
    attract: int,
    repel: int,
    margin: float,
    learning_rate: float,
    weight_decay: float,
    loss_scale: float,
    learn_radius: bool,
) -> list[tuple[float, float, float, float]]:
    """Minimise Eq. 3 over phi(p) = W p + b and, when it is learned, over r, on which there is no decay.

    Args:
        images: (T, D + 2) each, by number: the patches with their coordinates.
        bank: (M, D').
        weight, bias: (D', D + 2) and (D',), where phi starts.
        radius: where r starts.
        epochs: of each epoch its batches, of each batch its images.

    Returns:
        For each epoch L_att, L_rep and the mean distance to the K nearest, as means over its images of
        what each step saw, and r at its end.
    """
    of_weight = AdamW(learning_rate=learning_rate, weight_decay=weight_decay)
    of_bias = AdamW(learning_rate=learning_rate, weight_decay=weight_decay)
    of_radius = AdamW(learning_rate=learning_rate, weight_decay=0.0)
    log = []
    for batches in epochs:
        attraction = repulsion = distance = 0.0
        for batch in batches:
            inputs = np.concatenate([images[image] for image in batch])
            patches = np.stack([weight @ patch + bias for patch in inputs])
            l_att, l_rep = losses(patches, bank, attract=attract, repel=repel, radius=radius, margin=margin)
            attraction += l_att * len(batch)
            repulsion += l_rep * len(batch)
            for patch in patches:
                for row in nearest(patch, bank, attract):
                    distance += (
                        math.sqrt(sq_distance(patch, bank[row])) * len(batch) / (len(patches) * attract)
                    )
            by_patch, by_radius = loss_gradients(
                patches, bank, attract=attract, repel=repel, radius=radius, margin=margin
            )
            by_weight = sum(np.outer(g, patch) for g, patch in zip(by_patch, inputs, strict=True))
            weight = of_weight.step(weight, loss_scale * np.asarray(by_weight))
            bias = of_bias.step(bias, loss_scale * by_patch.sum(axis=0))
            if learn_radius:
                radius = float(of_radius.step(np.asarray(radius), loss_scale * by_radius))
        count = sum(len(batch) for batch in batches)
        log.append((attraction / count, repulsion / count, radius, distance / count))
    return log


def greedy_k_centre(points: Array, k: int, first: int) -> list[int]:
    """Each next pick is the point farthest from its nearest pick; the lower row first among equals."""
    picks = [first]
    while len(picks) < k:
        free = [row for row in range(len(points)) if row not in picks]
        cover = [min(sq_distance(points[row], points[pick]) for pick in picks) for row in free]
        picks.append(free[cover.index(max(cover))])
    return picks

"""One training, watched: what the loss, the distances and the AUROC do in each epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.adaptation.cases import Case
from benchmarks.adaptation.cells import Cells, Pyramids, batches
from cfa_index import (
    DescriptorSpec,
    HypersphereLoss,
    MapMaker,
    MemoryBank,
    PatchDescriptor,
    auroc,
    image_scores,
    initial_descriptor,
    kmeans,
    neighbor_sq_distances,
)

ATTRACT = 3
_CPU = torch.device("cpu")
_SAMPLE = 40_000
_NEGATIVE_NOISE = 2.0
"""Norm of the noise of a negative, in median distances to the K-th memory."""


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One epoch; epoch 0 is before training, where the losses are those of the fit cells.

    Attributes:
        attraction, repulsion: L_att and L_rep, means over the epoch.
        repelled: share of the repelling terms that are not zero.
        radius: r.
        distance_normal, distance_doubtful: rooted, to the nearest memory, mean over all patches.
        distance_top_normal, distance_top_doubtful: mean over the images of the highest 1%.
        spread: root mean squared distance of held-out patches to their mean: what a collapse lowers.
        image_auroc: held-out good against doubtful, Eq. 4.
    """

    epoch: int
    attraction: float
    repulsion: float
    repelled: float
    radius: float
    distance_normal: float
    distance_doubtful: float
    distance_top_normal: float
    distance_top_doubtful: float
    spread: float
    image_auroc: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def watch(
    case: Case, cells: Cells, *, memories: int, epochs: int, images: int, seed: int
) -> Iterator[EpochRow]:
    """Train one case, giving a row before training and one after each epoch.

    Args:
        case: what to train.
        cells: what on.
        memories: M of a k-means bank.
        epochs: how long.
        images: fit cells of an epoch; the bank sees all.
        seed: of every draw.
    """
    channels = [level.shape[1] for level in cells.fit]
    spec = DescriptorSpec(init=case.init, standardise=case.init != "torch")
    phi_0 = initial_descriptor(spec, channels, cells.moments, seed=seed)
    phi = copy.deepcopy(phi_0)
    bank = _bank(case, cells, phi_0, memories, seed)
    to_kth, to_last = _sq_distance_quantiles(phi_0, bank, cells, ATTRACT + max(case.repel, 1))
    starts = {"published": 1e-5, "median": to_kth**0.5, "beyond": to_last**0.5}
    margin = 0.1 if case.margin is None else case.margin * to_kth
    loss = HypersphereLoss(
        attract=ATTRACT, repel=case.repel, margin=margin, radius=starts[case.radius]
    ).requires_grad_(case.learn_radius)
    optimizer = torch.optim.AdamW(
        [
            {"params": list(phi.parameters()), "weight_decay": 5e-4},
            {"params": [loss.radius], "weight_decay": 0.0},
        ],
        lr=case.learning_rate,
        amsgrad=True,
    )
    rows = np.arange(min(images, cells.images))
    losses = _losses(phi, bank, loss, cells, rows.tolist())
    yield _row(0, losses, loss, phi, bank, cells)
    for epoch in range(1, epochs + 1):
        order = np.random.default_rng([seed, epoch]).permutation(rows).tolist()
        totals = np.zeros(3)
        for part, levels in batches(cells.fit, order, 4):
            patches = phi(levels).flatten(0, 1)
            found = bank.search(patches.detach(), ATTRACT + case.repel)
            sq_distances = neighbor_sq_distances(patches, bank.tensor, found.ids, found.sq_distances)
            terms = loss(sq_distances)
            total = terms.total
            if case.anchor:
                with torch.no_grad():
                    start = phi_0(levels).flatten(0, 1)
                total = total + case.anchor * (patches - start).square().sum(1).mean()
            if case.negatives != "none":
                negatives = _negatives(case, cells, phi, levels, part, to_kth, seed, epoch)
                total = total + _keep_off(negatives, bank, loss, margin)
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
            totals += len(part) * np.array(_figures(terms.attraction, terms.repulsion, sq_distances, loss))
        if case.refresh:
            bank = _refreshed(bank, phi, cells)
        yield _row(epoch, totals / len(order), loss, phi, bank, cells)


def _negatives(
    case: Case,
    cells: Cells,
    phi: PatchDescriptor,
    levels: Pyramids,
    part: list[int],
    sq_scale: float,
    seed: int,
    epoch: int,
) -> Tensor:
    """Adapted patches (n, D') that should stay away from the bank."""
    generator = torch.Generator().manual_seed(1_000_000 * seed + 10_000 * epoch + part[0])
    if case.negatives == "noise":
        patches: Tensor = phi(levels).flatten(0, 1)
        noise = torch.randn(patches.shape, generator=generator)
        return patches + noise * _NEGATIVE_NOISE * math.sqrt(sq_scale / patches.shape[1])
    rows = torch.randint(len(cells.masks), (len(part),), generator=generator)
    drawn: Tensor = phi([level[rows] for level in cells.drawn])
    return drawn[cells.masks[rows]]


def _keep_off(negatives: Tensor, bank: MemoryBank, loss: HypersphereLoss, margin: float) -> Tensor:
    """Mean of max(0, r^2 + alpha - d^2) over the nearest memory of each negative."""
    if not len(negatives):
        return negatives.sum()
    found = bank.search(negatives.detach(), 1)
    sq_distances = neighbor_sq_distances(negatives, bank.tensor, found.ids, found.sq_distances)
    return (loss.radius.square() + margin - sq_distances).clamp_min(0).mean()


def _figures(
    attraction: Tensor, repulsion: Tensor, sq_distances: Tensor, loss: HypersphereLoss
) -> tuple[float, float, float]:
    following = sq_distances.detach()[:, ATTRACT:]
    active = (loss.radius.detach().square() - following - loss.margin > 0).float()
    return (
        float(attraction.detach()),
        float(repulsion.detach()),
        float(active.mean()) if active.numel() else 0.0,
    )


@torch.no_grad()
def _losses(
    phi: PatchDescriptor, bank: MemoryBank, loss: HypersphereLoss, cells: Cells, rows: list[int]
) -> NDArray[np.float64]:
    totals = np.zeros(3)
    for part, levels in batches(cells.fit, rows, 8):
        found = bank.search(phi(levels).flatten(0, 1), ATTRACT + loss.repel)
        terms = loss(found.sq_distances)
        totals += len(part) * np.array(_figures(terms.attraction, terms.repulsion, found.sq_distances, loss))
    return totals / len(rows)


@torch.no_grad()
def _row(
    epoch: int,
    losses: NDArray[np.float64],
    loss: HypersphereLoss,
    phi: PatchDescriptor,
    bank: MemoryBank,
    cells: Cells,
) -> EpochRow:
    good, spread = _distances(phi, bank, cells.good)
    doubtful, _ = _distances(phi, bank, cells.doubtful)
    make = MapMaker(cells.features.grid, cells.features.size_px, 4.0)
    scores = [image_scores(make(part.view(-1, *cells.features.grid))) for part in (good, doubtful)]
    labels = np.arange(len(good) + len(doubtful)) >= len(good)
    value = auroc(labels, torch.cat(scores).numpy())
    assert value is not None
    top = max(1, good.shape[1] // 100)
    return EpochRow(
        epoch=epoch,
        attraction=float(losses[0]),
        repulsion=float(losses[1]),
        repelled=float(losses[2]),
        radius=float(loss.radius.detach()),
        distance_normal=float(good.mean()),
        distance_doubtful=float(doubtful.mean()),
        distance_top_normal=float(good.topk(top).values.mean()),
        distance_top_doubtful=float(doubtful.topk(top).values.mean()),
        spread=spread,
        image_auroc=value,
    )


def _distances(phi: PatchDescriptor, bank: MemoryBank, levels: Pyramids) -> tuple[Tensor, float]:
    """Rooted distances (n, h*w) to the nearest memory, and the spread of the patches."""
    folded = phi.folded()
    distances, means, squares = [], [], []
    for _, part in batches(levels, range(len(levels[0])), 8):
        patches = folded(part)
        means.append(patches.mean((0, 1)) * len(patches))
        squares.append(patches.square().sum(2).mean() * len(patches))
        found = bank.search(patches.flatten(0, 1), 1)
        distances.append(found.sq_distances.sqrt().view(len(patches), -1))
    count = len(levels[0])
    mean = torch.stack(means).sum(0) / count
    spread = torch.stack(squares).sum() / count - mean.square().sum()
    return torch.cat(distances), float(spread.clamp_min(0).sqrt())


@torch.no_grad()
def _bank(case: Case, cells: Cells, phi: PatchDescriptor, memories: int, seed: int) -> MemoryBank:
    folded = phi.folded()
    if case.bank == "mean":
        total = torch.stack(
            [folded(part).sum(0) for _, part in batches(cells.fit, range(cells.images), 8)]
        ).sum(0)
        return MemoryBank((total / cells.images).numpy(), _CPU)
    quota = -(-_SAMPLE // cells.images)
    draw = np.random.default_rng(seed)
    sample = []
    for _, part in batches(cells.fit, range(cells.images), 8):
        patches = folded(part)
        picked = draw.choice(patches.shape[1], size=min(quota, patches.shape[1]), replace=False)
        sample.append(patches[:, picked].flatten(0, 1))
    vectors = kmeans(torch.cat(sample).numpy(), memories, iterations=10, seed=seed)
    return MemoryBank(vectors, _CPU)


@torch.no_grad()
def _refreshed(bank: MemoryBank, phi: PatchDescriptor, cells: Cells) -> MemoryBank:
    """Each memory at the mean of the patches that it is nearest to, under phi as it is now."""
    total = torch.zeros_like(bank.tensor)
    counts = torch.zeros(len(bank))
    for _, part in batches(cells.fit, range(0, cells.images, 2), 8):
        patches = phi(part).flatten(0, 1)
        ids = bank.search(patches, 1).ids[:, 0]
        total.index_add_(0, ids, patches)
        counts += torch.bincount(ids, minlength=len(bank))
    moved = torch.where(counts[:, None] > 0, total / counts.clamp_min(1)[:, None], bank.tensor)
    return MemoryBank(moved.numpy(), _CPU)


@torch.no_grad()
def _sq_distance_quantiles(
    phi: PatchDescriptor, bank: MemoryBank, cells: Cells, last: int
) -> tuple[float, float]:
    """Medians of the squared distance of fit patches to their K-th and to their last memory."""
    found = bank.search(phi([level[:32] for level in cells.fit]).flatten(0, 1), last).sq_distances
    return float(found[:, ATTRACT - 1].median()), float(found[:, -1].median())

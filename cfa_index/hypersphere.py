"""The coupled hypersphere: losses and scores from distances to the nearest memories (Eqs. 1-5).

Losses work on *squared* distances (Eqs. 1-3), scores on *rooted* ones (Eqs. 4-5). Distances come
from a FAISS index, which no gradient passes; `neighbor_sq_distances` gives them one back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _NeighborSqDistances(torch.autograd.Function):
    """||phi - c||^2 with values from the index and the exact gradient.

    d/dphi sum_k g_k ||phi - c_k||^2 = 2 (sum_k g_k) phi - 2 sum_k g_k c_k. The last term is a
    weighted bag of memories, so no (n, k, D') gather is made. On a card one thread sums a number of a bag in the
    order of the ids (torch's EmbeddingBag.cu, forward, sum): nothing is added atomically, and nothing waits.
    """

    @staticmethod
    def forward(ctx: Any, phi: Tensor, vectors: Tensor, ids: Tensor, sq_distances: Tensor) -> Tensor:
        ctx.save_for_backward(phi, vectors, ids)
        return sq_distances.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        phi, vectors, ids = ctx.saved_tensors
        weights = gradients[0].contiguous()
        bags = F.embedding_bag(ids, vectors, per_sample_weights=weights, mode="sum")
        return torch.addcmul(bags.mul_(-2), phi, weights.sum(dim=1, keepdim=True), value=2), None, None, None


def neighbor_sq_distances(phi: Tensor, vectors: Tensor, ids: Tensor, sq_distances: Tensor) -> Tensor:
    """Squared distances of each patch to its neighbours, differentiable in phi.

    Args:
        phi: (n, D') float32, the adapted patches.
        vectors: (M, D') float32, the bank.
        ids: (n, k) int64, rows of the bank.
        sq_distances: (n, k) float32, ||phi - vectors[ids]||^2 as the index gave them.

    Returns:
        (n, k) float32: `sq_distances` clamped at zero (the index's rounding can go below).
    """
    result: Tensor = _NeighborSqDistances.apply(phi, vectors, ids, sq_distances)
    return result


def attraction_loss(sq_distances: Tensor, sq_radius: Tensor) -> Tensor:
    """L_att, Eq. 1: mean over patches and the K nearest memories of max(0, d^2 - r^2); (n, K) -> ()."""
    return (sq_distances - sq_radius).clamp_min(0).mean()


def repulsion_loss(sq_distances: Tensor, sq_radius: Tensor, margin: float) -> Tensor:
    """L_rep, Eq. 2: mean over patches and the J next memories of max(0, r^2 - d^2 - alpha).

    (n, J) -> (); zero when J = 0.
    """
    if sq_distances.shape[1] == 0:
        return sq_distances.new_zeros(())
    return (sq_radius - sq_distances - margin).clamp_min(0).mean()


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """L_att and L_rep, scalars with gradients; Eq. 3 is their sum."""

    attraction: Tensor
    repulsion: Tensor

    @property
    def total(self) -> Tensor:
        """L_CFA = L_att + L_rep, Eq. 3."""
        return self.attraction + self.repulsion


class HypersphereLoss(nn.Module):
    """L_CFA (Eq. 3) with its learned radius r.

    Args:
        attract: K, how many nearest memories pull.
        repel: J, how many of the next ones push; K and J are independent.
        margin: alpha, on squared distances.
        radius: where r starts.
    """

    def __init__(self, *, attract: int, repel: int, margin: float, radius: float) -> None:
        super().__init__()
        self.attract = attract
        self.repel = repel
        self.margin = margin
        self.radius = nn.Parameter(torch.tensor(float(radius)))

    def forward(self, sq_distances: Tensor) -> LossTerms:
        """Terms of the loss from (n, K+J) ascending squared distances."""
        sq_radius = self.radius.square()
        near = sq_distances[:, : self.attract]
        next_ones = sq_distances[:, self.attract : self.attract + self.repel]
        return LossTerms(
            attraction=attraction_loss(near, sq_radius),
            repulsion=repulsion_loss(next_ones, sq_radius, self.margin),
        )


def nearest_distances(sq_distances: Tensor) -> Tensor:
    """Anomaly score of each patch, Eq. 4 alone: (n, K) squared distances -> (n,) the smallest, rooted."""
    return sq_distances.amin(dim=1).clamp_min(0).sqrt()


def certainty_scores(sq_distances: Tensor) -> Tensor:
    """Anomaly score of each patch, Eqs. 4-5: (n, K) squared distances -> (n,), float32.

    S = min_k d_k; A = S exp(-S) / sum_k exp(-d_k), written as S / sum_k exp(S - d_k), which
    neither under- nor overflows: every exponent is at most zero and one of them is zero.
    """
    distances = sq_distances.clamp_min(0).sqrt()
    nearest = distances.amin(dim=1, keepdim=True)
    return nearest[:, 0] / (nearest - distances).exp().sum(dim=1)

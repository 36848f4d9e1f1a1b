from __future__ import annotations

import math

import pytest
import torch

from cfa_index.hypersphere import (
    HypersphereLoss,
    attraction_loss,
    certainty_scores,
    nearest_distances,
    repulsion_loss,
)


def test_losses_by_hand_with_k_other_than_j() -> None:
    # r^2 = 4, alpha = 0.5, K = 2, J = 1; squared distances 1, 6, 3.
    loss = HypersphereLoss(attract=2, repel=1, margin=0.5, radius=2.0)
    terms = loss(torch.tensor([[1.0, 6.0, 3.0]]))
    assert terms.attraction.item() == pytest.approx((0 + 2) / 2)
    assert terms.repulsion.item() == pytest.approx(4 - 3 - 0.5)
    assert terms.total.item() == pytest.approx(1.5)


def test_without_repelling_neighbours_l_rep_is_zero() -> None:
    assert repulsion_loss(torch.empty(5, 0), torch.tensor(9.0), 0.1).item() == 0


def test_the_radius_moves_with_the_gradient_of_both_losses() -> None:
    loss = HypersphereLoss(attract=1, repel=1, margin=0.1, radius=2.0)
    assert [name for name, _ in loss.named_parameters()] == ["radius"]
    torch.autograd.backward([loss(torch.tensor([[5.0, 9.0]])).total])
    assert loss.radius.grad is not None
    assert loss.radius.grad.item() == pytest.approx(-4.0)  # d/dr of 5 - r^2
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    optimizer.step()
    assert loss.radius.item() == pytest.approx(2.4)


def test_attraction_has_no_gradient_inside_the_sphere() -> None:
    sq_distances = torch.tensor([[0.5]], requires_grad=True)
    torch.autograd.backward([attraction_loss(sq_distances, torch.tensor(1.0))])
    assert sq_distances.grad is not None
    assert sq_distances.grad.item() == 0


def test_certainty_score_by_hand() -> None:
    # Distances 1 and 2: S = 1, weight = e^-1 / (e^-1 + e^-2) = 1 / (1 + e^-1).
    assert certainty_scores(torch.tensor([[1.0, 4.0]])).item() == pytest.approx(1 / (1 + math.exp(-1)))
    assert certainty_scores(torch.tensor([[9.0]])).item() == pytest.approx(3.0)


def test_eq_4_alone_is_the_smallest_distance() -> None:
    assert nearest_distances(torch.tensor([[4.0, 9.0], [16.0, 1.0], [-1e-9, 1.0]])).tolist() == [
        2.0,
        1.0,
        0.0,
    ]


def test_certainty_scores_stay_finite_at_the_extremes() -> None:
    far = certainty_scores(torch.tensor([[1e12, 1e12, 1e12], [0.0, 0.0, 0.0], [-1e-6, 0.0, 4.0]]))
    assert torch.isfinite(far).all()
    assert far[0].item() == pytest.approx(1e6 / 3)
    assert far[1].item() == 0

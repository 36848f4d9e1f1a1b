from __future__ import annotations

import math

import pytest
import torch

from cfa_index.hypersphere import (
    HypersphereLoss,
    attraction_loss,
    certainty_scores,
    nearest_distances,
    neighbor_sq_distances,
    repulsion_loss,
)


def test_losses_by_hand_with_k_other_than_j(device: torch.device) -> None:
    # r^2 = 4, alpha = 0.5, K = 2, J = 1; squared distances 1, 6, 3.
    loss = HypersphereLoss(attract=2, repel=1, margin=0.5, radius=2.0).to(device)
    terms = loss(torch.tensor([[1.0, 6.0, 3.0]]).to(device))
    assert terms.attraction.cpu().item() == pytest.approx((0 + 2) / 2)
    assert terms.repulsion.cpu().item() == pytest.approx(4 - 3 - 0.5)
    assert terms.total.cpu().item() == pytest.approx(1.5)


def test_without_repelling_neighbours_l_rep_is_zero(device: torch.device) -> None:
    l_rep = repulsion_loss(torch.empty(5, 0).to(device), torch.tensor(9.0).to(device), 0.1)
    assert l_rep.cpu().item() == 0


def test_the_radius_moves_with_the_gradient_of_both_losses(device: torch.device) -> None:
    loss = HypersphereLoss(attract=1, repel=1, margin=0.1, radius=2.0).to(device)
    assert [name for name, _ in loss.named_parameters()] == ["radius"]
    torch.autograd.backward([loss(torch.tensor([[5.0, 9.0]]).to(device)).total])
    assert loss.radius.grad is not None
    assert loss.radius.grad.cpu().item() == pytest.approx(-4.0)  # d/dr of 5 - r^2
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    optimizer.step()
    assert loss.radius.cpu().item() == pytest.approx(2.4)


def test_attraction_has_no_gradient_inside_the_sphere(device: torch.device) -> None:
    sq_distances = torch.tensor([[0.5]]).to(device).requires_grad_()
    torch.autograd.backward([attraction_loss(sq_distances, torch.tensor(1.0).to(device))])
    assert sq_distances.grad is not None
    assert sq_distances.grad.cpu().item() == 0


def test_the_gradient_of_distances_is_that_of_a_gather(device: torch.device) -> None:
    """2 (sum g) phi - 2 sum g c, without the (n, k, D') gather, against autograd through one in float64."""
    generator = torch.Generator().manual_seed(0)
    phi, vectors = torch.randn(7, 5, generator=generator), torch.randn(9, 5, generator=generator)
    ids = torch.randint(0, 9, (7, 3), generator=generator)
    weights = torch.randn(7, 3, generator=generator)
    exact = phi.double().requires_grad_()
    sq_distances = (exact[:, None] - vectors.double()[ids]).square().sum(dim=2)
    torch.autograd.backward([(sq_distances * weights).sum()])
    leaf = phi.to(device).requires_grad_()
    got = neighbor_sq_distances(
        leaf, vectors.to(device), ids.to(device), sq_distances.detach().float().to(device)
    )
    torch.autograd.backward([(got * weights.to(device)).sum()])
    assert leaf.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(leaf.grad.cpu(), exact.grad.float(), rtol=1e-5, atol=1e-5)


def test_certainty_score_by_hand(device: torch.device) -> None:
    # Distances 1 and 2: S = 1, weight = e^-1 / (e^-1 + e^-2) = 1 / (1 + e^-1).
    two, one = torch.tensor([[1.0, 4.0]]).to(device), torch.tensor([[9.0]]).to(device)
    assert certainty_scores(two).cpu().item() == pytest.approx(1 / (1 + math.exp(-1)))
    assert certainty_scores(one).cpu().item() == pytest.approx(3.0)


def test_eq_4_alone_is_the_smallest_distance(device: torch.device) -> None:
    sq_distances = torch.tensor([[4.0, 9.0], [16.0, 1.0], [-1e-9, 1.0]]).to(device)
    assert nearest_distances(sq_distances).cpu().tolist() == [2.0, 1.0, 0.0]


def test_certainty_scores_stay_finite_at_the_extremes(device: torch.device) -> None:
    sq_distances = torch.tensor([[1e12, 1e12, 1e12], [0.0, 0.0, 0.0], [-1e-6, 0.0, 4.0]]).to(device)
    far = certainty_scores(sq_distances).cpu()
    assert torch.isfinite(far).all()
    assert far[0].item() == pytest.approx(1e6 / 3)
    assert far[1].item() == 0

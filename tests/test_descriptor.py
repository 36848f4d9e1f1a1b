from __future__ import annotations

import numpy as np
import pytest
import reference
import torch

from cfa_index.descriptor import PatchDescriptor, coordinates, initial_descriptor
from cfa_index.errors import SpecError
from cfa_index.moments import Moments, RunningMoments
from cfa_index.pyramid import patches
from cfa_index.specs import DescriptorSpec, Initialisation

CHANNELS = (6, 10, 14)


def pyramid(batch: int = 2, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, channels, side, side, generator=generator)
        for channels, side in zip(CHANNELS, (12, 6, 3), strict=True)
    ]


def moved(levels: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    return [level.to(device) for level in levels]


def moments_of(levels: list[torch.Tensor]) -> Moments:
    running = RunningMoments(sum(CHANNELS))
    running.update(patches(levels).flatten(0, 1).numpy())
    return running.result()


@pytest.mark.parametrize("init", ["he", "torch", "identity", "whiten"])
def test_level_by_level_equals_upsampling_first(init: Initialisation, device: torch.device) -> None:
    levels = pyramid()
    phi = initial_descriptor(DescriptorSpec(init=init), CHANNELS, moments_of(levels), seed=3)
    with torch.no_grad():
        phi.weight[:, -2:] = 0.3  # coordinates too
        weight, bias = phi.effective()
        got = phi.to(device)(moved(levels, device)).cpu()
    full = np.concatenate(
        [
            np.stack([reference.bilinear(image.numpy().astype(float), 12, 12) for image in level])
            for level in levels
        ],
        axis=1,
    )  # (B, D, h, w) float64
    cells = full.reshape(2, sum(CHANNELS), -1).transpose(0, 2, 1)
    xy = np.broadcast_to(coordinates((12, 12)).numpy(), (2, 144, 2))
    expected = np.concatenate([cells, xy], axis=2) @ weight.numpy().astype(float).T + bias.numpy()
    assert np.abs(got.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


def test_folding_the_standardisation_changes_nothing(device: torch.device) -> None:
    levels = moved(pyramid(), device)
    phi = initial_descriptor(DescriptorSpec(init="identity"), CHANNELS, moments_of(pyramid()), seed=0)
    folded = phi.to(device).folded()
    torch.testing.assert_close(folded(levels).cpu(), phi(levels).cpu())
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_identity_standardises_each_channel(device: torch.device) -> None:
    levels = pyramid(batch=8)
    phi = initial_descriptor(DescriptorSpec(init="identity"), CHANNELS, moments_of(levels), seed=0)
    adapted = phi.to(device)(moved(levels, device)).detach().flatten(0, 1).cpu()
    torch.testing.assert_close(adapted.mean(0), torch.zeros(30), atol=1e-4, rtol=0)
    torch.testing.assert_close(adapted.std(0, correction=0), torch.ones(30), atol=1e-3, rtol=0)


@pytest.mark.parametrize("gamma_d", [1.0, 0.5])
def test_whitened_patches_have_equal_variances_and_unit_norm(gamma_d: float) -> None:
    levels = pyramid(batch=8)
    spec = DescriptorSpec(init="whiten", gamma_d=gamma_d, shrinkage=0.0)
    phi = initial_descriptor(spec, CHANNELS, moments_of(levels), seed=0)
    adapted = phi(levels).detach().flatten(0, 1).numpy().astype(float)
    assert adapted.shape[1] == round(30 * gamma_d)
    covariance = adapted.shape[1] * np.cov(adapted.T, bias=True)
    np.testing.assert_allclose(covariance, np.eye(adapted.shape[1]), atol=2e-3)


def test_narrow_whitening_keeps_the_leading_directions() -> None:
    rng = np.random.default_rng(0)
    strong = rng.normal(size=(500, 1)) @ np.ones((1, 30))
    running = RunningMoments(30)
    running.update(strong + 0.01 * rng.normal(size=(500, 30)))
    spec = DescriptorSpec(init="whiten", gamma_d=1 / 30, standardise=False)
    phi = initial_descriptor(spec, CHANNELS, running.result(), seed=0)
    direction = phi.weight[0, :30].detach().numpy()
    assert np.abs(direction / np.linalg.norm(direction)) == pytest.approx(np.full(30, 30**-0.5), rel=0.05)


def test_shrinkage_bounds_what_a_dead_direction_can_gain() -> None:
    covariance = np.eye(30)
    covariance[0, 0] = 1e-12
    moments = Moments(count=100, mean=np.zeros(30), covariance=covariance)
    spec = DescriptorSpec(init="whiten", shrinkage=0.1)
    phi = initial_descriptor(spec, CHANNELS, moments, seed=0)
    weight, _ = phi.effective()
    assert weight.abs().max().item() < 36 / 30**0.5  # 1 / (0.1 * 0.913) / sqrt(0.1 * 0.967)


def test_he_has_the_paper_s_variance_and_a_seed() -> None:
    spec = DescriptorSpec(init="he", standardise=False)
    wide = (500, 500, 500)
    one, two = (initial_descriptor(spec, wide, None, seed=5) for _ in range(2))
    assert torch.equal(one.weight, two.weight)
    assert one.weight.std().item() == pytest.approx((2 / 1502) ** 0.5, rel=0.01)
    other = initial_descriptor(spec, wide, None, seed=6)
    assert not torch.equal(one.weight, other.weight)


def test_gradients_reach_weight_and_bias_only(device: torch.device) -> None:
    levels = pyramid()
    phi = initial_descriptor(DescriptorSpec(), CHANNELS, moments_of(levels), seed=0).to(device)
    torch.autograd.backward([phi(moved(levels, device)).square().mean()])
    assert {name for name, parameter in phi.named_parameters() if parameter.grad is not None} == {
        "weight",
        "bias",
    }


def test_gradients_agree_with_upsampling_first(device: torch.device) -> None:
    levels = pyramid()
    phi = initial_descriptor(DescriptorSpec(init="he", standardise=False), CHANNELS, None, seed=0)
    target = torch.randn(2, 144, 30, generator=torch.Generator().manual_seed(1))
    plain = phi.weight.detach().clone().requires_grad_()
    phi.to(device)
    torch.autograd.backward([(phi(moved(levels, device)) * target.to(device)).sum()])
    full = torch.cat([patches(levels), coordinates((12, 12)).expand(2, -1, -1)], dim=2)
    torch.autograd.backward([((full @ plain.T) * target).sum()])
    assert phi.weight.grad is not None
    assert plain.grad is not None
    torch.testing.assert_close(phi.weight.grad.cpu(), plain.grad, rtol=1e-4, atol=1e-4)


def test_missing_moments_are_an_error() -> None:
    with pytest.raises(SpecError, match="mean and covariance of 30-dimensional"):
        initial_descriptor(DescriptorSpec(init="whiten"), CHANNELS, None, seed=0)


def test_half_precision_levels_are_taken_as_they_come(device: torch.device) -> None:
    phi = initial_descriptor(DescriptorSpec(init="he", standardise=False), CHANNELS, None, seed=0).to(device)
    half = [level.half() for level in moved(pyramid(), device)]
    torch.testing.assert_close(phi(half).cpu(), phi([level.float() for level in half]).cpu())


def test_width_and_channels() -> None:
    phi = initial_descriptor(
        DescriptorSpec(init="he", gamma_d=0.25, standardise=False), CHANNELS, None, seed=0
    )
    assert isinstance(phi, PatchDescriptor)
    assert (phi.width, phi.channels) == (8, CHANNELS)

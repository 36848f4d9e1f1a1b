from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from cfa_index.bank import MemoryBank
from cfa_index.descriptor import coordinates, initial_descriptor
from cfa_index.hypersphere import neighbor_sq_distances
from cfa_index.pyramid import patches
from cfa_index.specs import DescriptorSpec, TrainSpec
from cfa_index.workflows.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from cfa_index.workflows.opening import split_held_out
from cfa_index.workflows.trainer import Trainer, restore, snapshot

CHANNELS = (5, 6)
CPU = torch.device("cpu")


def pyramid(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, 5, 6, 6, generator=generator),
        torch.randn(2, 6, 3, 3, generator=generator),
    ]


def trainer_of(spec: TrainSpec, radius: float, device: torch.device = CPU) -> Trainer:
    phi = initial_descriptor(DescriptorSpec(init="he", standardise=False), CHANNELS, None, seed=1)
    vectors = np.random.default_rng(2).normal(size=(20, 11)).astype(np.float32)
    return Trainer(phi.to(device), MemoryBank(vectors, device), spec, radius)


@pytest.mark.parametrize("radius", [1e-5, 2.0, 3.5])
@pytest.mark.parametrize("loss_scale", [1.0, 1000.0])
def test_steps_agree_with_a_naive_float64_training(
    radius: float, loss_scale: float, device: torch.device
) -> None:
    spec = TrainSpec(attract=3, repel=2, margin=0.1, learning_rate=1e-3, loss_scale=loss_scale, radius=radius)
    trainer = trainer_of(spec, radius, device)
    weight = trainer.descriptor.weight.detach().cpu().double().requires_grad_()
    bias = trainer.descriptor.bias.detach().cpu().double().requires_grad_()
    r = torch.tensor(radius, dtype=torch.float64, requires_grad=True)
    bank = torch.tensor(trainer.bank.vectors).double()
    optimizer = torch.optim.AdamW(
        [{"params": [weight, bias], "weight_decay": spec.weight_decay}, {"params": [r], "weight_decay": 0.0}],
        lr=spec.learning_rate,
        amsgrad=True,
    )
    for step in range(4):
        levels = pyramid(step)
        on_device = [level.to(device) for level in levels]
        attraction, repulsion, distance, radius_after = trainer.step(on_device).cpu().tolist()

        full = torch.cat([patches(levels), coordinates((6, 6)).expand(2, -1, -1)], dim=2).double()
        phi = (full @ weight.T + bias).flatten(0, 1)
        nearest = (phi[:, None] - bank[None]).square().sum(2).sort(dim=1).values
        near, following = nearest[:, :3], nearest[:, 3:5]
        l_att = (near - r**2).clamp_min(0).mean()
        l_rep = (r**2 - following - 0.1).clamp_min(0).mean()
        assert attraction == pytest.approx(l_att.item(), rel=1e-4)
        assert repulsion == pytest.approx(l_rep.item(), rel=1e-4, abs=1e-5)
        assert distance == pytest.approx(near.sqrt().mean().item(), rel=1e-4)
        optimizer.zero_grad()
        torch.autograd.backward([loss_scale * (l_att + l_rep)])
        optimizer.step()
        assert radius_after == pytest.approx(r.item(), rel=1e-4)
    torch.testing.assert_close(trainer.descriptor.weight.cpu().double(), weight, rtol=1e-3, atol=2e-5)
    moved = trainer.loss.radius.cpu().item()
    assert moved == pytest.approx(r.item(), rel=1e-4)
    assert moved != pytest.approx(radius, rel=1e-4)  # the radius moves


def test_a_step_is_what_it_was_when_the_host_waited_for_each_figure() -> None:
    """Bit for bit: patches picked by a mask, figures read one by one, an optimiser with its own defaults."""
    spec = TrainSpec(attract=3, repel=2, learning_rate=1e-3, weight_decay=0.1, loss_scale=10.0)
    ours, plain = trainer_of(spec, 3.5), trainer_of(spec, 3.5)
    phi, loss = plain.descriptor, plain.loss
    optimizer = torch.optim.AdamW(
        [
            {"params": list(phi.parameters()), "weight_decay": 0.1},
            {"params": [loss.radius], "weight_decay": 0.0},
        ],
        lr=1e-3,
        amsgrad=True,
    )
    inspected = torch.rand(2, 36, generator=torch.Generator().manual_seed(5)) < 0.6
    for number in range(6):
        levels, masked = pyramid(number), number % 2 == 1
        patches = phi(levels)[inspected] if masked else phi(levels).flatten(0, 1)
        found = plain.bank.search(patches.detach(), 5)
        terms = loss(neighbor_sq_distances(patches, plain.bank.tensor, found.ids, found.sq_distances))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([terms.total * 10.0])
        optimizer.step()
        distance = found.sq_distances[:, :3].sqrt().mean()
        expected = [
            float(term.detach()) for term in (terms.attraction, terms.repulsion, distance, loss.radius)
        ]
        figures = ours.step(levels, inspected.flatten().nonzero()[:, 0] if masked else None)
        assert figures.tolist() == expected
    assert torch.equal(ours.descriptor.weight, phi.weight)
    assert torch.equal(ours.descriptor.bias, phi.bias)
    # As computed before the figures stayed on the device; other machines round a little otherwise.
    assert figures.tolist() == pytest.approx(
        [2.6639444828, 0.5373455882, 3.4588904381, 3.5059275627], rel=1e-5
    )
    assert phi.weight.detach().double().square().sum().item() == pytest.approx(21.63102295096793, rel=1e-6)


def test_no_weight_decay_on_the_radius(device: torch.device) -> None:
    # Everything inside the sphere and nothing to repel: no gradient, so only decay could move r.
    trainer = trainer_of(TrainSpec(repel=0, weight_decay=0.5), radius=100.0, device=device)
    before = trainer.descriptor.weight.detach().cpu().clone()
    trainer.step([level.to(device) for level in pyramid(0)])
    assert trainer.loss.radius.cpu().item() == 100.0
    assert not torch.equal(before, trainer.descriptor.weight.cpu())


def test_patches_that_are_not_inspected_do_not_count(device: torch.device) -> None:
    spec = TrainSpec(radius=2.0)
    masked, alone = trainer_of(spec, 2.0, device), trainer_of(spec, 2.0, device)
    levels = [level.to(device) for level in pyramid(0)]
    masked.step(levels, torch.arange(36).to(device))
    alone.step([level[:1] for level in levels])
    torch.testing.assert_close(masked.descriptor.weight.cpu(), alone.descriptor.weight.cpu())


def test_a_flipped_byte_in_a_checkpoint_starts_over(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"who": "a"}, snapshot(trainer_of(TrainSpec(), 2.0), []))
    file = tmp_path / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert read_checkpoint(tmp_path, {"who": "a"}) is None


def test_a_checkpoint_gives_the_trainer_back(tmp_path: Path) -> None:
    spec = TrainSpec(learning_rate=1e-2)
    unbroken, broken = trainer_of(spec, 2.0), trainer_of(spec, 2.0)
    for seed in range(3):
        unbroken.step(pyramid(seed))
    broken.step(pyramid(0))
    write_checkpoint(tmp_path, {"who": "a"}, snapshot(broken, []))
    found = read_checkpoint(tmp_path, {"who": "a"})
    assert isinstance(found, Checkpoint)
    resumed = trainer_of(spec, 2.0)
    assert restore(resumed, found) == []
    for seed in (1, 2):
        resumed.step(pyramid(seed))
    assert torch.equal(resumed.descriptor.weight, unbroken.descriptor.weight)
    assert resumed.loss.radius.item() == unbroken.loss.radius.item()


def test_another_training_s_checkpoint_is_not_taken(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"who": "a"}, snapshot(trainer_of(TrainSpec(), 2.0), []))
    assert read_checkpoint(tmp_path, {"who": "b"}) is None
    assert read_checkpoint(tmp_path / "nowhere", {"who": "a"}) is None


def test_a_damaged_checkpoint_starts_over(tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"half a file")
    assert read_checkpoint(tmp_path, {"who": "a"}) is None


@given(st.integers(1, 200), st.floats(0, 0.99), st.integers(0, 5))
def test_held_out_images_are_a_seeded_share_and_never_all(count: int, share: float, seed: int) -> None:
    rows = list(range(3, 3 + count))
    fit, held = split_held_out(rows, share, seed)
    assert sorted(fit + held) == rows
    assert fit
    assert len(held) == min(int(count * share), count - 1)
    assert (fit, held) == split_held_out(rows, share, seed)

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from scipy import ndimage

from cfa_index.backbones import Backbone, load_backbone
from cfa_index.bank import MemoryBank
from cfa_index.descriptor import PatchDescriptor, initial_descriptor
from cfa_index.images import Frame, frame_of
from cfa_index.pyramid import patches
from cfa_index.scorer import Scorer
from cfa_index.specs import DescriptorSpec, FeatureSpec, Geometry, PatchScore, ScoreSpec


def make(
    device: torch.device, geometry: Geometry = "whole", patch_score: PatchScore = "certainty"
) -> tuple[Scorer, Backbone, PatchDescriptor]:
    features = FeatureSpec(backbone="resnet18", strides=(8, 16), size_px=64, geometry=geometry)
    backbone = load_backbone("resnet18", (8, 16), size_px=64, weights="random", seed=0)
    phi = initial_descriptor(
        DescriptorSpec(init="he", gamma_d=0.1, standardise=False), backbone.channels, None, seed=0
    )
    vectors = np.random.default_rng(0).normal(size=(40, phi.width)).astype(np.float32)
    bank = MemoryBank(vectors, device)
    scorer = Scorer(
        backbone.to(device),
        phi.to(device),
        bank,
        features=features,
        score=ScoreSpec(neighbors=4, patch_score=patch_score, sigma_px=2.0),
    )
    return scorer, backbone, phi


def frames(count: int, geometry: Geometry = "whole") -> list[Frame]:
    return [frame_of(64, 32, FeatureSpec(backbone="resnet18", size_px=64, geometry=geometry))] * count


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("patch_score", ["certainty", "nearest"])
def test_the_whole_way_agrees_with_plain_arithmetic(patch_score: PatchScore, device: torch.device) -> None:
    """From the pyramid that the device's own network gives: what that rounds is its own."""
    scorer, backbone, phi = make(device, patch_score=patch_score)
    # Distances are near 100 here: what float32 rounds off them is an exponent in Eq. 5.
    rel = 1e-4 if patch_score == "certainty" or device.type == "cuda" else 1e-5
    batch = pixels(2)
    got = scorer.score_pixels(batch, frames(2))
    full = patches([level.cpu() for level in backbone.pyramid(batch.to(device))]).numpy().astype(float)
    weight, bias = (tensor.detach().cpu().numpy().astype(float) for tensor in (phi.weight, phi.bias))
    y, x = np.meshgrid(np.linspace(-1, 1, 8), np.linspace(-1, 1, 8), indexing="ij")
    xy = np.stack([x.ravel(), y.ravel()], axis=1)
    bank = scorer.bank.vectors.astype(float)
    for number in range(2):
        adapted = np.concatenate([full[number], xy], axis=1) @ weight.T + bias
        grid = np.zeros(64)
        for cell, patch in enumerate(adapted):
            ids = reference.nearest(patch, bank, 4)
            distances = [reference.sq_distance(patch, bank[row]) ** 0.5 for row in ids]
            grid[cell] = (
                reference.certainty_score(distances) if patch_score == "certainty" else min(distances)
            )
        np.testing.assert_allclose(got.patch_scores[number].cpu().numpy().ravel(), grid, rtol=rel)
        upsampled = reference.bilinear(grid.reshape(1, 8, 8), 64, 64)[0]
        expected = ndimage.gaussian_filter(upsampled, 2.0)
        np.testing.assert_allclose(got.maps[number].cpu().numpy(), expected, rtol=rel)
        assert got.scores[number].cpu().item() == pytest.approx(expected.max(), rel=rel)


def test_a_score_does_not_depend_on_its_batch(device: torch.device) -> None:
    scorer, _, _ = make(device)
    batch = pixels(5)
    together = scorer.score_pixels(batch, frames(5)).scores.cpu()
    alone = torch.cat([scorer.score_pixels(batch[i : i + 1], frames(1)).scores.cpu() for i in range(5)])
    # On a card another batch may get another algorithm for a convolution, which rounds otherwise.
    torch.testing.assert_close(together, alone, rtol=1e-3 if device.type == "cuda" else 1e-5, atol=0)


def test_a_stored_pyramid_scores_like_its_image_up_to_half_precision(device: torch.device) -> None:
    scorer, backbone, _ = make(device)
    batch = pixels(3)
    stored = [level.half().cpu() for level in backbone.pyramid(batch.to(device))]
    torch.testing.assert_close(
        scorer.score_pyramid(stored, frames(3)).scores.cpu(),
        scorer.score_pixels(batch, frames(3)).scores.cpu(),
        rtol=1e-2,
        atol=0,
    )


def test_letterbox_padding_has_no_score_and_no_influence(device: torch.device) -> None:
    scorer, _, _ = make(device, geometry="letterbox")
    frame = frames(1, "letterbox")
    scored = scorer.score_pixels(pixels(1), frame)
    patch_scores, maps = scored.patch_scores.cpu(), scored.maps.cpu()
    top, bottom = frame[0].valid[1], frame[0].valid[3]
    assert patch_scores[0, : top // 8].abs().max() == 0
    assert maps[0, :top].abs().max() == 0
    assert maps[0, bottom:].abs().max() == 0
    assert maps[0, top:bottom].min() > 0


def test_an_empty_batch_is_fine(device: torch.device) -> None:
    scorer, _, _ = make(device)
    assert scorer.score_pixels(pixels(0), []).scores.shape == (0,)


@pytest.mark.parametrize("patch_score", ["certainty", "nearest"])
def test_an_image_is_scored_as_if_the_bank_had_none_of_its_memories(
    patch_score: PatchScore, device: torch.device
) -> None:
    scorer, backbone, phi = make(device, patch_score=patch_score)
    levels = backbone.pyramid(pixels(2).to(device))
    owners = torch.arange(40) % 3  # images 0, 1 and 2 own a third of the bank each
    got = scorer.scores_without_own(levels, torch.tensor([1, 2]), owners).cpu()
    for number, row in enumerate((1, 2)):
        others = MemoryBank(scorer.bank.vectors[(owners != row).numpy()], device)
        score = ScoreSpec(neighbors=4, patch_score=patch_score)
        alone = Scorer(backbone, phi, others, features=scorer._features, score=score)
        expected = alone.score_pyramid([level[number : number + 1] for level in levels], frames(1))
        torch.testing.assert_close(got[number], expected.patch_scores[0].cpu(), rtol=1e-4, atol=1e-4)
    nothing_left = scorer.scores_without_own(levels, torch.tensor([5, 5]), torch.full((40,), 5))
    assert nothing_left.cpu().isinf().all()


def test_the_baseline_is_taken_from_every_patch_and_leaves_none_below_zero(device: torch.device) -> None:
    plain, backbone, phi = make(device, patch_score="nearest")
    batch = pixels(2)
    raw = plain.score_pixels(batch, frames(2)).patch_scores.cpu()
    baseline = raw.mean(dim=0)
    score = ScoreSpec(neighbors=4, patch_score="nearest", sigma_px=2.0)
    scorer = Scorer(backbone, phi, plain.bank, features=plain._features, score=score, baseline=baseline)
    got = scorer.score_pixels(batch, frames(2)).patch_scores.cpu()
    torch.testing.assert_close(got, (raw - baseline).clamp_min(0))
    assert (got == 0).any()

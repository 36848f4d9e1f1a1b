"""A model of random weights on a device, which benchmarks.gpu scores and trains with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from benchmarks.gpu_clock import Budget
from cfa_index import (
    Backbone,
    DescriptorSpec,
    FeatureSpec,
    Frame,
    MemoryBank,
    PatchDescriptor,
    Scorer,
    ScoreSpec,
    backbone_entry,
    frame_of,
    initial_descriptor,
    load_backbone,
    multiplies_bf16,
)
from cfa_index.specs import Precision

PAPER_SCORE = ScoreSpec(patch_score="certainty", baseline="none")
"""Eq. 5 with K = 3."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model of random weights on one device; speed does not depend on them.

    Attributes:
        gamma: gamma_c = gamma_d, as a fraction.
        features: its settings.
        backbone, phi, bank, scorer: its parts; the bank's memories are patches of noise.
    """

    gamma: str
    features: FeatureSpec
    backbone: Backbone
    phi: PatchDescriptor
    bank: MemoryBank
    scorer: Scorer

    def pixels(self, images: int, seed: int) -> Tensor:
        """Noise, uint8 (images, 3, S, S) on the host."""
        return noise(images, self.features.size_px, seed)

    def frames(self, images: int) -> list[Frame]:
        """Of images that fill their square."""
        return [frame_of(self.features.size_px, self.features.size_px, self.features)] * images

    @property
    def shape(self) -> str:
        """M x D'."""
        return f"{len(self.bank):,} x {self.bank.tensor.shape[1]}"


def noise(images: int, size_px: int, seed: int) -> Tensor:
    """uint8 (images, 3, S, S) on the host."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (images, 3, size_px, size_px), generator=generator, dtype=torch.uint8)


def make_case(backbone: Backbone, features: FeatureSpec, gamma: str, device: torch.device, seed: int) -> Case:
    """A model as the paper's over a backbone that is on the device."""
    ratio = float(Fraction(gamma))
    spec = DescriptorSpec(
        init="he", gamma_d=ratio, standardise=False, expansion=backbone_entry(features.backbone).expansion
    )
    phi = initial_descriptor(spec, backbone.channels, None, seed=seed).to(device)
    with torch.inference_mode():
        levels = [level.float() for level in backbone.pyramid(noise(1, features.size_px, seed).to(device))]
        patches = phi.folded()(levels)[0]
        memories = patches[: max(1, round(ratio * features.patches_per_image))].cpu().numpy().copy()
    bank = MemoryBank(memories, device)
    scorer = Scorer(backbone, phi, bank, features=features, score=PAPER_SCORE)
    return Case(gamma=gamma, features=features, backbone=backbone, phi=phi, bank=bank, scorer=scorer)


def on_device(
    features: FeatureSpec, precision: Precision, device: torch.device, seed: int, *, compiled: bool = False
) -> Backbone:
    """A backbone with random weights. Raises WeightsError where its package is missing."""
    backbone = load_backbone(
        features.backbone, features.strides, size_px=features.size_px, weights="random", seed=seed
    )
    return backbone.to(device).for_inference(precision, compiled=compiled)


def inference(job: Callable[[], object]) -> Callable[[], object]:
    """The job without gradients."""

    def run() -> object:
        with torch.inference_mode():
            return job()

    return run


def precisions_of(device: torch.device, budget: Budget) -> list[Precision]:
    """fp32, and bf16 where a card multiplies it; a CPU may imitate it, since nothing is claimed of one."""
    if device.type == "cpu" or multiplies_bf16(device):
        return ["fp32", "bf16"]
    budget.skip("bf16", f"{device} does not multiply it")
    return ["fp32"]


def pinned(host: Tensor, device: torch.device) -> Tensor:
    """The same in memory that a card reads by itself; as it is without one."""
    return host.pin_memory() if device.type == "cuda" else host

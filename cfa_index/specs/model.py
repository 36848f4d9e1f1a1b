"""All settings of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cfa_index.specs.bank import BankSpec
from cfa_index.specs.base import LARGEST_SEED, Spec, require
from cfa_index.specs.features import DescriptorSpec, FeatureSpec
from cfa_index.specs.index import IndexSpec
from cfa_index.specs.score import ScoreSpec
from cfa_index.specs.train import TrainSpec

PresetName = Literal["recommended", "paper", "published-code"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Spec):
    """Everything that decides a model, but for the images and the weights.

    Attributes:
        held_out: share of the good images kept from bank and training, for the threshold.
        seed: of the hold-out, the initialisation, k-means and the order of training.
    """

    preset: PresetName = "recommended"
    features: FeatureSpec = field(default_factory=FeatureSpec)
    descriptor: DescriptorSpec = field(default_factory=DescriptorSpec)
    bank: BankSpec = field(default_factory=BankSpec)
    index: IndexSpec = field(default_factory=IndexSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    score: ScoreSpec = field(default_factory=ScoreSpec)
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.held_out < 1, "held_out", "a share in [0, 1)", self.held_out)
        require(0 <= self.seed <= LARGEST_SEED, "seed", f"from 0 to {LARGEST_SEED}", self.seed)
        require(
            self.features.geometry != "letterbox" or self.bank.method not in ("ema", "mean"),
            "bank method with a letterbox",
            "neither 'ema' nor 'mean'",
            self.bank.method,
            "position banks need whole grids; use --method hybrid or another --geometry",
        )
        require(
            self.features.tile_px == 0 or self.bank.method not in ("ema", "mean"),
            "bank method with tiles",
            "neither 'ema' nor 'mean'",
            self.bank.method,
            "a tile has no place of its own in the product; use --method hybrid, or leave out --tile",
        )
        if not self.bank.counts_all_patches:
            self.check_memories(self.bank.memories(self.features.patches_per_image))

    def check_memories(self, memories: int) -> None:
        """Whether a bank of M = `memories` can be made and searched with these settings.

        Raises:
            SpecError: it cannot.
        """
        patches = self.features.patches_per_image
        require(
            self.bank.method not in ("ema", "mean") or memories <= patches,
            f"bank size with method '{self.bank.method}'",
            f"at most h*w = {patches}",
            memories,
            "ask for fewer memories, or use --method hybrid",
        )
        require(
            self.score.neighbors <= memories,
            "neighbors (K)",
            f"at most the bank's {memories} memories",
            self.score.neighbors,
            "ask for fewer neighbours or a larger bank",
        )

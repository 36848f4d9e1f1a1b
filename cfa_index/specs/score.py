"""From neighbours to a score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from cfa_index.specs.base import Spec, require

Baseline = Literal["none", "position"]
PatchScore = Literal["nearest", "certainty"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class ScoreSpec(Spec):
    """From neighbours to a map and a score (Eqs. 4-5).

    Attributes:
        patch_score: `certainty` is Eq. 5 (the paper); `nearest` is Eq. 4 alone, the distance to the
            nearest memory. Eq. 5 depends on the scale of the features, see docs/accuracy.md.
        baseline: `position` takes from each patch the score that good ones usually have at its place,
            see `baseline.RunningBaseline`; `none` does not (the paper).
        neighbors: K of Eq. 5, and how many matches a query can show.
        sigma_px: standard deviation of the Gaussian over the map, in network pixels.
        false_alarm_rate: share of good images that may score above the threshold.
    """

    patch_score: PatchScore = "nearest"
    baseline: Baseline = "position"
    neighbors: int = 3
    sigma_px: float = 4.0
    false_alarm_rate: float = 0.05

    def __post_init__(self) -> None:
        require(
            self.patch_score in get_args(PatchScore),
            "patch_score",
            f"one of {get_args(PatchScore)}",
            self.patch_score,
        )
        require(
            self.baseline in get_args(Baseline), "baseline", f"one of {get_args(Baseline)}", self.baseline
        )
        require(self.neighbors >= 1, "neighbors (K)", "1 or more", self.neighbors)
        require(0 <= self.sigma_px < 1000, "sigma_px", "from 0 to below 1,000", self.sigma_px)
        require(0 < self.false_alarm_rate < 1, "false_alarm_rate", "between 0 and 1", self.false_alarm_rate)

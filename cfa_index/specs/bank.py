"""From all patches to memories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from cfa_index.errors import SpecError
from cfa_index.specs.base import Spec, require

Compression = Literal["hybrid", "ema", "mean", "kmeans", "coreset", "random", "full"]


@dataclass(frozen=True, kw_only=True)
class BankSpec(Spec):
    """How all patches become M memories.

    Attributes:
        method: `hybrid` (k-means centres of what is frequent, then greedy k-centre picks of what they
            cover worst), `ema` (paper, Algorithm 1), `mean` (published code: position means, then k-means),
            `kmeans` (over a streamed sample of the whole store), `coreset` (PatchCore: greedy k-centre
            after a sparse random projection), `random` (patches drawn from the store), `full` (every
            patch: SPADE's gallery).
        size: M; None means `share`, or else gamma_c * h * w. `full` heeds none of the three.
        gamma_c: ratio in (0, 1], used when `size` and `share` are None.
        share: M as a share of all good patches, in (0, 1], used when `size` is None (PatchCore's 1%).
        beta: weight of the newest image in Algorithm 1; the paper gives none, this is our choice.
        iterations: of k-means.
        coverage: share of the memories of `hybrid` that are k-centre picks, in (0, 1).
        sample_patches: most patches held at once for k-means and for finding sources.
        coreset_eps: distortion allowed to the projection of `coreset` (Johnson-Lindenstrauss), in (0, 1).
    """

    method: Compression = "hybrid"
    size: int | None = 3136
    gamma_c: float = 1.0
    share: float | None = None
    beta: float = 0.1
    iterations: int = 20
    coverage: float = 0.5
    sample_patches: int = 65_536
    coreset_eps: float = 0.9

    def __post_init__(self) -> None:
        require(
            self.method in get_args(Compression), "method", f"one of {get_args(Compression)}", self.method
        )
        require(self.size is None or self.size >= 1, "bank size", "1 or more", self.size)
        require(
            0 < self.gamma_c <= 1, "gamma_c", "a ratio in (0, 1]", self.gamma_c, "write 1/4 or 0.25, not 4"
        )
        require(
            self.share is None or 0 < self.share <= 1,
            "share of the patches",
            "in (0, 1]",
            self.share,
            "write 1/100 or 0.01 for one per cent",
        )
        require(0 < self.beta <= 1, "beta", "in (0, 1]", self.beta)
        require(0 < self.coverage < 1, "coverage", "in (0, 1)", self.coverage)
        require(0 < self.coreset_eps < 1, "coreset_eps", "in (0, 1)", self.coreset_eps)
        require(self.iterations >= 1, "iterations", "1 or more", self.iterations)
        require(self.sample_patches >= 1, "sample_patches", "1 or more", self.sample_patches)

    @property
    def counts_all_patches(self) -> bool:
        """Whether M depends on how many good patches there are."""
        return self.method == "full" or (self.size is None and self.share is not None)

    def memories(self, patches_per_image: int, total: int | None = None) -> int:
        """M for T = `patches_per_image`; where `counts_all_patches`, for `total` good patches.

        Raises:
            SpecError: `total` is needed and not given.
        """
        if not self.counts_all_patches:
            return self.size if self.size is not None else max(1, round(self.gamma_c * patches_per_image))
        if total is None:
            raise SpecError(
                expected="the number of good patches, which decides M",
                got="None",
                remedy="give `total`, or a bank of a fixed size",
            )
        return total if self.method == "full" or self.share is None else max(1, round(self.share * total))

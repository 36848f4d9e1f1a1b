"""The way from pixels to a score, in one place.

pixels --backbone--> pyramid --descriptor--> patches --K neighbours--> Eq. 4 or 5, less the baseline --maps--> map --max--> score
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfa_index.backbones import Backbone
from cfa_index.bank import MemoryBank, Neighbors, shared_threads
from cfa_index.descriptor import PatchDescriptor
from cfa_index.hypersphere import certainty_scores, nearest_distances
from cfa_index.images import Frame, valid_mask
from cfa_index.maps import MapMaker, image_scores
from cfa_index.specs import FeatureSpec, ScoreSpec

_SPARE = 32
"""Neighbours beyond K that are looked at for some of another image."""


@dataclass(frozen=True, kw_only=True)
class ScoredBatch:
    """Scores of B images, on the scorer's device.

    Attributes:
        scores: (B,) float32, the maximum of each map; raw, larger is more anomalous.
        maps: (B, S, S) float32 anomaly maps in network pixels.
        patch_scores: (B, h, w) float32, before upsampling; 0 where not inspected.
        neighbors: of the B*h*w patches, in row-major order, as many as were asked for.
    """

    scores: Tensor
    maps: Tensor
    patch_scores: Tensor
    neighbors: Neighbors


class Scorer:
    """Backbone, descriptor and bank put together for inference on one device.

    Args:
        backbone: frozen, on the device of the bank; its precision is that of the products in descriptor and
            search, too. Distances are float32 and exact in any case.
        descriptor: phi; its standardisation is folded into its weights here.
        bank: the memories.
        features, score: the settings.
        baseline: (h, w) float32, what is taken from every image's patch scores; None for nothing.
    """

    def __init__(
        self,
        backbone: Backbone,
        descriptor: PatchDescriptor,
        bank: MemoryBank,
        *,
        features: FeatureSpec,
        score: ScoreSpec,
        baseline: Tensor | None = None,
    ) -> None:
        self.backbone = backbone
        half = backbone.precision == "bf16"
        self.bank = bank.with_half_products() if half else bank
        self._descriptor = descriptor.folded(torch.bfloat16 if half else torch.float32).to(bank.device)
        self._features = features
        self._neighbors = score.neighbors
        certainty = score.patch_score == "certainty"
        self._patch_scores = certainty_scores if certainty else nearest_distances
        self._needed_neighbors = score.neighbors if certainty else 1
        self.baseline = None if baseline is None else baseline.to(bank.device)
        self._map_maker = MapMaker(features.grid, features.size_px, score.sigma_px, bank.device)

    @shared_threads()
    @torch.inference_mode()
    def score_pixels(
        self, pixels: Tensor, frames: Sequence[Frame], *, all_neighbors: bool = False
    ) -> ScoredBatch:
        """Score images: uint8 pixels (B, 3, S, S) and the frame of each; see `score_pyramid`."""
        levels = self.backbone.pyramid(pixels.to(self.bank.device))
        return self.score_pyramid(levels, frames, all_neighbors=all_neighbors)

    @shared_threads()
    @torch.inference_mode()
    def scores_without_own(self, levels: Sequence[Tensor], rows: Tensor, owners: Tensor) -> Tensor:
        """Patch scores of images that are in the bank, as if it had no memory of theirs; no baseline is taken.

        Args:
            levels: pyramids of B images.
            rows: (B,) int64, which images they are.
            owners: (M,) int64, the image that each memory came from.

        Returns:
            (B, h, w) float32, infinite where the `_SPARE` + K nearest memories are all the image's own.
        """
        patches = self._descriptor([level.to(self.bank.device) for level in levels])  # (B, h*w, D')
        k = min(len(self.bank), self._neighbors + _SPARE)
        found = self.bank.search(patches.flatten(0, 1), k, exact=True)
        image = rows.to(self.bank.device).repeat_interleave(patches.shape[1])
        own = owners.to(self.bank.device)[found.ids] == image[:, None]
        others = found.sq_distances.masked_fill(own, torch.inf).sort(dim=1).values[:, : self._neighbors]
        scores = torch.where(others[:, 0].isinf(), torch.inf, self._patch_scores(others))
        return scores.view(len(patches), *self._features.grid)

    @shared_threads()
    @torch.inference_mode()
    def score_pyramid(
        self, levels: Sequence[Tensor], frames: Sequence[Frame], *, all_neighbors: bool = False
    ) -> ScoredBatch:
        """Score pooled pyramids, (B, C_l, h_l, w_l) each: the backbone's, or a PatchStore's.

        Args:
            levels: of B images.
            frames: of each.
            all_neighbors: find K neighbours where the score needs one only (Eq. 4), too; it takes longer.
        """
        patches = self._descriptor([level.to(self.bank.device) for level in levels])  # (B, h*w, D')
        k = self._neighbors if all_neighbors else self._needed_neighbors
        neighbors = self.bank.search(patches.flatten(0, 1), k, exact=True)
        grid = self._features.grid
        patch_scores = self._patch_scores(neighbors.sq_distances).view(len(patches), *grid)
        if self.baseline is not None:
            patch_scores = (patch_scores - self.baseline).clamp_min_(0)
        valid = None
        if not all(frame.is_full for frame in frames):
            valid = valid_mask(frames, grid).to(self.bank.device)
            patch_scores = patch_scores * valid
        maps = self._map_maker(patch_scores, valid)
        return ScoredBatch(
            scores=image_scores(maps), maps=maps, patch_scores=patch_scores, neighbors=neighbors
        )

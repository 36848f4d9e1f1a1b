"""The way from pixels to a score, in one place.

pixels --backbone--> pyramid --descriptor--> patches --K neighbours--> Eq. 4 or 5, less the baseline --maps--> map --max--> score
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from cfa_index.backbones import Backbone
from cfa_index.bank import Bank, Neighbors, shared_threads
from cfa_index.card_memory import card_memory
from cfa_index.descriptor import PatchDescriptor
from cfa_index.errors import BankError
from cfa_index.footprint import SMALLER_BATCH
from cfa_index.hypersphere import certainty_scores, nearest_distances
from cfa_index.images import Frame, valid_mask
from cfa_index.maps import MapMaker, image_scores
from cfa_index.specs import FeatureSpec, ScoreSpec
from cfa_index.transfers import Downloads, Uploads

_SPARE = 32
"""Neighbours beyond K that are looked at for some of another image."""


@dataclass(frozen=True, kw_only=True)
class ScoredBatch:
    """Scores of B images, on the scorer's device.

    An image's score is no number where one of its features is none; see `require_finite`.

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

    What it is given may lie on the host; its methods queue work for the device and return without a look at any
    number. Results come to the host by `downloads`.

    Args:
        backbone: frozen, on the device of the bank; its precision is that of the products in descriptor and
            search, too. Distances are float32 and exact in any case.
        descriptor: phi; its standardisation is folded into its weights here.
        bank: the memories.
        features, score: the settings.
        baseline: (h, w) float32, what is taken from every image's patch scores; None for nothing.

    Attributes:
        uploads, downloads: the ways to the device and back.
    """

    def __init__(
        self,
        backbone: Backbone,
        descriptor: PatchDescriptor,
        bank: Bank,
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
        self.uploads, self.downloads = Uploads(bank.device), Downloads(bank.device)

    @shared_threads()
    @torch.inference_mode()
    def score_pixels(
        self, pixels: Tensor, frames: Sequence[Frame], *, all_neighbors: bool = False
    ) -> ScoredBatch:
        """Score images: uint8 pixels (B, 3, S, S) and the frame of each; see `score_pyramid`."""
        with self._memory(len(frames)):
            sent, *valid = self.uploads([pixels, *self._masks(frames)])
            return self._scored(self.backbone.pyramid(sent), valid, all_neighbors)

    @shared_threads()
    @torch.inference_mode()
    def scores_without_own(self, levels: Sequence[Tensor], rows: Tensor, owners: Tensor) -> Tensor:
        """Patch scores of images that are in the bank, as if it had no memory of theirs; no baseline is taken.

        Args:
            levels: pyramids of B images.
            rows: (B,) int64, which images they are.
            owners: (M,) int64, the image that each memory came from.

        Returns:
            (B, h, w) float32 on the device, infinite where the `_SPARE` + K nearest memories are all the image's own.
        """
        with self._memory(len(rows)):
            *sent, rows, owners = self.uploads([*levels, rows, owners])
            patches = self._descriptor(sent)  # (B, h*w, D')
            k = min(len(self.bank), self._neighbors + _SPARE)
            found = self._search(patches, k)
            image = rows[:, None].expand(-1, patches.shape[1]).flatten()
            own = owners[found.ids] == image[:, None]
            far = found.sq_distances + torch.inf  # a NaN stays one
            others = torch.where(own, far, found.sq_distances).sort(dim=1).values[:, : self._neighbors]
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
        masks = self._masks(frames)
        with self._memory(len(frames)):
            sent = self.uploads([*levels, *masks])
            return self._scored(sent[: len(levels)], sent[len(levels) :], all_neighbors)

    def _memory(self, images: int) -> AbstractContextManager[None]:
        """Around what takes memory of a card. Raises CardMemoryError."""
        return card_memory(self.bank.device, f"scoring {images} images", lower=SMALLER_BATCH)

    def _masks(self, frames: Sequence[Frame]) -> list[Tensor]:
        """Which patches are inspected, on the host: one bool (B, h, w), or none where all are."""
        return [] if all(frame.is_full for frame in frames) else [valid_mask(frames, self._features.grid)]

    def _scored(self, levels: Sequence[Tensor], masks: Sequence[Tensor], all_neighbors: bool) -> ScoredBatch:
        """Score pyramids on the device."""
        patches = self._descriptor(levels)  # (B, h*w, D')
        neighbors = self._search(patches, self._neighbors if all_neighbors else self._needed_neighbors)
        grid = self._features.grid
        patch_scores = self._patch_scores(neighbors.sq_distances).view(len(patches), *grid)
        if self.baseline is not None:
            patch_scores = (patch_scores - self.baseline).clamp_min_(0)
        valid = masks[0] if masks else None
        if valid is not None:
            patch_scores = patch_scores * valid
        maps = self._map_maker(patch_scores, valid)
        return ScoredBatch(
            scores=image_scores(maps), maps=maps, patch_scores=patch_scores, neighbors=neighbors
        )

    def _search(self, patches: Tensor, k: int) -> Neighbors:
        """The k nearest memories of B images' patches (B, n, D'); ids are (B*n, k).

        A patch that is NaN or infinite has no neighbours. On a card its distances are no numbers either; on the CPU
        the bank refuses the batch, and the distances of its image are made NaN here.
        """
        try:
            return self.bank.search(patches.flatten(0, 1), k, exact=True)
        except BankError:
            odd = ~patches.isfinite().all(dim=2).all(dim=1)  # (B,)
            if self.bank.device.type != "cpu" or not odd.any():
                raise
        found = self.bank.search(patches.masked_fill(odd[:, None, None], 0).flatten(0, 1), k, exact=True)
        odd_patches = odd.repeat_interleave(patches.shape[1])
        return Neighbors(
            sq_distances=found.sq_distances.masked_fill(odd_patches[:, None], torch.nan), ids=found.ids
        )

"""From what was read of images to their rows: the one function that every engine runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index.images import Frame, MapJoiner, Views, stitcher_of
from cfa_index.scorer import Scorer
from cfa_index.specs import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One image.

    Attributes:
        score: raw, larger is more anomalous; None with an error.
        anomaly_map: (S, S) float32 in network pixels, or (H', W') of all tiles; None with an error, or where
            it is not kept.
        frame: how they lie in the source; None with an error.
        error: why there is no score.
    """

    score: float | None = None
    anomaly_map: NDArray[np.float32] | None = None
    frame: Frame | None = None
    error: str | None = None

    def row(self, image_id: int, uri: str, limit: float | None, model_sha: str) -> dict[str, Any]:
        """Its row; `limit` is the threshold."""
        return {
            "image_id": image_id,
            "uri": uri,
            "score": self.score,
            "is_anomalous": None if limit is None or self.score is None else self.score > limit,
            "width": self.frame.source_width if self.frame else None,
            "height": self.frame.source_height if self.frame else None,
            "error": self.error,
            "model_sha": model_sha,
        }


def score_images(
    scorer: Scorer,
    reads: Iterable[Views | str],
    *,
    features: FeatureSpec,
    batch_size: int,
    keep_maps: bool,
) -> Iterator[Scored]:
    """Score images in batches of one size, so that a score does not depend on what failed around it.

    Args:
        scorer: of the model.
        reads: what was read of each image, or why it could not be; taken as they are needed.
        features: of the model.
        batch_size: views a forward pass; the last is filled with black ones, as is the place of an image that
            could not be read.
        keep_maps: whether results have maps. That of an image with tiles is as large as the image.

    Returns:
        An iterator of one result an image, in order.
    """
    side = features.size_px
    pinned = scorer.bank.device.type == "cuda"  # so that the copy to the card is no detour
    pixels = torch.zeros((batch_size, 3, side, side), dtype=torch.uint8, pin_memory=pinned)
    squares = _squares(reads)
    parts: _Parts | None = None
    while batch := list(islice(squares, batch_size)):
        shown = [views.frames[number] for views, number in batch if isinstance(views, Views)]
        if shown:
            for slot in range(batch_size):
                views, number = batch[slot] if slot < len(batch) else ("", 0)
                pixels[slot] = torch.from_numpy(views.pixels[number]) if isinstance(views, Views) else 0
            frames = [
                views.frames[number] if isinstance(views, Views) else shown[0] for views, number in batch
            ]
            frames += [shown[0]] * (batch_size - len(frames))
            maps = scorer.score_pixels(pixels, frames).maps.cpu().numpy()
        for slot, (views, number) in enumerate(batch):
            if not isinstance(views, Views):
                yield Scored(error=views)
                continue
            if parts is None:
                parts = _Parts(views, features, keep_maps)
            parts.add(maps[slot])
            if number + 1 == len(views.frames):
                yield _with_a_number(parts.scored())
                parts = None


def _with_a_number(scored: Scored) -> Scored:
    """A result, or the error of one that is no number: it is not above any threshold, and so would count as good."""
    if scored.score is None or math.isfinite(scored.score):
        return scored
    return Scored(
        error=f"expected a finite score, got {scored.score}; check the model's weights, and score without bf16"
    )


def _squares(reads: Iterable[Views | str]) -> Iterator[tuple[Views | str, int]]:
    """Every view of every image, and one for an image without any."""
    for read in reads:
        for number in range(len(read.frames) if isinstance(read, Views) else 1):
            yield read, number


class _Parts:
    """The maps of one image's views on their way to its result."""

    def __init__(self, views: Views, features: FeatureSpec, keep_map: bool) -> None:
        self._views = views
        self._features = features
        self._whole: NDArray[np.float32] | None = None  # of the only view, without tiles
        width, height = views.frames[0].source_width, views.frames[0].source_height
        self._joiner = MapJoiner(width, height, features) if features.tile_px and keep_map else None
        self._stitcher = stitcher_of(width, height, features) if features.tile_px and not keep_map else None

    def add(self, view_map: NDArray[np.float32]) -> None:
        """Add the map (S, S) of the next view."""
        if self._joiner is not None:
            self._joiner.add(view_map)
        elif self._stitcher is not None:
            self._stitcher.add(view_map)
        else:
            self._whole = view_map

    def scored(self) -> Scored:
        """The result, once all maps are there."""
        frame = self._views.frames[0]
        if self._joiner is not None:
            found = self._joiner.result()
            return Scored(score=found.score, anomaly_map=found.pixels, frame=found.frame)
        if self._stitcher is not None:
            return Scored(score=self._stitcher.score, frame=frame)
        assert self._whole is not None, "an image has a view"
        return Scored(score=float(self._whole.max()), anomaly_map=self._whole, frame=frame)

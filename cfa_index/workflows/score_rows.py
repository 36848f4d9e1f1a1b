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
from torch import Tensor

from cfa_index.images import CardDecoder, Frame, Jpeg, MapJoiner, Views, stitcher_of
from cfa_index.scorer import Scorer
from cfa_index.specs import FeatureSpec
from cfa_index.transfers import Pending

Read = Views | Jpeg | str
"""What was read of an image, or why it could not be."""


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


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A batch that the device is at work on.

    Attributes:
        slots: of each view, the frames of its image's views and its number among them, or why there is none.
        pending: maps (B, S, S) float32, or scores (B,) where nobody needs the maps; None where no view could be
            read.
    """

    slots: list[tuple[tuple[Frame, ...] | str, int]]
    pending: Pending | None


def score_images(
    scorer: Scorer,
    reads: Iterable[Read],
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
    queued = queue_batches(scorer, reads, features=features, batch_size=batch_size, keep_maps=keep_maps)
    return results_of(scorer.downloads.behind(queued), features=features, keep_maps=keep_maps)


def queue_batches(
    scorer: Scorer,
    reads: Iterable[Read],
    *,
    features: FeatureSpec,
    batch_size: int,
    keep_maps: bool,
    decoder: CardDecoder | None = None,
) -> Iterator[Queued]:
    """The first half of `score_images`: batches that the scorer's device was told to score.

    Args:
        scorer, reads, features, batch_size, keep_maps: as there.
        decoder: of JPEGs among the reads.
    """
    side = features.size_px
    squares = _squares(reads)
    while batch := list(islice(squares, batch_size)):
        decoded = {} if decoder is None else _decode(batch, decoder)
        shown = [views.frames[number] for views, number in batch if not isinstance(views, str)]
        pending = None
        if shown:
            pixels = scorer.uploads.staging((batch_size, 3, side, side), torch.uint8)
            for slot in range(batch_size):
                views, number = batch[slot] if slot < len(batch) else ("", 0)
                pixels[slot] = torch.from_numpy(views.pixels[number]) if isinstance(views, Views) else 0
            if decoder is not None and decoded:
                pixels = decoder.with_squares(pixels, decoded)
            frames = [shown[0] if isinstance(views, str) else views.frames[number] for views, number in batch]
            frames += [shown[0]] * (batch_size - len(frames))
            scored = scorer.score_pixels(pixels, frames)
            needs_maps = keep_maps or features.tile_px > 0  # tiles are joined on the host
            pending = scorer.downloads.start([scored.maps if needs_maps else scored.scores])
        slots = [(views if isinstance(views, str) else views.frames, number) for views, number in batch]
        yield Queued(slots=slots, pending=pending)


def results_of(batches: Iterable[Queued], *, features: FeatureSpec, keep_maps: bool) -> Iterator[Scored]:
    """The second half of `score_images`: what was found, an image at a time."""
    parts: _Parts | None = None
    for batch in batches:
        if batch.pending is not None:
            (found,) = (tensor.numpy() for tensor in batch.pending.result())
        for slot, (frames, number) in enumerate(batch.slots):
            if isinstance(frames, str):
                yield Scored(error=frames)
                continue
            if parts is None:
                parts = _Parts(frames[0], features, keep_maps)
            parts.add(found[slot])
            if number + 1 == len(frames):
                yield _with_a_number(parts.scored())
                parts = None


def _with_a_number(scored: Scored) -> Scored:
    """A result, or the error of one that is no number: it is not above any threshold, and so would count as good."""
    if scored.score is None or math.isfinite(scored.score):
        return scored
    return Scored(
        error=f"expected a finite score, got {scored.score}; check the model's weights, and score without bf16"
    )


def _decode(batch: list[tuple[Read, int]], decoder: CardDecoder) -> dict[int, Tensor]:
    """Squares of the JPEGs of a batch, by slot; those that the card refuses become what the host makes of them."""
    jpegs = {slot: read for slot, (read, _) in enumerate(batch) if isinstance(read, Jpeg)}
    decoded = {}
    for (slot, jpeg), square in zip(jpegs.items(), decoder.squares(list(jpegs.values())), strict=True):
        if square is not None:
            decoded[slot] = square
            continue
        read = jpeg.on_host()
        batch[slot] = (read if isinstance(read, Views) else str(read), 0)
    return decoded


def _squares(reads: Iterable[Read]) -> Iterator[tuple[Read, int]]:
    """Every view of every image, and one for an image without any."""
    for read in reads:
        for number in range(1 if isinstance(read, str) else len(read.frames)):
            yield read, number


class _Parts:
    """What was found of one image's views on its way to the image's result."""

    def __init__(self, frame: Frame, features: FeatureSpec, keep_map: bool) -> None:
        self._frame = frame
        self._keep_map = keep_map
        self._whole: NDArray[np.float32] | None = None  # of the only view, without tiles
        size = frame.source_width, frame.source_height
        self._joiner = MapJoiner(*size, features) if features.tile_px and keep_map else None
        self._stitcher = stitcher_of(*size, features) if features.tile_px and not keep_map else None

    def add(self, found: NDArray[np.float32]) -> None:
        """Add the map (S, S) of the next view, or the score () of the only one."""
        if self._joiner is not None:
            self._joiner.add(found)
        elif self._stitcher is not None:
            self._stitcher.add(found)
        else:
            self._whole = found

    def scored(self) -> Scored:
        """The result, once all views are there."""
        if self._joiner is not None:
            joined = self._joiner.result()
            return Scored(score=joined.score, anomaly_map=joined.pixels, frame=joined.frame)
        if self._stitcher is not None:
            return Scored(score=self._stitcher.score, frame=self._frame)
        assert self._whole is not None, "an image has a view"
        kept = self._whole if self._keep_map else None
        return Scored(score=float(self._whole.max()), anomaly_map=kept, frame=self._frame)

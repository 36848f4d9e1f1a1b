"""From what was read of images to their rows: the one function that every engine runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index.images import Frame, Views
from cfa_index.scorer import Scorer


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One image.

    Attributes:
        score: raw, larger is more anomalous; None with an error.
        anomaly_map: (S, S) float32 in network pixels; None with an error.
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
    scorer: Scorer, reads: Iterable[Views | str], *, batch_size: int, size_px: int
) -> Iterator[Scored]:
    """Score images in batches of one size, so that an image's score does not depend on what failed around it.

    Args:
        scorer: of the model.
        reads: what was read of each image, or why it could not be; taken a batch at a time.
        batch_size: images a forward pass; the last is filled with black ones, as is the place of one without
            pixels.
        size_px: S.

    Returns:
        An iterator of one result an image, in order.
    """
    pixels = torch.zeros((batch_size, 3, size_px, size_px), dtype=torch.uint8)
    waiting: list[Views | str] = []

    def scored() -> Iterator[Scored]:
        if any(isinstance(read, Views) for read in waiting):
            frames = [read.frames[0] for read in waiting if isinstance(read, Views)]
            whole = [read.frames[0] if isinstance(read, Views) else frames[0] for read in waiting]
            whole += [frames[0]] * (batch_size - len(whole))
            for slot in range(batch_size):
                read = waiting[slot] if slot < len(waiting) else ""
                pixels[slot] = torch.from_numpy(read.pixels[0]) if isinstance(read, Views) else 0
            result = scorer.score_pixels(pixels, whole)
            scores, maps = result.scores.tolist(), result.maps.cpu().numpy()
        for slot, read in enumerate(waiting):
            if isinstance(read, Views):
                yield Scored(score=scores[slot], anomaly_map=maps[slot], frame=read.frames[0])
            else:
                yield Scored(error=read)

    for read in reads:
        waiting.append(read)
        if len(waiting) == batch_size:
            yield from scored()
            waiting = []
    yield from scored()

"""Why an image scores as it does: its worst patches, and the normal patches that they matched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cfa_index.bank import shared_threads
from cfa_index.bundle import ImageScore, MemorySource, ModelBundle, ViewScore
from cfa_index.images import MAX_PIXELS, as_image
from cfa_index.report import PatchPicture, query_panel

_APART = 1.5
"""Patches between the centres of two worst ones, at least, in one direction."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """A memory that a patch matched: its row in the bank, rooted distance, and source."""

    memory: int
    distance: float
    source: MemorySource
    exemplar: bytes


@dataclass(frozen=True, kw_only=True)
class WorstPatch:
    """A patch of the query: tile and cell in it, box in source pixels, score, and its K nearest memories.

    `tile` is 0 where the image was not cut.
    """

    tile: int
    row: int
    column: int
    box: tuple[int, int, int, int]
    score: float
    matches: tuple[Match, ...]


@dataclass(frozen=True, kw_only=True)
class QueryResult:
    """One image explained; `image` is the decoded source, upright RGB."""

    path: str
    image: Image.Image
    verdict: ImageScore
    threshold: float | None
    worst: tuple[WorstPatch, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "path": self.path,
            "score": self.verdict.score,
            "threshold": self.threshold,
            "is_anomalous": self.verdict.is_anomalous,
            "worst_patches": [
                {
                    "tile": patch.tile,
                    "row": patch.row,
                    "column": patch.column,
                    "box": list(patch.box),
                    "score": patch.score,
                    "matches": [
                        {
                            "memory": match.memory,
                            "distance": match.distance,
                            "uri": match.source.uri,
                            "box": list(match.source.box),
                        }
                        for match in patch.matches
                    ],
                }
                for patch in self.worst
            ],
        }


@shared_threads()
def query(
    bundle: ModelBundle,
    path: Path | bytes,
    *,
    patches: int = 4,
    threshold: float | None = None,
    max_pixels: int = MAX_PIXELS,
) -> QueryResult:
    """Score one image and find what its worst patches matched.

    Args:
        bundle: the model.
        path: of the image, or its file's content; the result's path is then empty.
        patches: how many of the worst, no two touching each other.
        threshold: in place of the model's own.
        max_pixels: as in `decode`.

    Raises:
        ImageError: the image cannot be read.
        SpecError: the threshold is not finite.
    """
    limit = bundle.threshold_or(threshold)
    image = as_image(path, max_pixels=max_pixels)
    verdict = bundle.score([image], threshold=limit)[0]
    grid = bundle.manifest.spec.features.grid
    worst = []
    for tile, row, column in _apart(verdict.views, patches):
        view = verdict.views[tile]
        ids, distances = view.neighbor_ids[row, column], view.neighbor_distances[row, column]
        matches = tuple(
            Match(
                memory=memory,
                distance=distance,
                source=bundle.sources[memory],
                exemplar=bundle.exemplars[memory] if bundle.exemplars else b"",
            )
            for memory, distance in zip(ids.tolist(), distances.tolist(), strict=True)
        )
        worst.append(
            WorstPatch(
                tile=tile,
                row=row,
                column=column,
                box=view.frame.patch_box(row, column, grid),
                score=float(view.patch_scores[row, column]),
                matches=matches,
            )
        )
    name = "" if isinstance(path, bytes) else str(path)
    return QueryResult(path=name, image=image, verdict=verdict, threshold=limit, worst=tuple(worst))


def query_picture(result: QueryResult, *, footer: str = "") -> Image.Image:
    """The panel of a result: image, heatmap, worst patches and what they matched."""
    patches = [
        PatchPicture(
            box=patch.box,
            score=patch.score,
            matches=[(match.exemplar, match.distance, match.source.uri) for match in patch.matches],
        )
        for patch in result.worst
    ]
    return query_panel(
        result.image,
        result.verdict.anomaly_map,
        result.verdict.frame,
        score=result.verdict.score,
        threshold=result.threshold,
        patches=patches,
        footer=footer,
    )


def _apart(views: Sequence[ViewScore], count: int) -> Sequence[tuple[int, int, int]]:
    """Tile, row and column of the highest patch scores, no two within a patch of each other in the source.

    So the 3 x 3 neighbourhood of one is left out, and what another tile sees of the same place.
    """
    left = np.stack([view.patch_scores for view in views])  # (n, h, w)
    _, height, width = left.shape
    side = views[0].frame.size_px
    # Centres in patches from the image's corner: all views have one scale.
    y = np.array([np.arange(height) + 0.5 - view.frame.offset_y * height / side for view in views])
    x = np.array([np.arange(width) + 0.5 - view.frame.offset_x * width / side for view in views])
    cells: list[tuple[int, int, int]] = []
    while len(cells) < count and np.isfinite(left).any():
        tile, row, column = (int(at) for at in np.unravel_index(int(left.argmax()), left.shape))
        cells.append((tile, row, column))
        near_y, near_x = np.abs(y - y[tile, row]) < _APART, np.abs(x - x[tile, column]) < _APART
        left[near_y[:, :, None] & near_x[:, None, :]] = -np.inf
    return cells

"""Why an image scores as it does: its worst patches, and the normal patches that they matched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cfa_index.bank import shared_threads
from cfa_index.bundle import ImageScore, MemorySource, ModelBundle
from cfa_index.images import as_image
from cfa_index.report import PatchPicture, query_panel


@dataclass(frozen=True, kw_only=True)
class Match:
    """A memory that a patch matched: its row in the bank, rooted distance, and source."""

    memory: int
    distance: float
    source: MemorySource
    exemplar: bytes


@dataclass(frozen=True, kw_only=True)
class WorstPatch:
    """A patch of the query: cell, box in source pixels, score, and its K nearest memories."""

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
    bundle: ModelBundle, path: Path | bytes, *, patches: int = 4, threshold: float | None = None
) -> QueryResult:
    """Score one image and find what its worst patches matched.

    Args:
        bundle: the model.
        path: of the image, or its file's content; the result's path is then empty.
        patches: how many of the worst, no two touching each other.
        threshold: in place of the model's own.

    Raises:
        ImageError: the image cannot be read.
        SpecError: the threshold is not finite.
    """
    limit = bundle.threshold_or(threshold)
    image = as_image(path)
    verdict = bundle.score([image], threshold=limit)[0]
    grid = bundle.manifest.spec.features.grid
    worst = []
    for row, column in _apart(verdict.patch_scores, patches):
        ids, distances = verdict.neighbor_ids[row, column], verdict.neighbor_distances[row, column]
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
                row=row,
                column=column,
                box=verdict.frame.patch_box(row, column, grid),
                score=float(verdict.patch_scores[row, column]),
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


def _apart(patch_scores: NDArray[np.float32], count: int) -> Sequence[tuple[int, int]]:
    """Cells of the highest scores, each outside the 3 x 3 neighbourhood of the ones before."""
    left = patch_scores.copy()
    cells: list[tuple[int, int]] = []
    while len(cells) < count and np.isfinite(left).any():
        row, column = divmod(int(left.argmax()), left.shape[1])
        cells.append((row, column))
        left[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = -np.inf
    return cells

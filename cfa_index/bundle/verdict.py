"""What a model says of one image: its score, its map, and the patches behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cfa_index.errors import SpecError
from cfa_index.images import Frame, image_maps_of
from cfa_index.specs import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class ViewScore:
    """The patches of one view of an image: of the whole image, or of one of its tiles.

    Attributes:
        frame: how the view's network pixels lie in the source image.
        patch_scores: (h, w) float32; 0 where not inspected.
        neighbor_ids: (h, w, K) int64 rows of the bank, nearest first.
        neighbor_distances: (h, w, K) float32, rooted.
    """

    frame: Frame
    patch_scores: NDArray[np.float32]
    neighbor_ids: NDArray[np.int64]
    neighbor_distances: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """The verdict on one image.

    Attributes:
        score: raw, larger is more anomalous; the maximum of `anomaly_map`.
        is_anomalous: score above the threshold; None when the model has none.
        anomaly_map: (S, S) float32 in network pixels; of a model with tiles (H', W'), their maps in one, with
            size_px pixels for every tile_px of the source.
        frame: how the map's pixels lie in the source image.
        views: the patches behind the map: one, or one a tile, row after row of tiles.
    """

    score: float
    is_anomalous: bool | None
    anomaly_map: NDArray[np.float32]
    frame: Frame
    views: tuple[ViewScore, ...]

    @property
    def patch_scores(self) -> NDArray[np.float32]:
        """(h, w) float32 of an image without tiles. Raises SpecError for one with tiles."""
        return self._whole.patch_scores

    @property
    def neighbor_ids(self) -> NDArray[np.int64]:
        """(h, w, K) int64 of an image without tiles. Raises SpecError for one with tiles."""
        return self._whole.neighbor_ids

    @property
    def neighbor_distances(self) -> NDArray[np.float32]:
        """(h, w, K) float32 of an image without tiles. Raises SpecError for one with tiles."""
        return self._whole.neighbor_distances

    @property
    def _whole(self) -> ViewScore:
        if len(self.views) > 1:
            raise SpecError(
                expected="an image that was scored whole",
                got=f"{len(self.views)} tiles",
                remedy="look at `views`",
            )
        return self.views[0]


def image_score(
    views: Iterable[tuple[int, ViewScore, NDArray[np.float32]]],
    features: FeatureSpec,
    threshold: float | None,
) -> ImageScore:
    """The verdict from all views of one image.

    Args:
        views: number of the image, patches and map (S, S) of each view, in order; taken one at a time.
        features: that cut them.
        threshold: scores above it are anomalous; None for no verdict.
    """
    kept: list[ViewScore] = []

    def maps() -> Iterator[tuple[int, Frame, NDArray[np.float32]]]:
        for image, view, view_map in views:
            kept.append(view)
            yield image, view.frame, view_map

    _, found = next(image_maps_of(maps(), features))
    return ImageScore(
        score=found.score,
        is_anomalous=None if threshold is None else found.score > threshold,
        anomaly_map=found.pixels,
        frame=found.frame,
        views=tuple(kept),
    )

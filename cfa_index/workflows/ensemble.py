"""Test images under one model or several fused (CFA++), and under several states of each (epochs).

The pyramid of an image is made once for each model, whatever the number of states. Memory is a function
of the batch, the models and the states, never of the number of images; at full size one map is alive at
a time, and one more where maps are fused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index.bank import require_finite
from cfa_index.bundle import ModelBundle
from cfa_index.errors import ImageError, SpecError
from cfa_index.images import ImageBatch, ImageMap, MapJoiner, load_batches, view_count
from cfa_index.resample import fuse_maps, to_source
from cfa_index.scorer import Scorer
from cfa_index.transfers import Pending


class FusedMap:
    """The maps of one image by each model, in one state; worked out when asked for.

    Args:
        maps: by model, each in its own network pixels; of tiles, their maps in one.
    """

    def __init__(self, maps: Sequence[ImageMap]) -> None:
        self._maps = maps

    @cached_property
    def in_source(self) -> NDArray[np.float32]:
        """(H, W) float32 in source pixels, NaN where no model looked."""
        return fuse_maps(
            to_source(
                one.pixels,
                width=one.frame.source_width,
                height=one.frame.source_height,
                scale_x=one.frame.scale_x,
                scale_y=one.frame.scale_y,
                offset_x=one.frame.offset_x,
                offset_y=one.frame.offset_y,
            )
            for one in self._maps
        )

    @property
    def score(self) -> float:
        """The map's maximum: of one model in network pixels, as it scores, of several in source pixels."""
        return self._maps[0].score if len(self._maps) == 1 else float(np.nanmax(self.in_source))


@dataclass(frozen=True, kw_only=True)
class ScoredImage:
    """One image; `states` are as many as each model has, or none where `error` says why.

    Attributes:
        position: in the sequence of images.
        states: made one after another, so that a full-size map is gone before the next is made.
    """

    position: int
    states: Iterator[FusedMap]
    error: ImageError | None = None


def one_category(models: ModelBundle | Sequence[ModelBundle]) -> list[ModelBundle]:
    """The models to fuse, one or more.

    Raises:
        SpecError: none, or models of different categories.
    """
    bundles = [models] if isinstance(models, ModelBundle) else list(models)
    names = list(dict.fromkeys(bundle.manifest.category for bundle in bundles))
    if len(names) != 1:
        raise SpecError(
            expected="one model or more, all of one category",
            got=f"models of {', '.join(names)}" if names else "none",
            remedy="fuse models that were built for the same product",
        )
    return bundles


def score_images(
    models: Sequence[ModelBundle],
    paths: Sequence[Path],
    *,
    states: Sequence[Sequence[Scorer]] | None = None,
    batch_size: int,
    threads: int,
) -> Iterator[ScoredImage]:
    """Score images by every model, in order.

    Args:
        models: to fuse.
        paths: of the images; each model decodes them by its own geometry.
        states: scorers by model and state, as many states for each; None for each model's own.
        batch_size, threads: as in `load_batches`.
    """
    scorers = [[model.scorer] for model in models] if states is None else states
    streams = [
        _one_model(model, several, paths, batch_size, threads)
        for model, several in zip(models, scorers, strict=True)
    ]
    for position, found in enumerate(zip(*streams, strict=True)):
        error = next((one for one in found if isinstance(one, ImageError)), None)
        maps = [one for one in found if not isinstance(one, ImageError)]
        of_state = iter(()) if error else map(FusedMap, zip(*maps, strict=True))
        yield ScoredImage(position=position, states=of_state, error=error)


def _one_model(
    model: ModelBundle, scorers: Sequence[Scorer], paths: Sequence[Path], batch_size: int, threads: int
) -> Iterator[list[ImageMap] | ImageError]:
    """Of each image, in order, its map by state, or why it cannot be read."""
    features = model.manifest.spec.features
    model.require_room(batch_size)
    joiners: list[MapJoiner] = []
    left = 0
    batches = load_batches(paths, features, batch_size=batch_size, threads=threads)
    queued = ((batch, _queue(model, scorers, batch)) for batch in batches)
    for batch, pending in model.scorer.downloads.behind(queued):
        maps = [tensor.numpy() for tensor in pending.result()]
        for of_state in maps:
            require_finite(of_state)
        errors = deque(batch.errors)
        for slot, (position, frame) in enumerate(zip(batch.positions, batch.frames, strict=True)):
            while errors and errors[0][0] < position:
                yield errors.popleft()[1]
            if not left:
                size = frame.source_width, frame.source_height
                joiners, left = [MapJoiner(*size, features) for _ in scorers], view_count(*size, features)
            for joiner, of_state in zip(joiners, maps, strict=True):
                joiner.add(of_state[slot])
            left -= 1
            if not left:
                yield [joiner.result() for joiner in joiners]
        yield from (error for _, error in errors)


def _queue(model: ModelBundle, scorers: Sequence[Scorer], batch: ImageBatch) -> Pending:
    """Maps (B, S, S) float32 by state; the backbone runs once."""
    with torch.inference_mode():
        levels = model.backbone.pyramid(*model.scorer.uploads([batch.pixels]))
    return model.scorer.downloads.start(
        [scorer.score_pyramid(levels, batch.frames).maps for scorer in scorers]
    )

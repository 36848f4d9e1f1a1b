"""Test images under one model or several fused (CFA++), and under several states of each (epochs).

The pyramid of an image is made once for each model, whatever the number of states. Memory is a function
of the batch, the models and the states, never of the number of images; at full size one map is alive at
a time, and one more where maps are fused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.bundle import ModelBundle
from cfa_index.errors import ImageError, SpecError
from cfa_index.images import Frame, ImageBatch, load_batches
from cfa_index.resample import fuse_maps, to_source
from cfa_index.scorer import Scorer


class FusedMap:
    """The maps of one image by each model, in one state; worked out when asked for.

    Args:
        maps: (S, S) float32 by model, each in its own network pixels.
        frames: how each lies in the source.
    """

    def __init__(self, maps: Sequence[Tensor], frames: Sequence[Frame]) -> None:
        self._maps = maps
        self._frames = frames

    @cached_property
    def in_source(self) -> NDArray[np.float32]:
        """(H, W) float32 in source pixels, NaN where no model looked."""
        return fuse_maps(
            to_source(
                one.cpu().numpy(),
                width=frame.source_width,
                height=frame.source_height,
                scale_x=frame.scale_x,
                scale_y=frame.scale_y,
                offset_x=frame.offset_x,
                offset_y=frame.offset_y,
            )
            for one, frame in zip(self._maps, self._frames, strict=True)
        )

    @property
    def score(self) -> float:
        """The map's maximum: of one model in network pixels, as `Scorer` has it, of several in source pixels."""
        return float(self._maps[0].amax()) if len(self._maps) == 1 else float(np.nanmax(self.in_source))


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
        load_batches(paths, model.manifest.spec.features, batch_size=batch_size, threads=threads)
        for model in models
    ]
    for batches in zip(*streams, strict=True):
        maps = [
            _maps(model, several, batch)
            for model, several, batch in zip(models, scorers, batches, strict=True)
        ]
        errors = dict(error for batch in batches for error in batch.errors)
        slots = [{position: slot for slot, position in enumerate(batch.positions)} for batch in batches]
        for position in sorted({*slots[0], *errors}):
            if position in errors:
                yield ScoredImage(position=position, states=iter(()), error=errors[position])
                continue
            at = [slot[position] for slot in slots]
            frames = [batch.frames[slot] for batch, slot in zip(batches, at, strict=True)]
            yield ScoredImage(position=position, states=_states(maps, at, frames))


def _maps(model: ModelBundle, scorers: Sequence[Scorer], batch: ImageBatch) -> list[Tensor]:
    """(B, S, S) float32 on the CPU by state; the backbone runs once."""
    with torch.inference_mode():
        levels = model.backbone.pyramid(batch.pixels.to(model.bank.device))
    return [scorer.score_pyramid(levels, batch.frames).maps.cpu() for scorer in scorers]


def _states(
    maps: Sequence[Sequence[Tensor]], slots: Sequence[int], frames: Sequence[Frame]
) -> Iterator[FusedMap]:
    for of_state in zip(*maps, strict=True):
        yield FusedMap([one[slot] for one, slot in zip(of_state, slots, strict=True)], frames)

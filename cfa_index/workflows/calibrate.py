"""What good images calibrate: the baseline of each place, and from held-out ones the threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index.backbones import Backbone
from cfa_index.bank import require_finite
from cfa_index.baseline import RunningBaseline
from cfa_index.bundle import HeldOut, Manifest
from cfa_index.descriptor import PatchDescriptor
from cfa_index.events import Listener, ignore, stage
from cfa_index.images import Frame, image_scores_of
from cfa_index.metrics import Threshold, conformal_threshold
from cfa_index.scorer import Scorer
from cfa_index.store import PatchStore
from cfa_index.transfers import Pending
from cfa_index.workflows.extract import READ_IMAGES, inspected_mask, iterate_pyramids, stored_frames
from cfa_index.workflows.start import Start

BASELINE_IMAGES = 128
"""Views; enough for the mean of a cell. All of them would cost as much as the bank."""


def calibrated_scorer(
    backbone: Backbone,
    descriptor: PatchDescriptor,
    start: Start,
    *,
    store: PatchStore,
    rows: Sequence[int],
    listener: Listener = ignore,
) -> Scorer:
    """A scorer on the bank of `start`, with the baseline that its settings ask for.

    The baseline is that of at most `BASELINE_IMAGES` fit images, or tiles of them. These are in the bank, and
    the places that are hardest are those that the bank remembers best; so each is scored without the memories
    of its own image.

    Args:
        backbone, descriptor: see `Scorer`; the backbone is not called.
        start: bank, owners and settings; the seed draws the images.
        store, rows: the views of the fit images.
        listener: told of progress.
    """
    spec = start.spec
    scorer = Scorer(backbone, descriptor, start.bank, features=spec.features, score=spec.score)
    if spec.score.baseline == "none":
        return scorer
    draw = np.random.default_rng(spec.seed)
    chosen = draw.choice(np.asarray(rows), size=min(BASELINE_IMAGES, len(rows)), replace=False)
    (owners,) = scorer.uploads([torch.from_numpy(start.owners)])
    running = RunningBaseline(spec.features.grid)

    def queued() -> Iterator[tuple[list[int], Pending]]:
        for part, levels in iterate_pyramids(store, sorted(chosen.tolist()), READ_IMAGES):
            images = torch.tensor([row - store.images[row].tile for row in part])
            yield part, scorer.downloads.start([scorer.scores_without_own(levels, images, owners)])

    with stage(listener, "baseline", len(chosen), spec.features.view_unit) as advance:
        for part, pending in scorer.downloads.behind(queued()):
            scores = pending.result()[0].numpy()
            require_finite(scores[~np.isinf(scores)])  # infinite: all its neighbours are the image's own
            inspected = inspected_mask(store, part).view(scores.shape).numpy()
            running.update(scores, inspected & np.isfinite(scores))
            advance(len(part))
    baseline = torch.from_numpy(running.result())
    return Scorer(
        backbone, descriptor, start.bank, features=spec.features, score=spec.score, baseline=baseline
    )


def score_held_out(
    scorer: Scorer, store: PatchStore, rows: Sequence[int], listener: Listener = ignore
) -> HeldOut:
    """Raw scores of good images that the model has not seen, one an image, from the store.

    Args:
        scorer: of the model.
        store, rows: all views of these images.
        listener: told of progress.
    """
    features = store.header.features
    with stage(listener, "threshold", len(rows), features.view_unit) as advance:
        maps = stored_maps(scorer, store, rows, advance)
        found = dict(image_scores_of(maps, features))
    uris = tuple(store.images[image].uri for image in found)
    return HeldOut(uris=uris, scores=tuple(found.values()))


def stored_maps(
    scorer: Scorer, store: PatchStore, rows: Sequence[int], on_views: Callable[[int], None]
) -> Iterator[tuple[int, Frame, NDArray[np.float32]]]:
    """Image (its first row), frame and map (S, S) of each of some rows, read and scored a few at a time.

    Args:
        scorer: of the model.
        store, rows: the views.
        on_views: called with how many more were scored.
    """

    def queued() -> Iterator[tuple[list[int], list[Frame], Pending]]:
        for part, levels in iterate_pyramids(store, rows, READ_IMAGES):
            frames = stored_frames(store, part)
            yield part, frames, scorer.downloads.start([scorer.score_pyramid(levels, frames).maps])

    for part, frames, pending in scorer.downloads.behind(queued()):
        maps = pending.result()[0].numpy()
        require_finite(maps)
        for row, frame, view_map in zip(part, frames, maps, strict=True):
            yield row - store.images[row].tile, frame, view_map
        on_views(len(part))


def threshold_of(held_out: HeldOut, rate: float) -> Threshold | None:
    """The conformal threshold of held-out scores; None when nothing was held out."""
    return conformal_threshold(np.asarray(held_out.scores), rate) if held_out.scores else None


def with_scores(manifest: Manifest, held_out: HeldOut) -> Manifest:
    """A manifest with other held-out scores and the threshold that follows from them."""
    return replace(
        manifest,
        held_out=held_out,
        threshold=threshold_of(held_out, manifest.spec.score.false_alarm_rate),
    )

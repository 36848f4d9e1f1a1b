"""Good images held out of bank and training, and the threshold that their scores give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cfa_index.bundle import HeldOut, Manifest
from cfa_index.events import Listener, ignore, stage
from cfa_index.images import frame_of
from cfa_index.metrics import Threshold, conformal_threshold
from cfa_index.scorer import Scorer
from cfa_index.store import PatchStore
from cfa_index.workflows.extract import READ_IMAGES, iterate_pyramids


def split_held_out(rows: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Rows for bank and training, and rows for the threshold: a random `share`, sorted.

    A single image is never held out: a bank needs it more than the threshold does.
    """
    count = min(int(len(rows) * share), len(rows) - 1)
    shuffled = np.random.default_rng(seed).permutation(np.asarray(rows))
    return sorted(shuffled[count:].tolist()), sorted(shuffled[:count].tolist())


def score_held_out(
    scorer: Scorer, store: PatchStore, rows: Sequence[int], listener: Listener = ignore
) -> HeldOut:
    """Raw scores of good images that the model has not seen, from the store."""
    scores: list[float] = []
    with stage(listener, "threshold", len(rows), "images") as advance:
        for part, levels in iterate_pyramids(store, rows, READ_IMAGES):
            frames = [
                frame_of(store.images[row].width, store.images[row].height, store.header.features)
                for row in part
            ]
            scores += scorer.score_pyramid(levels, frames).scores.tolist()
            advance(len(part))
    return HeldOut(uris=tuple(store.images[row].uri for row in rows), scores=tuple(scores))


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

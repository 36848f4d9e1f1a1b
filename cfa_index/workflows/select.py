"""Choosing a start and an epoch by synthetic defects, where no labelled ones may decide.

What the model has stays unless something else is better beyond doubt: the interval of a paired bootstrap of
the difference in AUROC has to lie above zero. So a choice by defects that are no real ones does little harm
where they cannot tell two settings apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cfa_index.backbones import Backbone
from cfa_index.descriptor import PatchDescriptor
from cfa_index.events import Listener, Notice, ignore, stage
from cfa_index.metrics import paired_auroc_difference
from cfa_index.scorer import Scorer
from cfa_index.specs import Initialisation, ModelSpec
from cfa_index.store import PatchStore
from cfa_index.workflows.calibrate import calibrated_scorer
from cfa_index.workflows.probes import Probes, probe_auroc, probe_scores
from cfa_index.workflows.start import Start, make_start, patch_moments

_STARTS: tuple[tuple[Initialisation, float], ...] = (
    ("whiten", 0.01),
    ("whiten", 0.1),
    ("whiten", 1.0),
    ("identity", 0.0),
)
_SMALLER_BANK = 4


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One thing that was tried; a row of selection.csv.

    Attributes:
        axis: `initialisation`, `bank` or `epoch`.
        choice: what was tried, in words; the first of an axis is what the model had.
        synthetic_auroc: synthetic defects against the good images that they were drawn on.
        gain, gain_low, gain_high: over what was kept before it, with a paired 95% bootstrap interval.
        kept: whether it took that one's place.
    """

    axis: str
    choice: str
    synthetic_auroc: float
    gain: float
    gain_low: float
    gain_high: float
    kept: bool


class Selection:
    """What is kept so far, and everything that was tried."""

    def __init__(self, probes: Probes) -> None:
        self.probes = probes
        self.trials: list[Trial] = []
        self._best: NDArray[np.float32] | None = None

    def consider(self, axis: str, choice: str, scorer: Scorer) -> bool:
        """Score the probes; whether this is to be kept in place of what was."""
        scores = probe_scores(scorer, self.probes)
        gain, low, high = 0.0, 0.0, 0.0
        if self._best is not None:
            gain, low, high = paired_auroc_difference(self.probes.labels, scores, self._best)
        kept = self._best is None or low > 0
        if kept:
            self._best = scores
        value = probe_auroc(self.probes, scores)
        self.trials.append(
            Trial(
                axis=axis,
                choice=choice,
                synthetic_auroc=value,
                gain=gain,
                gain_low=low,
                gain_high=high,
                kept=kept,
            )
        )
        return kept


def choose_start(
    selection: Selection,
    own: Start,
    *,
    backbone: Backbone,
    store: PatchStore,
    rows: Sequence[int],
    listener: Listener = ignore,
) -> Start:
    """The model's own start, or a better one: initialisation first, then the bank.

    The baseline is not asked about. Synthetic defects lie anywhere, real ones stand out from what is usual at
    their place, and the two disagree about it (docs/adaptation.md).

    Args:
        selection: takes the trials.
        own: what the model has.
        backbone: for the scorers; it is not called.
        store, rows: the fit images.
        listener: told of progress.
    """
    kept = own

    def scorer_of(start: Start) -> Scorer:
        return calibrated_scorer(
            backbone,
            start.phi_0,
            start.bank,
            features=start.spec.features,
            score=start.spec.score,
            store=store,
            rows=rows,
            seed=start.spec.seed,
            listener=listener,
        )

    selection.consider("initialisation", "as built", scorer_of(own))
    moments = patch_moments(store, rows, seed=own.spec.seed, listener=listener)
    for axis, choices in (("initialisation", _initialisations), ("bank", _banks)):
        for choice, spec in choices(kept.spec):
            start = make_start(store, rows, spec, moments=moments, device=own.bank.device, listener=listener)
            if selection.consider(axis, choice, scorer_of(start)):
                kept = start
                listener(Notice(message=f"selected by synthetic defects: {axis} {choice}"))
    return kept


def choose_epoch(
    selection: Selection,
    epochs: Sequence[PatchDescriptor],
    start: Start,
    *,
    backbone: Backbone,
    store: PatchStore,
    rows: Sequence[int],
    listener: Listener = ignore,
) -> int:
    """The epoch to keep, from 1; 0 for the start itself.

    Args:
        selection: after `choose_start`.
        epochs: phi after each.
        start, backbone, store, rows, listener: as for `choose_start`.
    """
    chosen = 0
    with stage(listener, "selection", len(epochs), "epochs") as advance:
        for number, phi in enumerate(epochs, start=1):
            scorer = calibrated_scorer(
                backbone,
                phi,
                start.bank,
                features=start.spec.features,
                score=start.spec.score,
                store=store,
                rows=rows,
                seed=start.spec.seed,
            )
            if selection.consider("epoch", str(number), scorer):
                chosen = number
            advance(1)
    return chosen


def _initialisations(spec: ModelSpec) -> Iterator[tuple[str, ModelSpec]]:
    own = spec.descriptor
    for init, shrinkage in _STARTS:
        if init == "identity" and own.gamma_d < 1:
            continue
        tried = replace(own, init=init, standardise=True, expansion=1.0)
        if init == "whiten":
            tried = replace(tried, shrinkage=shrinkage)
        if tried != own:
            words = "standardised only" if init == "identity" else f"whitened, shrinkage {shrinkage}"
            yield words, replace(spec, descriptor=tried)


def _banks(spec: ModelSpec) -> Iterator[tuple[str, ModelSpec]]:
    if spec.bank.method != "hybrid":
        yield "hybrid", replace(spec, bank=replace(spec.bank, method="hybrid"))
    if spec.bank.size is not None and spec.bank.size // _SMALLER_BANK > spec.score.neighbors:
        size = spec.bank.size // _SMALLER_BANK
        yield f"{size} memories", replace(spec, bank=replace(spec.bank, size=size))

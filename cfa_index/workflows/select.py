"""Choosing a start and an epoch by synthetic defects, where no labelled ones may decide.

What the model has stays unless something else is better beyond chance: the interval of a paired bootstrap of
the difference in AUROC has to lie above zero. The bootstrap draws images, each with all the defects drawn on
it, and the level is divided among all trials (Bonferroni). So a choice by defects that are no real ones does
little harm where they cannot tell two settings apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cfa_index.backbones import Backbone
from cfa_index.descriptor import PatchDescriptor
from cfa_index.events import Listener, Notice, ignore, stage
from cfa_index.scorer import Scorer
from cfa_index.specs import Initialisation, ModelSpec
from cfa_index.store import PatchStore
from cfa_index.workflows.calibrate import calibrated_scorer
from cfa_index.workflows.probes import Probes, probe_scores
from cfa_index.workflows.start import Start, make_start, patch_moments

_STARTS: tuple[tuple[Initialisation, float], ...] = (
    ("whiten", 0.01),
    ("whiten", 0.1),
    ("whiten", 1.0),
    ("identity", 0.0),
)
_SMALLER_BANK = 4
_MOST_STARTS = 6
_RESAMPLES = 4000


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One thing that was tried; a row of selection.csv.

    Attributes:
        axis: `initialisation`, `bank` or `epoch`.
        choice: what was tried, in words; the first of all is what the model had.
        synthetic_auroc: synthetic defects against the good images that they were drawn on.
        gain, gain_low, gain_high: over what was kept before it, with its interval.
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

    def __init__(self, probes: Probes, *, epochs: int) -> None:
        self.probes = probes
        self.trials: list[Trial] = []
        self._level = 1 - 0.05 / (_MOST_STARTS + epochs)
        self._best: NDArray[np.float64] | None = None

    def consider(self, axis: str, choice: str, scorer: Scorer) -> bool:
        """Score the probes; whether this is to be kept in place of what was."""
        scores = probe_scores(scorer, self.probes)
        wins = win_shares(self.probes.labels, scores)
        gain, low, high = (
            (0.0, 0.0, 0.0) if self._best is None else paired_gain(wins, self._best, self._level)
        )
        kept = self._best is None or low > 0
        if kept:
            self._best = wins
        self.trials.append(
            Trial(
                axis=axis,
                choice=choice,
                synthetic_auroc=float(wins.mean()),
                gain=gain,
                gain_low=low,
                gain_high=high,
                kept=kept,
            )
        )
        return kept


def win_shares(labels: NDArray[np.bool_], scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, n): how many of the defects drawn on image j score above good image i, as a share; ties half.

    Its mean is the AUROC; with images drawn t times, it is t^T W t / n^2.

    Args:
        labels: bool (5n,), as `Probes` has them.
        scores: (5n,) float32.
    """
    good = scores[~labels]
    drawn = scores[labels].reshape(-1, len(good))  # (kinds, n)
    above = drawn[:, None, :] > good[None, :, None]
    ties = drawn[:, None, :] == good[None, :, None]
    shares: NDArray[np.float64] = (above + 0.5 * ties).mean(axis=0)
    return shares


def paired_gain(
    wins: NDArray[np.float64], before: NDArray[np.float64], level: float
) -> tuple[float, float, float]:
    """AUROC of one minus that of another, with a bootstrap interval over images, each with its defects."""
    count = len(wins)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    difference = wins - before
    values = np.einsum("ri,ij,rj->r", drawn, difference, drawn, optimize=True) / count**2
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(difference.mean()), float(low), float(high)


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
        return calibrated_scorer(backbone, start.phi_0, start, store=store, rows=rows, listener=listener)

    selection.consider("initialisation", "as built", scorer_of(own))
    moments = patch_moments(store, rows, seed=own.spec.seed, listener=listener)
    for axis, choices in (
        ("initialisation", _initialisations),
        ("bank", _methods),
        ("bank", _sizes),
    ):
        for choice, spec in choices(kept.spec):
            start = make_start(
                store,
                rows,
                spec,
                moments=moments,
                device=own.bank.device,
                card=own.bank.card,
                listener=listener,
            )
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
            scorer = calibrated_scorer(backbone, phi, start, store=store, rows=rows)
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


def _methods(spec: ModelSpec) -> Iterator[tuple[str, ModelSpec]]:
    if spec.bank.method != "hybrid" and not spec.bank.counts_all_patches:
        yield "hybrid", replace(spec, bank=replace(spec.bank, method="hybrid"))


def _sizes(spec: ModelSpec) -> Iterator[tuple[str, ModelSpec]]:
    size = (spec.bank.size or 0) // _SMALLER_BANK
    needed = max(spec.score.neighbors, spec.train.attract + spec.train.repel)
    if not spec.bank.counts_all_patches and size >= needed:
        yield f"{size} memories", replace(spec, bank=replace(spec.bank, size=size))

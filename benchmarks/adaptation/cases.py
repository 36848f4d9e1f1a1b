"""What is tried: one case a row, each a training with its own start, bank and loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training to watch.

    Attributes:
        name: in tables and plots.
        init: of phi; `torch` is the published code's, `identity` only standardises.
        bank: `mean` is the published code's, position means; `kmeans` is over all fit patches.
        learning_rate: of AdamW with amsgrad.
        radius: where r starts: `published` is 1e-5; `median` the median distance to the K-th memory;
            `beyond` the median distance to the (K+J)-th, where half of the repelling terms are active.
        learn_radius: whether r moves.
        repel: J.
        margin: alpha as a share of the median squared distance to the K-th memory; None is the
            published 0.1 whatever the scale.
        anchor: weight of the mean squared distance between phi(p) and phi_0(p).
        refresh: whether the memories move to the means of their patches after each epoch, from every second
            fit cell.
        negatives: what is kept at a distance of more than r beside the loss: nothing, patches with
            Gaussian noise, or patches of synthetic defects.
    """

    name: str
    init: Literal["torch", "identity", "whiten"] = "whiten"
    bank: Literal["mean", "kmeans"] = "kmeans"
    learning_rate: float = 1e-4
    radius: Literal["published", "median", "beyond"] = "median"
    learn_radius: bool = True
    repel: int = 3
    margin: float | None = None
    anchor: float = 0.0
    refresh: bool = False
    negatives: Literal["none", "noise", "synthetic"] = "none"


PUBLISHED = Case(name="published", init="torch", bank="mean", learning_rate=1e-3, radius="published")
"""The published code's bank, start, step and radius."""
_WHITENED = Case(name="whitened")

CASES: tuple[Case, ...] = (
    PUBLISHED,
    replace(PUBLISHED, name="published, standardised", init="identity"),
    replace(PUBLISHED, name="published, k-means bank", init="identity", bank="kmeans"),
    replace(
        PUBLISHED,
        name="published, k-means bank, small step",
        init="identity",
        bank="kmeans",
        learning_rate=1e-4,
    ),
    replace(_WHITENED, name="whitened, position means", bank="mean"),
    _WHITENED,
    replace(_WHITENED, name="whitened, r published", radius="published"),
    replace(_WHITENED, name="whitened, r fixed", learn_radius=False),
    replace(_WHITENED, name="whitened, r and alpha beyond", radius="beyond", margin=0.1, learn_radius=False),
    replace(_WHITENED, name="whitened, anchored", anchor=1.0),
    replace(_WHITENED, name="whitened, bank refreshed", refresh=True),
    replace(_WHITENED, name="whitened, noise negatives", negatives="noise", learn_radius=False),
    replace(_WHITENED, name="whitened, synthetic negatives", negatives="synthetic", learn_radius=False),
)
"""All of them; `--case` picks some by a part of the name."""

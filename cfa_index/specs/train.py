"""Adapting phi."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from cfa_index.specs.base import LARGEST_SEED, Spec, require

Selection = Literal["none", "synthetic"]


@dataclass(frozen=True, kw_only=True)
class TrainSpec(Spec):
    """Adapting phi against the frozen bank (Eqs. 1-3).

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step.
        learning_rate, weight_decay: of AdamW with amsgrad (paper, Sec. 4.1).
        attract: K, nearest memories that pull.
        repel: J, the next ones that push.
        margin: alpha, on squared distances.
        radius: start of the learned radius r, or `median`: the root of the median squared distance
            to the K-th neighbour under phi_0.
        learn_radius: whether r moves with the loss (the paper) or stays where it starts.
        loss_scale: factor on the loss (the published code: 1,000).
        drop_last: leave out an incomplete last batch (the published code).
        select: `synthetic` chooses start and epoch by synthetic defects; `none` takes the last epoch.
        seed: of the order of the images; None takes the model's.
    """

    epochs: int = 1
    batch_size: int = 4
    learning_rate: float = 1e-4
    weight_decay: float = 5e-4
    attract: int = 3
    repel: int = 3
    margin: float = 0.1
    radius: float | Literal["median"] = "median"
    learn_radius: bool = True
    loss_scale: float = 1.0
    drop_last: bool = False
    select: Selection = "none"
    seed: int | None = None

    def __post_init__(self) -> None:
        require(
            self.seed is None or 0 <= self.seed <= LARGEST_SEED,
            "seed",
            f"from 0 to {LARGEST_SEED}",
            self.seed,
        )
        require(self.epochs >= 0, "epochs", "0 or more", self.epochs)
        require(self.batch_size >= 1, "batch_size", "1 or more", self.batch_size)
        require(
            0 < self.learning_rate < math.inf, "learning_rate", "finite and more than 0", self.learning_rate
        )
        require(0 <= self.weight_decay < math.inf, "weight_decay", "finite, 0 or more", self.weight_decay)
        require(self.attract >= 1, "attract (K)", "1 or more", self.attract)
        require(self.repel >= 0, "repel (J)", "0 or more", self.repel)
        require(0 <= self.margin < math.inf, "margin (alpha)", "finite, 0 or more", self.margin)
        radius_fits = self.radius == "median" if isinstance(self.radius, str) else 0 < self.radius < math.inf
        require(radius_fits, "radius", "more than 0, or 'median'", self.radius)
        require(self.select in get_args(Selection), "select", f"one of {get_args(Selection)}", self.select)
        require(0 < self.loss_scale < math.inf, "loss_scale", "finite and more than 0", self.loss_scale)

"""The settings behind `--preset NAME`."""

from __future__ import annotations

import dataclasses
from typing import get_args

from cfa_index.errors import SpecError
from cfa_index.specs import (
    STRIDES,
    BankSpec,
    DescriptorSpec,
    FeatureSpec,
    ModelSpec,
    PresetName,
    ScoreSpec,
    TrainSpec,
)


def preset(name: str) -> ModelSpec:
    """The settings behind `--preset NAME`: `recommended`, `paper` or `published-code`.

    Raises:
        SpecError: there is no preset of that name.
    """
    if name == "recommended":
        return ModelSpec()
    if name == "paper":
        return _PAPER
    if name == "published-code":
        return dataclasses.replace(
            _PAPER,
            preset="published-code",
            descriptor=DescriptorSpec(init="torch", gamma_d=1.0, standardise=False),
            bank=BankSpec(method="mean", size=None, gamma_c=1.0),
            train=dataclasses.replace(_PAPER.train, loss_scale=1000.0, drop_last=True),
        )
    raise SpecError(
        expected=f"a preset among {', '.join(get_args(PresetName))}",
        got=repr(name),
        remedy="choose one of these",
    )


_PAPER = ModelSpec(
    preset="paper",
    features=FeatureSpec(strides=STRIDES, geometry="crop"),
    descriptor=DescriptorSpec(init="he", gamma_d=1.0, standardise=False),
    bank=BankSpec(method="ema", size=None, gamma_c=1.0),
    train=TrainSpec(epochs=30, learning_rate=1e-3, radius=1e-5),
    score=ScoreSpec(patch_score="certainty", baseline="none"),
    held_out=0.0,
)
"""PAPER, Sec. 4.1: K = J = 3, alpha = 0.1, AdamW with amsgrad, batch 4, 30 epochs; every good image is
used, so there is no threshold unless images are held out."""

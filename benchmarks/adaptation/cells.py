"""The development cells of one type as pyramids in memory: good ones to fit, good ones held out, doubtful ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cfa_index import (
    DEFECT_KINDS,
    Backbone,
    FeatureSpec,
    Moments,
    RunningMoments,
    draw_defect,
    load_batches,
    patches_at,
    split_cells,
    split_held_out,
)

Pyramids = list[Tensor]
"""A level: (n, C_l, h_l, w_l) float16, channels last in memory."""


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Pyramids of one cell type.

    Attributes:
        fit: good cells for bank and training.
        good: good cells that neither sees.
        doubtful: cells of defect probability 1/3 and 2/3; the development set's defects.
        drawn: the first `fit` cells with a synthetic defect each, and `masks` (n, h*w) bool, the
            patches that the defect covers by half or more.
        moments: of the `fit` patches.
    """

    features: FeatureSpec
    fit: Pyramids
    good: Pyramids
    doubtful: Pyramids
    drawn: Pyramids
    masks: Tensor
    moments: Moments

    @property
    def images(self) -> int:
        """How many cells there are to fit."""
        return len(self.fit[0])


def load_cells(
    cell_type: Literal["mono", "poly"],
    backbone: Backbone,
    features: FeatureSpec,
    *,
    images: int | None,
    drawn: int,
    seed: int,
) -> Cells:
    """Read the development cells; `images` limits each part, for a quick look."""
    split = split_cells(cell_type)
    fit_rows, held_rows = split_held_out(range(len(split.train_good)), 0.2, seed)
    fit = [split.train_good[row] for row in fit_rows][:images]
    pixels, fit_levels = _pyramids(fit, backbone, features)
    made, masks = _draw(pixels[:drawn], features, seed)
    return Cells(
        features=features,
        fit=fit_levels,
        good=_pyramids([split.train_good[row] for row in held_rows][:images], backbone, features)[1],
        doubtful=_pyramids(split.uncertain[:images], backbone, features)[1],
        drawn=_levels(backbone, made),
        masks=masks,
        moments=_moments(fit_levels, seed),
    )


def batches(levels: Pyramids, order: Sequence[int], size: int) -> list[tuple[list[int], Pyramids]]:
    """Rows and pyramids in the given order."""
    parts = [list(order[start : start + size]) for start in range(0, len(order), size)]
    return [(part, [level[part] for level in levels]) for part in parts]


def _pyramids(
    files: Sequence[Path], backbone: Backbone, features: FeatureSpec
) -> tuple[np.ndarray[Any, Any], Pyramids]:
    pixels = torch.cat([batch.pixels for batch in load_batches(files, features, batch_size=16)])
    return pixels.numpy(), _levels(backbone, pixels)


def _levels(backbone: Backbone, pixels: Tensor) -> Pyramids:
    parts = [backbone.pyramid(part) for part in torch.split(pixels, 16)]
    return [torch.cat([part[number].half() for part in parts]) for number in range(len(backbone.channels))]


def _draw(pixels: np.ndarray[Any, Any], features: FeatureSpec, seed: int) -> tuple[Tensor, Tensor]:
    height, width = features.grid
    made, masks = [], []
    for number, image in enumerate(pixels):
        kind = DEFECT_KINDS[number % len(DEFECT_KINDS)]
        defect = draw_defect(image, kind=kind, seed=(seed, number), other=pixels[number - 1])
        cells = defect.mask.reshape(height, features.strides[0], width, features.strides[0])
        made.append(defect.pixels)
        masks.append(cells.mean((1, 3)).ravel() >= 0.5)
    return torch.from_numpy(np.stack(made)), torch.from_numpy(np.stack(masks))


def _moments(levels: Pyramids, seed: int) -> Moments:
    running = RunningMoments(sum(level.shape[1] for level in levels))
    cells = levels[0].shape[2] * levels[0].shape[3]
    for row in range(len(levels[0])):
        picked = np.random.default_rng([seed, row]).choice(cells, size=min(64, cells), replace=False)
        running.update(patches_at([level[row] for level in levels], torch.from_numpy(picked)).numpy())
    return running.result()

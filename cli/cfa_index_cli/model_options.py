"""Options of commands that make models: from images to features, and what is random."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfa_index.specs import LARGEST_SEED, ModelSpec
from cfa_index_cli import options as o

if TYPE_CHECKING:
    from cfa_index import Backbone

_DEFAULTS = o.RECOMMENDED

BackboneName = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help=o.with_default(
            "wide_resnet50_2, resnet18, vgg19_bn, efficientnet_b5, efficientnet_lite0 (to 2), or any of "
            "timm as timm:NAME; `cfa-index backbones` compares them.",
            _DEFAULTS.features.backbone,
        ),
        rich_help_panel=o.FEATURES,
    ),
]
Geometry = Annotated[
    o.GeometryName | None,
    typer.Option(
        "--geometry",
        help=o.with_default(
            "Look at the whole frame, its centre crop, or a letterbox.", _DEFAULTS.features.geometry
        ),
        rich_help_panel=o.FEATURES,
    ),
]
SizePx = Annotated[
    int | None,
    typer.Option(
        "--size",
        help=o.with_default("Side of the network's square in pixels.", _DEFAULTS.features.size_px),
        rich_help_panel=o.FEATURES,
    ),
]
Strides = Annotated[
    str | None,
    typer.Option(
        "--strides",
        help=o.with_default(
            "Pyramid levels, such as 8,16 or 4,8,16.", ",".join(map(str, _DEFAULTS.features.strides))
        ),
        rich_help_panel=o.FEATURES,
    ),
]
HeldOut = Annotated[
    str | None,
    typer.Option(
        "--held-out",
        help=o.with_default("Share of good images kept for the threshold.", _DEFAULTS.held_out),
        rich_help_panel=o.SCORE,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        max=LARGEST_SEED,
        help=o.with_default("Of every random choice.", _DEFAULTS.seed),
        rich_help_panel=o.RUN,
    ),
]


def network_of(spec: ModelSpec, weights: str | None) -> Backbone:
    """The backbone of some settings, with the weights that `--weights` names. Raises WeightsError, SpecError."""
    from cfa_index import load_backbone

    return load_backbone(
        spec.features.backbone,
        spec.features.strides,
        size_px=spec.features.size_px,
        weights="random" if weights == "random" else None if weights is None else Path(weights),
        seed=spec.seed,
    )

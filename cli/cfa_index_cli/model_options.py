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
_OVERLAPS_A_TILE = 7
"""32 of 224: a patch and what its neighbours see of it."""

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
Tile = Annotated[
    int | None,
    typer.Option(
        "--tile",
        min=0,
        help="Cut images into squares of this many source pixels and look at each by itself, resized to --size: "
        "for defects that are too small to see once a large image is shrunk. Each tile costs as much as an image.",
        show_default=False,
        rich_help_panel=o.FEATURES,
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(
        "--overlap",
        min=0,
        help="Source pixels that neighbouring tiles share, where their maps are blended; with none "
        f"the map has steps at their borders. [default: 1/{_OVERLAPS_A_TILE} of --tile]",
        show_default=False,
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


def tile_settings(tile: int | None, overlap: int | None) -> dict[str, int | None]:
    """The settings of `FeatureSpec` behind `--tile` and `--overlap`."""
    if tile and overlap is None:
        overlap = tile // _OVERLAPS_A_TILE
    return {"tile_px": tile, "overlap_px": overlap}


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

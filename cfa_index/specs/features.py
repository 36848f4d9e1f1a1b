"""From an image to its pyramid, and the descriptor over it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from cfa_index.specs.base import Spec, require

Geometry = Literal["whole", "crop", "letterbox"]
Initialisation = Literal["he", "torch", "identity", "whiten"]

STRIDES = (4, 8, 16)
CROP_RATIO = 224 / 256
"""Side of the centre crop over side of the resized image (paper, Sec. 4.1: resize 256, crop 224)."""


@dataclass(frozen=True, kw_only=True)
class FeatureSpec(Spec):
    """From an image to its pyramid of patch features.

    Attributes:
        backbone: name in the registry of `backbones`.
        strides: levels used, finest first; the finest sets the patch grid h = w = size_px / stride.
        geometry: `whole` resizes the whole frame to a square, `crop` resizes to a square of
            size_px / CROP_RATIO and keeps its centre (the paper), `letterbox` keeps the aspect
            ratio and marks the padding as not inspected.
        size_px: side of the square that the network sees, a multiple of 16.
        tile_px: side in source pixels of the squares that an image is cut into, each of which the network
            sees by itself, resized to size_px; 0 for no tiles. An image then has as many views as tiles.
        overlap_px: source pixels that neighbouring tiles share; their maps are blended over them.
    """

    backbone: str = "wide_resnet50_2"
    strides: tuple[int, ...] = (8, 16)
    geometry: Geometry = "whole"
    size_px: int = 224
    tile_px: int = 0
    overlap_px: int = 0

    def __post_init__(self) -> None:
        require(
            self.geometry in get_args(Geometry), "geometry", f"one of {get_args(Geometry)}", self.geometry
        )
        strides_fit = len(self.strides) > 0 and tuple(sorted(set(self.strides))) == self.strides
        require(
            strides_fit and set(self.strides) <= set(STRIDES),
            "strides",
            "some of 4, 8, 16, ascending",
            self.strides,
        )
        require(
            32 <= self.size_px <= 4096 and self.size_px % 16 == 0,
            "size_px",
            "a multiple of 16 from 32 to 4096",
            self.size_px,
        )
        require(
            self.tile_px == 0 or 32 <= self.tile_px <= 4096,
            "tile_px",
            "0 for no tiles, or from 32 to 4096",
            self.tile_px,
            f"give the side of a tile in source pixels, such as {self.size_px}",
        )
        require(
            self.overlap_px == 0 or self.tile_px > 0,
            "overlap_px",
            "0 without tiles",
            self.overlap_px,
            "give --tile too",
        )
        require(
            self.tile_px == 0 or 0 <= self.overlap_px < self.tile_px,
            "overlap_px",
            f"from 0 to below tile_px = {self.tile_px}",
            self.overlap_px,
            f"give about a seventh of the tile, such as {self.tile_px // 7}",
        )
        require(
            self.tile_px == 0 or self.geometry == "whole",
            "geometry with tiles",
            "'whole': each tile is seen whole",
            self.geometry,
            "give --geometry whole, or leave out --tile",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; without tiles as they were before there were any, so that digests stay."""
        values = super().to_dict()
        if not self.tile_px:
            del values["tile_px"], values["overlap_px"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Remake it from `to_dict`. Raises SpecError, see `Spec.from_dict`."""
        return super().from_dict({"tile_px": 0, "overlap_px": 0, **values})

    @property
    def view_unit(self) -> str:
        """What a view of an image is called: `tiles`, or `images` where the network sees each of them whole."""
        return "tiles" if self.tile_px else "images"

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width (h, w) of the finest patch grid of one view."""
        side = self.size_px // self.strides[0]
        return side, side

    @property
    def patches_per_image(self) -> int:
        """T = h * w, of a whole image or of one tile."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True, kw_only=True)
class DescriptorSpec(Spec):
    """The 1x1 CoordConv phi: D + 2 -> D', and where it starts (phi_0).

    Attributes:
        init: `he` (paper), `torch` (the published code's convolution default), `identity`, or
            `whiten` (closed form from the patch covariance; keeps the leading directions).
        gamma_d: D' / D, in (0, 1].
        standardise: divide each channel by its standard deviation over the store first.
        shrinkage: weight of the mean variance added to the covariance before it is inverted.
        expansion: factor on D'; the paper has D' = 2 * D * gamma_d for EfficientNet-B5.
    """

    init: Initialisation = "whiten"
    gamma_d: float = 1.0
    expansion: float = 1.0
    standardise: bool = True
    shrinkage: float = 0.1

    def __post_init__(self) -> None:
        require(
            self.init in get_args(Initialisation), "init", f"one of {get_args(Initialisation)}", self.init
        )
        require(
            0 < self.gamma_d <= 1, "gamma_d", "a ratio in (0, 1]", self.gamma_d, "write 1/4 or 0.25, not 4"
        )
        require(
            self.init != "identity" or self.gamma_d == 1,
            "gamma_d",
            "1 with init 'identity'",
            self.gamma_d,
            "use init 'whiten' to keep fewer directions",
        )
        require(0 <= self.shrinkage < math.inf, "shrinkage", "finite, 0 or more", self.shrinkage)
        require(1 <= self.expansion <= 8, "expansion", "from 1 to 8", self.expansion)
        require(
            self.expansion == 1 or self.init in ("he", "torch"),
            "expansion",
            f"1 with init '{self.init}'",
            self.expansion,
            "only the random initialisations can be wider than the features",
        )

    def width(self, in_channels: int) -> int:
        """D' for D = `in_channels`, at least 1."""
        return max(1, round(in_channels * self.gamma_d * self.expansion))

"""Synthetic defects on good images, to choose settings where no labelled defect is at hand.

The kinds, and where they come from:

- `cutpaste`: a rectangle of the image, recoloured and turned, pasted elsewhere (Li et al., CutPaste,
  CVPR 2021).
- `scar`: a long thin line on a wandering path, dark, bright, or cut from elsewhere in the image (the
  scars of the same paper; cracks and scratches).
- `perlin`: another texture blended in where Perlin noise is high (Zavrtanik et al., DRAEM, ICCV 2021).
  The texture is another good image or the image's own tiles shuffled, so no second data set is needed.
- `fade`: a smooth blob that loses its contrast, or is darker or brighter, as a stain.

They are drawn with a size and a strength from faint to clear, both log-uniform. They are no model of any
product's real defects: nothing is bent, missing or in the wrong place, and what they rank well may rank
real defects badly. The two libraries for Perlin noise that are kept (`opensimplex`, `noise`) work a pixel
at a time; the few lines here work on arrays and on the caller's generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cfa_index.errors import ImageError, SpecError

DefectKind = Literal["cutpaste", "scar", "perlin", "fade"]
DEFECT_KINDS: tuple[DefectKind, ...] = get_args(DefectKind)

_Floats = NDArray[np.float32]
_Bools = NDArray[np.bool_]
_Layer = tuple[_Floats, _Floats]
"""What is laid over the image: opacity (S, S) in [0, 1], and content (3, S, S)."""

_SMALLEST_SHARE, _LARGEST_SHARE = 0.002, 0.1
"""Of the frame."""
_FAINTEST, _CLEAREST = 10.0, 90.0
"""Change of brightness, in grey levels of 255."""
_CHANGED = 4
"""Grey levels: a smaller difference, in all channels, counts as none and is undone."""
_TRIES = 12
_LEAST_SIDE_PX = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticDefect:
    """A good image with a defect drawn on it.

    Attributes:
        pixels: uint8 (3, S, S).
        mask: bool (S, S), exactly the pixels that differ from the good image; never empty.
        kind: of the defect.
    """

    pixels: NDArray[np.uint8]
    mask: _Bools
    kind: DefectKind


def draw_defect(
    pixels: NDArray[np.uint8],
    *,
    kind: DefectKind,
    seed: int | Sequence[int],
    other: NDArray[np.uint8] | None = None,
    inside: _Bools | None = None,
) -> SyntheticDefect:
    """Draw one defect on a good image; the same arguments give the same bytes.

    Args:
        pixels: uint8 (3, S, S), as the network sees it; left as it is.
        kind: one of `DEFECT_KINDS`.
        seed: 0 or more; for many images give (seed, number of the image), so that each has its own
            draw. The kind is added to it.
        other: uint8 (3, S, S), another good image, as the texture of `perlin`; without one the image
            itself serves, shuffled.
        inside: bool (S, S), where a defect may be: the product, or the part that is no padding. None
            for everywhere.

    Raises:
        SpecError: there is no such kind.
        ImageError: a shape or dtype is another, the image is below 16 px, or `inside` is empty.
    """
    if kind not in DEFECT_KINDS:
        raise SpecError(
            expected=f"a kind of defect among {', '.join(DEFECT_KINDS)}",
            got=repr(kind),
            remedy="choose one of these",
        )
    _check(pixels, other, inside)
    allowed = np.ones(pixels.shape[1:], dtype=np.bool_) if inside is None else inside
    seeds = [seed] if isinstance(seed, int) else list(seed)
    draw = _Draw(np.random.default_rng([*seeds, DEFECT_KINDS.index(kind)]), pixels, other, allowed)
    enough = max(1, min(0.5 * _SMALLEST_SHARE * allowed.size, 0.5 * np.count_nonzero(allowed)))
    for _ in range(_TRIES):
        made, mask = _laid_over(pixels, _KINDS[kind](draw), allowed)
        if np.count_nonzero(mask) >= enough:
            break
    else:  # such as a cut from a black image: nothing to see
        made, mask = _laid_over(pixels, _opposite(draw), allowed)
    return SyntheticDefect(pixels=made, mask=mask, kind=kind)


def _check(pixels: NDArray[np.uint8], other: NDArray[np.uint8] | None, inside: _Bools | None) -> None:
    for name, image in (("pixels", pixels), ("other", other)):
        if image is None:
            continue
        if image.dtype != np.uint8 or image.shape != pixels.shape or image.ndim != 3 or len(image) != 3:
            raise ImageError(
                expected=f"{name} as uint8 (3, S, S), both images alike",
                got=f"{image.dtype} {image.shape}",
                remedy="pass what network_pixels gives",
            )
    if min(pixels.shape[1:]) < _LEAST_SIDE_PX:
        raise ImageError(
            expected=f"an image of {_LEAST_SIDE_PX} px or more",
            got=f"{pixels.shape[1]}x{pixels.shape[2]}",
            remedy="give a larger image",
        )
    if inside is not None and (
        inside.dtype != np.bool_ or inside.shape != pixels.shape[1:] or not inside.any()
    ):
        raise ImageError(
            expected="inside as bool (S, S) with at least one True",
            got=f"{inside.dtype} {inside.shape}, {np.count_nonzero(inside)} of them true",
            remedy="pass the part of the image that may have a defect",
        )


class _Draw:
    """One image and the generator that draws on it."""

    def __init__(
        self,
        rng: np.random.Generator,
        pixels: NDArray[np.uint8],
        other: NDArray[np.uint8] | None,
        allowed: _Bools,
    ) -> None:
        self.rng = rng
        self.image: _Floats = pixels.astype(np.float32)  # (3, S, S)
        self.other = None if other is None else other.astype(np.float32)
        self.places = np.flatnonzero(allowed)
        self.shape = allowed.shape
        self.side = math.sqrt(allowed.size)
        self.colourful = float(self.image.std(axis=0).mean())

    def log_uniform(self, low: float, high: float) -> float:
        return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))

    def place(self) -> tuple[int, int]:
        """Row and column of a pixel that may have a defect."""
        row, column = np.unravel_index(self.rng.choice(self.places), self.shape)
        return int(row), int(column)

    def around(self, angle: float) -> tuple[_Floats, _Floats]:
        """(S, S) each: along and across, in pixels from a drawn place, turned by an angle in radians."""
        row, column = self.place()
        y, x = np.ogrid[: self.shape[0], : self.shape[1]]
        y, x = (y - row).astype(np.float32), (x - column).astype(np.float32)
        return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)

    def cut(self, opacity: _Floats, along: _Floats, across: _Floats) -> _Floats:
        """The image about another place, upright, as the content of a turned layer."""
        row, column = self.place()
        content, where = self.image.copy(), opacity > 0
        at = np.stack([row + across[where], column + along[where]])
        for channel, values in zip(content, self.image, strict=True):
            channel[where] = ndimage.map_coordinates(values, at, order=1, mode="mirror")
        return content

    def shift(self) -> float:
        """A change of brightness, either way."""
        return self.log_uniform(_FAINTEST, _CLEAREST) * float(self.rng.choice((-1.0, 1.0)))

    def recoloured(self, content: _Floats, most: float) -> _Floats:
        """Contrast, brightness and, where the image has colours, the tint changed by up to `most` levels."""
        tint = self.rng.uniform(-1, 1, (3, 1, 1)) * min(most, self.colourful) / 2
        middle = content.mean(axis=(1, 2), keepdims=True)
        contrast = self.rng.uniform(0.7, 1.3)
        changed: _Floats = (content - middle) * contrast + middle + self.rng.uniform(-most, most) + tint
        return changed.astype(np.float32)


def _laid_over(pixels: NDArray[np.uint8], layer: _Layer, allowed: _Bools) -> tuple[NDArray[np.uint8], _Bools]:
    """The image under a layer, and where it has visibly changed; elsewhere it is as it was, to the bit."""
    opacity, content = layer
    blended = pixels + opacity * allowed * (content.clip(0, 255) - pixels)
    made = np.rint(blended).astype(np.uint8)
    mask = np.abs(made.astype(np.int16) - pixels).max(axis=0) > _CHANGED
    return np.where(mask, made, pixels), mask


def _cutpaste(draw: _Draw) -> _Layer:
    area = draw.log_uniform(_SMALLEST_SHARE, _LARGEST_SHARE) * draw.side**2
    aspect = draw.log_uniform(0.3, 3.3)
    angle = draw.rng.uniform(-math.pi / 4, math.pi / 4) if draw.rng.random() < 0.5 else 0.0
    along, across = draw.around(angle)
    outside = np.maximum(
        np.abs(along) - math.sqrt(area * aspect) / 2, np.abs(across) - math.sqrt(area / aspect) / 2
    )
    opacity = (0.5 - outside / draw.rng.uniform(1, 4)).clip(0, 1)
    return opacity, draw.recoloured(draw.cut(opacity, along, across), 25)


def _scar(draw: _Draw) -> _Layer:
    length = draw.log_uniform(0.1, 0.6) * draw.side
    area = draw.log_uniform(_SMALLEST_SHARE, 0.03) * draw.side**2
    along, across = draw.around(draw.rng.uniform(0, math.pi))
    position = (along / length + 0.5).clip(0, 1)  # from one end, 0, to the other, 1
    steps = draw.rng.normal(size=16).cumsum()
    steps = (steps - steps.mean()) * length * draw.rng.uniform(0, 0.04)
    path = np.interp(position, np.linspace(0, 1, len(steps)), steps)
    width = min(max(1.2, area / length), length / 5)
    half_width = width / 2 * np.sqrt(4 * position * (1 - position))  # thin at its ends
    opacity = (half_width + 0.5 - np.abs(across - path)).clip(0, 1) * (half_width > 0)
    if draw.rng.random() < 1 / 3:
        return opacity, draw.recoloured(draw.cut(opacity, along, across), 25)
    return opacity, draw.image + draw.shift()


def _perlin(draw: _Draw) -> _Layer:
    share = draw.log_uniform(_SMALLEST_SHARE, _LARGEST_SHARE)
    along, across = draw.around(0.0)
    reach = math.sqrt(share) * draw.side * draw.rng.uniform(0.5, 1.5)
    near = np.exp(-(along**2 + across**2) / (2 * reach**2))
    cells = 2 ** draw.rng.integers(2, 6, size=2)
    field = near * (1 + _perlin_noise(draw.rng, draw.shape, cells))
    region = field >= np.quantile(field, 1 - share)
    soft = ndimage.gaussian_filter(region.astype(np.float32), 0.7)
    opacity = (soft * draw.rng.uniform(0.2, 0.8)).astype(np.float32)
    return opacity, draw.recoloured(_texture(draw), 50)


def _texture(draw: _Draw) -> _Floats:
    """(3, S, S): another image turned over, or this one's tiles shuffled."""
    if draw.other is not None and draw.rng.random() < 0.5:
        return draw.other[:, :: draw.rng.choice((-1, 1)), :: draw.rng.choice((-1, 1))]
    rows, columns = (draw.rng.permutation(8) for _ in range(2))
    bands = [np.array_split(np.arange(side), 8) for side in draw.shape]
    y, x = (np.concatenate([bands[axis][i] for i in order]) for axis, order in enumerate((rows, columns)))
    shuffled: _Floats = draw.image[:, y][:, :, x][:, :: draw.rng.choice((-1, 1))]
    return shuffled


def _fade(draw: _Draw) -> _Layer:
    area = draw.log_uniform(_SMALLEST_SHARE, _LARGEST_SHARE) * draw.side**2
    aspect = draw.log_uniform(0.4, 2.5)
    along, across = draw.around(draw.rng.uniform(0, math.pi))
    radius = np.hypot(along / math.sqrt(aspect), across * math.sqrt(aspect)) / math.sqrt(area / math.pi)
    radius = radius * (1 + 0.5 * _perlin_noise(draw.rng, draw.shape, np.array([4, 4])))
    opacity = (1 - radius**2).clip(0, 1) ** draw.rng.uniform(0.3, 1)
    smooth = ndimage.gaussian_filter(draw.image, (0, *[draw.side * draw.rng.uniform(0.01, 0.04)] * 2))
    kept = draw.rng.choice((0.0, 0.5, 1.0))  # of the contrast
    brighter = 0.0 if draw.rng.random() < 1 / 4 else draw.shift()
    return opacity.astype(np.float32), kept * draw.image + (1 - kept) * smooth + brighter


def _opposite(draw: _Draw) -> _Layer:
    """A disc, half way to white where the image is dark and to black where it is light: always seen."""
    along, across = draw.around(0.0)
    disc = np.hypot(along, across) < max(2.0, 0.05 * draw.side)
    opposite = np.where(draw.image < 128, 255, 0).astype(np.float32)
    return disc * np.float32(0.5), opposite


def _perlin_noise(rng: np.random.Generator, shape: tuple[int, ...], cells: NDArray[np.int64]) -> _Floats:
    """(S, S), about -0.7 to 0.7: gradient noise with `cells` (rows, columns) over the frame (Perlin 1985, 2002)."""
    angle = rng.uniform(0, 2 * math.pi, (cells[0] + 1, cells[1] + 1))
    y, x = (np.arange(side) * (n / side) for side, n in zip(shape, cells, strict=True))
    row, column = y.astype(int)[:, None], x.astype(int)[None, :]
    y, x = y[:, None] - row, x[None, :] - column  # in [0, 1) within the cell

    def corner(down: int, right: int) -> NDArray[np.float64]:
        a = angle[row + down, column + right]
        towards: NDArray[np.float64] = np.sin(a) * (y - down) + np.cos(a) * (x - right)
        return towards

    def ease(t: NDArray[np.float64]) -> NDArray[np.float64]:
        eased: NDArray[np.float64] = t**3 * (t * (6 * t - 15) + 10)
        return eased

    top = corner(0, 0) + ease(x) * (corner(0, 1) - corner(0, 0))
    bottom = corner(1, 0) + ease(x) * (corner(1, 1) - corner(1, 0))
    return (top + ease(y) * (bottom - top)).astype(np.float32)


_KINDS: dict[DefectKind, Callable[[_Draw], _Layer]] = {
    "cutpaste": _cutpaste,
    "scar": _scar,
    "perlin": _perlin,
    "fade": _fade,
}

from __future__ import annotations

import numpy as np
import pytest
from made_up import texture
from numpy.typing import NDArray

from cfa_index.defects import DEFECT_KINDS, DefectKind, draw_defect
from cfa_index.errors import ImageError, SpecError

KINDS = pytest.mark.parametrize("kind", DEFECT_KINDS)


def pixels(number: int = 0, side: int = 64) -> NDArray[np.uint8]:
    return np.ascontiguousarray(texture(number, width=side, height=side).transpose(2, 0, 1))


@KINDS
def test_the_mask_is_what_has_changed(kind: DefectKind) -> None:
    good, other = pixels(1), pixels(2)
    before = good.copy()
    for number in range(40):
        made = draw_defect(good, kind=kind, seed=(0, number), other=other)
        assert made.kind == kind
        assert made.pixels.dtype == np.uint8
        assert made.mask.any()
        np.testing.assert_array_equal(made.mask, (made.pixels != good).any(axis=0))
        difference = np.abs(made.pixels.astype(int) - good).max(axis=0)
        assert difference[made.mask].min() > 4  # what has changed can be seen
    np.testing.assert_array_equal(good, before)


@KINDS
def test_sizes_and_strengths_spread(kind: DefectKind) -> None:
    good = pixels(1, side=128)
    drawn = [draw_defect(good, kind=kind, seed=(7, number)) for number in range(60)]
    shares = [made.mask.mean() for made in drawn]
    assert 0.0009 < min(shares) < 0.005
    assert 0.015 < max(shares) < 0.13
    changes = [np.abs(made.pixels.astype(int) - good)[:, made.mask].mean() for made in drawn]
    assert min(changes) < 15
    assert max(changes) > 30


@KINDS
def test_a_draw_follows_from_its_seed(kind: DefectKind) -> None:
    good = pixels(1)
    first = draw_defect(good, kind=kind, seed=(3, 5))
    again = draw_defect(good, kind=kind, seed=[3, 5])
    np.testing.assert_array_equal(first.pixels, again.pixels)
    for other_seed in ((3, 6), (4, 5), 3):
        assert (draw_defect(good, kind=kind, seed=other_seed).pixels != first.pixels).any()


def test_kinds_differ() -> None:
    drawn = {draw_defect(pixels(1), kind=kind, seed=0).pixels.tobytes() for kind in DEFECT_KINDS}
    assert len(drawn) == len(DEFECT_KINDS)


@KINDS
@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_constant_image_has_a_visible_defect(kind: DefectKind, level: int) -> None:
    flat = np.full((3, 32, 32), level, np.uint8)
    for number in range(20):
        made = draw_defect(flat, kind=kind, seed=(1, number))
        assert made.mask.any()
        assert made.pixels.std() > 0


@KINDS
@pytest.mark.parametrize("side", [16, 32, 33])
def test_small_images(kind: DefectKind, side: int) -> None:
    for number in range(20):
        made = draw_defect(pixels(number, side), kind=kind, seed=(1, number))
        assert made.pixels.shape == (3, side, side)
        assert 0 < made.mask.sum() < 0.5 * side**2


@KINDS
def test_defects_lie_inside(kind: DefectKind) -> None:
    inside = np.zeros((64, 64), np.bool_)
    inside[20:40, 8:60] = True
    for number in range(30):
        made = draw_defect(pixels(1), kind=kind, seed=(2, number), inside=inside)
        assert made.mask.any()
        assert not (made.mask & ~inside).any()


@KINDS
def test_a_single_pixel_that_may_have_a_defect_gets_it(kind: DefectKind) -> None:
    inside = np.zeros((64, 64), np.bool_)
    inside[63, 0] = True
    np.testing.assert_array_equal(draw_defect(pixels(1), kind=kind, seed=0, inside=inside).mask, inside)


@KINDS
def test_grey_stays_grey(kind: DefectKind) -> None:
    grey = np.repeat(pixels(1)[:1], 3, axis=0)
    for number in range(10):
        made = draw_defect(grey, kind=kind, seed=(1, number)).pixels
        np.testing.assert_array_equal(made, np.repeat(made[:1], 3, axis=0))


def test_perlin_blends_the_other_image() -> None:
    good, black = np.full((3, 64, 64), 200, np.uint8), np.zeros((3, 64, 64), np.uint8)
    darkest = [draw_defect(good, kind="perlin", seed=(0, n), other=black).pixels.min() for n in range(30)]
    alone = [draw_defect(good, kind="perlin", seed=(0, n)).pixels.min() for n in range(30)]
    assert min(darkest) < 80 < min(alone)


def test_bad_input() -> None:
    good = pixels(1)
    with pytest.raises(SpecError, match="among cutpaste, scar, perlin, fade, got 'hole'"):
        draw_defect(good, kind="hole", seed=0)  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(ImageError, match=r"pixels as uint8 \(3, S, S\)"):
        draw_defect(good[0], kind="scar", seed=0)
    with pytest.raises(ImageError, match="got float64"):
        draw_defect(good.astype(float), kind="scar", seed=0)
    with pytest.raises(ImageError, match="other as uint8"):
        draw_defect(good, kind="perlin", seed=0, other=pixels(2, side=32))
    with pytest.raises(ImageError, match="16 px or more, got 8x8"):
        draw_defect(good[:, :8, :8], kind="scar", seed=0)
    with pytest.raises(ImageError, match="at least one True"):
        draw_defect(good, kind="scar", seed=0, inside=np.zeros((64, 64), np.bool_))

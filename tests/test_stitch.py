"""Maps of tiles as one: against a plain loop in float64, and no seam anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from cfa_index.errors import SpecError
from cfa_index.images import map_frame, stitcher_of, tile_boxes
from cfa_index.specs import FeatureSpec
from cfa_index.stitch import Stitcher

Boxes = tuple[tuple[int, int, int, int], ...]


def spec(tile: int, overlap: int, size: int) -> FeatureSpec:
    return FeatureSpec(size_px=size, tile_px=tile, overlap_px=overlap)


def stitched(
    width: int, height: int, features: FeatureSpec, maps: list[NDArray[np.float32]]
) -> tuple[NDArray[np.float32], float, list[int]]:
    """The whole map from its bands, the score, and how many rows each band had."""
    bands: list[NDArray[np.float32]] = []
    tops: list[int] = []

    def keep(top: int, rows: NDArray[np.float32]) -> None:
        tops.append(top)
        bands.append(rows.copy())

    stitcher = stitcher_of(width, height, features, keep)
    for one in maps:
        stitcher.add(one)
    assert tops == [0, *np.cumsum([len(band) for band in bands])[:-1].tolist()]
    whole = np.concatenate(bands)
    assert whole.shape == stitcher.shape
    return whole, stitcher.score, [len(band) for band in bands]


def ramp(at: float, low: float, high: float, before: float | None, after: float | None) -> float:
    """A tile's weight along one axis, over [low, high), with the end and start of its neighbours."""
    weight = 1.0
    if before is not None and before > low:
        weight *= min(max((at - low) / (before - low), 0.0), 1.0)
    if after is not None and after < high:
        weight *= min(max((high - at) / (high - after), 0.0), 1.0)
    return weight


def read(values: NDArray[np.float32], y: float, x: float) -> float:
    """Bilinear, at a position counted in pixels from the first one's centre, not beyond the last one's."""
    side = len(values)
    y, x = min(max(y, 0.0), side - 1.0), min(max(x, 0.0), side - 1.0)
    top, left = math.floor(y + 1e-9), math.floor(x + 1e-9)
    low, right = min(top + 1, side - 1), min(left + 1, side - 1)
    upper = (1 - (x - left)) * values[top, left] + (x - left) * values[top, right]
    lower = (1 - (x - left)) * values[low, left] + (x - left) * values[low, right]
    return float((1 - (y - top)) * upper + (y - top) * lower)


def plain(
    width: int, height: int, features: FeatureSpec, maps: list[NDArray[np.float32]]
) -> NDArray[np.float64]:
    """The same by loops over pixels and tiles."""
    boxes, side = tile_boxes(width, height, features), features.size_px
    scale = side / features.tile_px
    frame = map_frame(width, height, features)
    lefts, tops = sorted({box[0] for box in boxes}), sorted({box[1] for box in boxes})
    found = np.zeros((frame.valid[3], frame.valid[2]))
    for row in range(frame.valid[3]):
        for column in range(frame.valid[2]):
            y, x = row + 0.5, column + 0.5
            total, weights = 0.0, 0.0
            for number, (left, top, _, _) in enumerate(boxes):
                # The map's last pixel may reach beyond the image and its last tile.
                below = top == tops[-1] or y < top * scale + side
                right = left == lefts[-1] or x < left * scale + side
                if not (top * scale <= y and below and left * scale <= x and right):
                    continue
                weight = 1.0
                for at, starts, start in ((y, tops, top), (x, lefts, left)):
                    place = starts.index(start)
                    before = starts[place - 1] * scale + side if place else None
                    after = starts[place + 1] * scale if place + 1 < len(starts) else None
                    weight *= ramp(at, start * scale, start * scale + side, before, after)
                total += weight * read(maps[number], row - top * scale, column - left * scale)
                weights += weight
            found[row, column] = total / weights
    return found


@settings(max_examples=12)
@given(
    size=st.sampled_from([32, 48]),
    tile=st.integers(32, 60),
    share=st.floats(0, 0.9),
    width=st.integers(1, 110),
    height=st.integers(1, 90),
    seed=st.integers(0, 99),
)
def test_it_is_the_plain_loop(size: int, tile: int, share: float, width: int, height: int, seed: int) -> None:
    features = spec(tile, min(int(share * tile), tile - 8), size)
    draw = np.random.default_rng(seed)
    count = len(tile_boxes(width, height, features))
    maps = [draw.random((size, size), dtype=np.float32) for _ in range(count)]
    got, score, bands = stitched(width, height, features, maps)
    np.testing.assert_allclose(got, plain(width, height, features, maps), rtol=1e-5, atol=1e-6)
    assert score == got.max()
    assert max(bands) <= size + 1  # where tiles lie between pixels


@pytest.mark.parametrize("overlap", [0, 5, 16, 28])
def test_a_constant_stays_and_a_single_tile_is_itself(overlap: int) -> None:
    features = spec(32, overlap, 32)
    count = len(tile_boxes(100, 75, features))
    got, score, _ = stitched(100, 75, features, [np.full((32, 32), 3.5, np.float32)] * count)
    np.testing.assert_allclose(got, 3.5, rtol=3e-7)
    assert score == pytest.approx(3.5, rel=3e-7)
    one = np.random.default_rng(0).random((32, 32), dtype=np.float32)
    assert np.array_equal(stitched(32, 32, features, [one])[0], one)
    assert np.array_equal(stitched(20, 9, features, [one])[0], one[:9, :20])


def pieces(field: NDArray[np.float32], boxes: Boxes) -> Iterator[NDArray[np.float32]]:
    for left, top, right, bottom in boxes:
        yield field[top:bottom, left:right]


@pytest.mark.parametrize(("overlap", "lift"), [(8, 0.0), (8, 0.1), (12, 0.1)])
def test_a_smooth_field_has_no_seam(overlap: int, lift: float) -> None:
    """Cut into tiles and joined again it is the field; tiles that disagree by a constant leave no step either."""
    features = spec(32, overlap, 32)
    y, x = np.mgrid[0:93, 0:117]
    field = (np.sin(x / 17.0) + np.cos(y / 13.0)).astype(np.float32)
    boxes = tile_boxes(117, 93, features)
    lifted = [piece + np.float32(lift * (number % 2)) for number, piece in enumerate(pieces(field, boxes))]
    got, _, _ = stitched(117, 93, features, lifted)
    if lift == 0:
        np.testing.assert_allclose(got, field, atol=1e-6)
    for axis in (0, 1):
        step = np.abs(np.diff(got - field, axis=axis)).max()
        assert step <= 2 * lift / overlap + 1e-5  # a ramp across the overlap, where the field itself has none


def test_without_overlap_tiles_stand_side_by_side() -> None:
    features = spec(32, 0, 32)
    tiles = [np.full((32, 32), number, np.float32) for number in range(4)]
    got, score, bands = stitched(64, 64, features, tiles)
    assert np.array_equal(got, np.kron([[0, 1], [2, 3]], np.ones((32, 32))))
    assert (score, bands) == (3, [32, 32])


def test_a_peak_that_two_tiles_see_keeps_its_height() -> None:
    features = spec(32, 16, 32)
    field = np.zeros((32, 80), np.float32)
    field[10, 24] = 7.0  # in the overlap of the first two tiles
    got, score, _ = stitched(80, 32, features, list(pieces(field, tile_boxes(80, 32, features))))
    assert score == pytest.approx(7.0)
    assert [int(at) for at in np.unravel_index(got.argmax(), got.shape)] == [10, 24]


def test_what_is_not_a_number_stays_so() -> None:
    tiles = [np.zeros((32, 32), np.float32) for _ in range(2)]
    tiles[0][3, 3] = np.nan
    assert math.isnan(stitched(60, 32, spec(32, 4, 32), tiles)[1])


def test_memory_is_that_of_a_row_of_tiles() -> None:
    stitcher = stitcher_of(500, 50_000, spec(32, 8, 32))
    held = sum(value.nbytes for value in vars(stitcher).values() if isinstance(value, np.ndarray))
    assert held <= 33 * 500 * 4


def test_mistakes_are_told() -> None:
    with pytest.raises(SpecError, match="at least one tile"):
        Stitcher(10, 10, [], 32)
    stitcher = stitcher_of(60, 32, spec(32, 4, 32))
    with pytest.raises(SpecError, match=r"\(32, 32\) of each of 2 tiles, got \(16, 16\)"):
        stitcher.add(np.zeros((16, 16), np.float32))
    stitcher.add(np.zeros((32, 32), np.float32))
    with pytest.raises(SpecError, match="all tiles before the score, got 1 missing"):
        _ = stitcher.score
    stitcher.add(np.zeros((32, 32), np.float32))
    with pytest.raises(SpecError, match="as number 3"):
        stitcher.add(np.zeros((32, 32), np.float32))

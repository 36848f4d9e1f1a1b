"""The plan of tiles, their pixels and frames; batches of them; a 50-megapixel image in bounded memory."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from cfa_index.errors import ImageError
from cfa_index.images import (
    MapJoiner,
    count_views,
    frame_at,
    frames_of,
    load_batches,
    map_frame,
    network_pixels,
    tile_boxes,
    valid_mask,
    view_count,
    views_of,
)
from cfa_index.resample import to_source
from cfa_index.specs import FeatureSpec

TILES = FeatureSpec(size_px=64, strides=(8, 16), tile_px=64, overlap_px=16)
SHRUNK = FeatureSpec(size_px=32, strides=(8, 16), tile_px=64, overlap_px=16)
WHOLE = FeatureSpec(size_px=64, strides=(8, 16))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    tile=st.integers(32, 128),
    overlap=st.integers(0, 127),
)
def test_every_pixel_is_covered_by_a_square_inside(width: int, height: int, tile: int, overlap: int) -> None:
    features = FeatureSpec(tile_px=tile, overlap_px=min(overlap, tile - 4))
    boxes = tile_boxes(width, height, features)
    assert len(boxes) == len(set(boxes)) == view_count(width, height, features)
    seen = np.zeros((height, width), bool)
    for left, top, right, bottom in boxes:
        assert right - left == bottom - top == tile
        assert left >= 0
        assert top >= 0
        assert right <= max(width, tile)
        assert bottom <= max(height, tile)
        seen[top:bottom, left:right] = True
    assert seen.all()
    assert list(boxes) == sorted(boxes, key=lambda box: (box[1], box[0]))


def test_the_plan_by_hand() -> None:
    assert tile_boxes(150, 64, TILES) == ((0, 0, 64, 64), (48, 0, 112, 64), (86, 0, 150, 64))
    assert tile_boxes(64, 65, TILES) == ((0, 0, 64, 64), (0, 1, 64, 65))
    assert tile_boxes(20, 30, TILES) == ((0, 0, 64, 64),)


def test_two_tiles_have_the_very_pixels_of_their_crops() -> None:
    image = noise(150, 90)
    pixels = np.asarray(image)
    for (left, top, right, bottom), (tile, frame) in zip(
        tile_boxes(150, 90, TILES), views_of(image, TILES), strict=True
    ):
        assert np.array_equal(tile.transpose(1, 2, 0), pixels[top:bottom, left:right])
        assert frame.inspected == (left, top, right, bottom)
        assert frame.is_full
    # Resized ones, too: nothing beside a tile shows in it.
    for (left, top, right, bottom), (tile, frame) in zip(
        tile_boxes(150, 90, SHRUNK), views_of(image, SHRUNK), strict=True
    ):
        crop = Image.fromarray(pixels[top:bottom, left:right]).resize((32, 32), Image.Resampling.BILINEAR)
        assert np.array_equal(tile.transpose(1, 2, 0), np.asarray(crop))
        assert frame.inspected == (left, top, right, bottom)


def test_a_small_image_is_padded_and_its_frame_says_so() -> None:
    image = noise(20, 30)
    ((tile, frame),) = views_of(image, TILES)
    assert np.array_equal(tile.transpose(1, 2, 0)[:30, :20], np.asarray(image))
    assert not tile[:, 30:].any()
    assert not tile[:, :, 20:].any()
    assert frame.valid == (0, 0, 20, 30)
    assert not frame.is_full
    assert frame.inspected == (0, 0, 20, 30)
    mask = valid_mask([frame], TILES.grid)[0]
    assert mask.sum() == 3 * 4  # 20 x 30 pixels reach into 3 x 4 patches of 8
    assert mask[:4, :3].all()
    assert frame_at(21, 30, SHRUNK, 0).valid == (0, 0, 11, 15)  # half a pixel counts


def test_boxes_and_maps_of_a_tile_lie_in_the_source() -> None:
    frames = frames_of(150, 90, SHRUNK)
    last = frames[-1]  # its square is (86, 26, 150, 90), half as large for the network
    assert last.patch_box(0, 0, SHRUNK.grid) == (86, 26, 102, 42)
    assert last.patch_box(3, 3, SHRUNK.grid) == (134, 74, 150, 90)
    assert last.to_source_box(1, 2, 3, 4) == (88, 30, 92, 34)
    y, x = np.mgrid[0:32, 0:32]
    found = to_source(
        (86 + 2 * x + 1).astype(np.float32),  # the source's column under each pixel's centre
        width=150,
        height=90,
        scale_x=last.scale_x,
        scale_y=last.scale_y,
        offset_x=last.offset_x,
        offset_y=last.offset_y,
    )
    assert np.isnan(found[:26]).all()
    assert np.isnan(found[:, :86]).all()
    np.testing.assert_allclose(found[40, 87:149], np.arange(87, 149) + 0.5, rtol=1e-6)
    assert y.shape == x.shape


def test_the_whole_map_lies_in_the_source() -> None:
    frame = map_frame(151, 90, SHRUNK)
    assert frame.valid == (0, 0, 76, 45)  # half a pixel counts
    assert (frame.scale_x, frame.offset_x, frame.size_px) == (0.5, 0.0, 76)
    assert frame.inspected == (0, 0, 151, 90)
    assert map_frame(151, 90, WHOLE) == frame_at(151, 90, WHOLE, 0)


def test_without_tiles_there_is_one_view() -> None:
    image = noise(150, 90)
    ((pixels, frame),) = views_of(image, WHOLE)
    expected, expected_frame = network_pixels(image, WHOLE)
    assert torch.equal(torch.from_numpy(pixels), expected)
    assert frames_of(150, 90, WHOLE) == (frame,) == (expected_frame,)


def test_grey_is_refused() -> None:
    with pytest.raises(ImageError, match="RGB"):
        next(views_of(Image.new("L", (100, 100)), TILES))


def test_a_header_tells_how_many(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter to the right, which swaps the sides
    noise(150, 70).save(tmp_path / "a.jpg", exif=turned)
    assert count_views(tmp_path / "a.jpg", TILES) == view_count(70, 150, TILES) == 6
    assert count_views(tmp_path / "gone.png", WHOLE) == 1
    with pytest.raises(ImageError):
        count_views(tmp_path / "gone.png", TILES)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 64])
def test_batches_of_tiles_keep_order(tmp_path: Path, batch_size: int) -> None:
    sizes = [(150, 90), (20, 30), (64, 64), (70, 64)]
    sources: list[Path | Image.Image] = [noise(*size, seed=number) for number, size in enumerate(sizes)]
    (tmp_path / "words.png").write_text("no image")
    sources.insert(2, tmp_path / "words.png")
    batches = list(load_batches(sources, TILES, batch_size=batch_size))
    expected = [(0, number) for number in range(6)] + [(1, 0), (3, 0), (4, 0), (4, 1)]
    assert [pair for batch in batches for pair in zip(batch.positions, batch.tiles, strict=True)] == expected
    assert [position for batch in batches for position, _ in batch.errors] == [2]
    counts = [len(batch.positions) + len(batch.errors) for batch in batches]
    assert counts[:-1] == [batch_size] * (len(counts) - 1)
    assert sum(counts) == 11
    pixels = torch.cat([batch.pixels for batch in batches])
    frames = [frame for batch in batches for frame in batch.frames]
    wanted = [
        view for source in sources if isinstance(source, Image.Image) for view in views_of(source, TILES)
    ]
    for got, frame, (tile, its_frame) in zip(pixels, frames, wanted, strict=True):
        assert np.array_equal(got.numpy(), tile)
        assert frame == its_frame


def test_a_map_for_a_picture_has_the_highest_of_each_block() -> None:
    draw = np.random.default_rng(1)
    maps = [draw.random((64, 64), dtype=np.float32) for _ in range(view_count(150, 91, TILES))]
    whole, small = MapJoiner(150, 91, TILES), MapJoiner(150, 91, TILES, longest_px=40)
    for one in maps:
        whole.add(one)
        small.add(one)
    found, shrunk = whole.result(), small.result()
    assert shrunk.score == found.score
    assert shrunk.pixels.shape == (23, 38)  # blocks of 4
    for row in range(23):
        for column in range(38):
            block = found.pixels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert shrunk.pixels[row, column] == block.max()
    assert shrunk.frame.scale_x == 0.25
    assert shrunk.frame.valid == (0, 0, 38, 23)
    same = MapJoiner(150, 91, TILES, longest_px=150)
    for one in maps:
        same.add(one)
    assert np.array_equal(same.result().pixels, found.pixels)
    assert same.result().frame == found.frame == map_frame(150, 91, TILES)


@pytest.mark.parametrize("features", [TILES, WHOLE])
def test_a_map_goes_with_its_joiner(features: FeatureSpec) -> None:
    gc.disable()
    try:
        joiner = MapJoiner(64, 64, features)
        joiner.add(np.ones((64, 64), np.float32))
        found = joiner.result()
        pixels = weakref.ref(found.pixels)
        assert found.score == 1
        del joiner, found
        assert pixels() is None
    finally:
        gc.enable()


_HUGE = """
import re, sys
import numpy as np
from pathlib import Path
from PIL import Image
import torch
from cfa_index.images import image_scores_of, load_batches
from cfa_index.maps import MapMaker
from cfa_index.specs import FeatureSpec
features = FeatureSpec(size_px=224, strides=(16,), tile_px=448, overlap_px=64)
make = MapMaker(features.grid, 224, 4.0)
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
def maps():
    for batch in load_batches([Path(sys.argv[1])], features, batch_size=8, threads=1):
        assert not batch.errors, batch.errors
        levels = torch.nn.functional.avg_pool2d(batch.pixels.float(), 16).amax(1)  # a tiny network
        for position, frame, one in zip(batch.positions, batch.frames, make(levels).numpy(), strict=True):
            yield position, frame, one
torch.set_num_threads(1)
make(torch.zeros(8, 14, 14))
before = peak()
(_, score), = image_scores_of(maps(), features)
print(score, peak() - before)
"""


def test_a_50_megapixel_image_in_bounded_memory(tmp_path: Path) -> None:
    """From file to score: the decoded image, of which Pillow makes 4 bytes a pixel, and 96 MiB for all the rest."""
    side = 7072
    row = np.zeros((side, side), np.uint8)
    row[5000:5020, 3010:3030] = 200  # across a corner of four tiles
    Image.fromarray(row).convert("RGB").save(tmp_path / "huge.jpg")
    done = subprocess.run(
        [sys.executable, "-c", _HUGE, str(tmp_path / "huge.jpg")], capture_output=True, text=True, check=True
    )
    score, grown_mib = (float(word) for word in done.stdout.split())
    assert score > 50
    assert grown_mib < 4 * side * side / 2**20 + 96

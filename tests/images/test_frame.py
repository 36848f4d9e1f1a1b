"""The affine between source and network pixels, there and back, and the pixels themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from cfa_index.errors import ImageError
from cfa_index.images import frame_of, network_pixels, valid_mask
from cfa_index.specs import CROP_RATIO, FeatureSpec, Geometry

WHOLE = FeatureSpec()
CROP = FeatureSpec(geometry="crop")
LETTERBOX = FeatureSpec(geometry="letterbox")
ALL = (WHOLE, CROP, LETTERBOX)

sides = st.integers(1, 5000)
specs = st.builds(
    FeatureSpec,
    geometry=st.sampled_from(["whole", "crop", "letterbox"]),
    size_px=st.integers(2, 32).map(lambda n: 16 * n),
    strides=st.sampled_from([(4, 8, 16), (8, 16), (16,)]),
)


# By hand


def test_whole_by_hand() -> None:
    frame = frame_of(448, 112, WHOLE)
    assert (frame.scale_x, frame.scale_y, frame.offset_x, frame.offset_y) == (0.5, 2.0, 0.0, 0.0)
    assert frame.is_full
    assert frame.inspected == (0, 0, 448, 112)
    assert frame.patch_box(0, 0, (28, 28)) == (0, 0, 16, 4)
    assert frame.patch_box(27, 1, (28, 28)) == (16, 108, 32, 112)


def test_crop_by_hand() -> None:
    frame = frame_of(512, 256, CROP)  # resized to 256 x 256, then 16 pixels off each side
    assert (frame.scale_x, frame.scale_y, frame.offset_x, frame.offset_y) == (0.5, 1.0, -16.0, -16.0)
    assert frame.is_full
    assert frame.inspected == (32, 16, 480, 240)
    assert frame.patch_box(0, 27, (28, 28)) == (464, 16, 480, 24)
    left, top, right, bottom = frame.inspected  # DESIGN: the crop leaves 23% uninspected
    assert 1 - (right - left) * (bottom - top) / (512 * 256) == pytest.approx(0.234, abs=1e-3)


def test_letterbox_by_hand() -> None:
    frame = frame_of(448, 112, LETTERBOX)  # 224 x 56, with 84 rows of padding above and below
    assert (frame.scale_x, frame.scale_y, frame.offset_x, frame.offset_y) == (0.5, 0.5, 0.0, 84.0)
    assert frame.valid == (0, 84, 224, 140)
    assert not frame.is_full
    assert frame.inspected == (0, 0, 448, 112)
    mask = valid_mask([frame], (28, 28))[0]
    rows = mask.any(dim=1).nonzero().flatten().tolist()
    assert rows == [10, 11, 12, 13, 14, 15, 16, 17]  # cells of 8: the first is 80 .. 88, the last 136 .. 144
    assert mask[10:18].all()


def test_a_box_in_the_padding_becomes_the_nearest_row() -> None:
    frame = frame_of(448, 112, LETTERBOX)
    assert frame.patch_box(0, 0, (28, 28)) == (0, 0, 16, 1)
    assert frame.patch_box(27, 27, (28, 28)) == (432, 111, 448, 112)


def test_edges_that_meet_a_pixel_add_none() -> None:
    # 300 / 224 is no float; patch 14 of 28 begins at source pixel 150 exactly
    frame = frame_of(300, 300, WHOLE)
    assert frame.patch_box(14, 14, (28, 28))[:2] == (150, 150)
    assert frame.patch_box(13, 13, (28, 28))[2:] == (150, 150)


# For any size


@given(sides, sides, specs)
def test_network_to_source_and_back(width: int, height: int, features: FeatureSpec) -> None:
    frame = frame_of(width, height, features)
    left, top, right, bottom = frame.valid
    assert 0 <= left < right <= features.size_px
    assert 0 <= top < bottom <= features.size_px
    x0, y0, x1, y1 = frame.inspected
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    # The source box, taken to the network, holds what it came from and at most a source pixel more.
    for low, high, scale, offset, begin, end in (
        (left, right, frame.scale_x, frame.offset_x, x0, x1),
        (top, bottom, frame.scale_y, frame.offset_y, y0, y1),
    ):
        slack = 1e-5 * max(scale, 1)
        assert scale * begin + offset <= low + slack
        assert scale * end + offset >= high - slack
        assert scale * (begin + 1) + offset > low - slack
        assert scale * (end - 1) + offset < high + slack
    if features.geometry != "crop":
        assert frame.inspected == (0, 0, width, height)


@given(sides, sides, specs, st.data())
def test_patch_boxes_cover_what_was_inspected(
    width: int, height: int, features: FeatureSpec, data: st.DataObject
) -> None:
    frame = frame_of(width, height, features)
    rows, columns = features.grid
    row = data.draw(st.integers(0, rows - 1))
    column = data.draw(st.integers(0, columns - 1))
    x0, y0, x1, y1 = frame.patch_box(row, column, features.grid)
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    left, top, right, bottom = frame.inspected
    assert left <= x0 < x1 <= right
    assert top <= y0 < y1 <= bottom
    if column + 1 < columns:  # the next patch begins where this one ends, or within a shared pixel
        assert x1 - 1 <= frame.patch_box(row, column + 1, features.grid)[0] <= x1
    stride = features.size_px / columns
    if frame.valid[0] <= (column + 0.5) * stride < frame.valid[2]:
        # the centre of the patch, in source pixels, lies in its box
        centre = ((column + 0.5) * features.size_px / columns - frame.offset_x) / frame.scale_x
        assert x0 - 1e-5 <= centre <= x1 + 1e-5


@given(sides, sides, specs)
def test_the_letterbox_keeps_proportions_and_loses_nothing(
    width: int, height: int, features: FeatureSpec
) -> None:
    frame = frame_of(width, height, features)
    if features.geometry != "letterbox":
        return
    left, top, right, bottom = frame.valid
    assert max(right - left, bottom - top) == features.size_px
    exact = features.size_px / max(width, height)
    assert abs((right - left) - max(1, width * exact)) <= 0.5
    assert abs((bottom - top) - max(1, height * exact)) <= 0.5
    assert abs((left + right) - features.size_px) <= 1
    assert abs((top + bottom) - features.size_px) <= 1


@given(sides, sides, specs)
def test_the_mask_is_the_patches_that_show_some_of_the_image(
    width: int, height: int, features: FeatureSpec
) -> None:
    frame = frame_of(width, height, features)
    rows, columns = features.grid
    mask = valid_mask([frame, frame], features.grid)
    assert mask.shape == (2, rows, columns)
    assert mask.dtype == torch.bool
    assert mask.any()
    left, top, right, bottom = frame.valid
    stride = features.strides[0]
    for row, column in (
        (0, 0),
        (rows // 2, 0),
        (0, columns // 2),
        (rows // 2, columns // 2),
        (rows - 1, 3 % columns),
    ):
        across = min(right, (column + 1) * stride) - max(left, column * stride)
        down = min(bottom, (row + 1) * stride) - max(top, row * stride)
        assert bool(mask[1, row, column]) == (across > 0 and down > 0)
    if frame.is_full:
        assert mask.all()


def test_no_frames_give_an_empty_mask() -> None:
    assert valid_mask([], (3, 4)).shape == (0, 3, 4)


# Pixels


@pytest.mark.parametrize("geometry", ["whole", "crop", "letterbox"])
@pytest.mark.parametrize("size", [(300, 300), (640, 480), (100, 333), (7, 9)])
def test_pixels_agree_with_their_frame(geometry: Geometry, size: tuple[int, int]) -> None:
    """Ramps of x and y: what the network sees at a pixel's centre is the source at the affine's inverse."""
    features = FeatureSpec(geometry=geometry, size_px=96)
    width, height = size
    x = (np.arange(width) + 0.5) / width * 255
    y = (np.arange(height) + 0.5) / height * 255
    ramps = np.zeros((height, width, 3), dtype=np.uint8)
    ramps[:, :, 0] = np.rint(x)[None, :]
    ramps[:, :, 1] = np.rint(y)[:, None]
    ramps[:, :, 2] = 255
    pixels, frame = network_pixels(Image.fromarray(ramps), features)
    assert pixels.shape == (3, 96, 96)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    assert frame == frame_of(width, height, features)
    left, top, right, bottom = frame.valid
    expected_blue = np.zeros((96, 96))
    expected_blue[top:bottom, left:right] = 255
    np.testing.assert_array_equal(pixels[2].numpy(), expected_blue)  # padding is black
    # In the middle: at the borders the filter sees one side only.
    columns = np.arange(math.ceil(left + 0.2 * (right - left)), int(right - 0.2 * (right - left)))
    rows = np.arange(math.ceil(top + 0.2 * (bottom - top)), int(bottom - 0.2 * (bottom - top)))
    source_x = (columns + 0.5 - frame.offset_x) / frame.scale_x / width * 255
    source_y = (rows + 0.5 - frame.offset_y) / frame.scale_y / height * 255
    assert np.abs(pixels[0].numpy()[rows[0], columns] - source_x).max() <= 2
    assert np.abs(pixels[1].numpy()[rows, columns[0]] - source_y).max() <= 2


def test_crop_is_the_papers_resize_then_centre_crop() -> None:
    values = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    expected = np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR))[16:240, 16:240]
    pixels, _ = network_pixels(image, CROP)
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), expected)
    assert round(224 / CROP_RATIO) == 256


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((512, 512, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    pixels, _ = network_pixels(Image.fromarray(stripes), FeatureSpec(size_px=128))
    assert (pixels[:, :, 1:-1].float() - 127.5).abs().max() <= 1  # at the borders the filter is one-sided


@pytest.mark.parametrize("features", ALL)
def test_one_pixel_and_equal_sizes_work(features: FeatureSpec) -> None:
    pixels, frame = network_pixels(Image.new("RGB", (1, 1), (1, 2, 3)), features)
    assert pixels[:, 100, 100].tolist() == [1, 2, 3]
    assert frame.patch_box(3, 3, features.grid) == (0, 0, 1, 1)
    same = Image.new("RGB", (224, 224), (9, 9, 9))
    assert set(network_pixels(same, features)[0].flatten().tolist()) == {9}


def test_a_very_elongated_image_still_has_a_row_of_patches() -> None:
    _, frame = network_pixels(Image.new("RGB", (3000, 2)), LETTERBOX)
    assert valid_mask([frame], (28, 28))[0].sum() == 28


def test_other_modes_are_refused() -> None:
    with pytest.raises(ImageError, match="mode L"):
        network_pixels(Image.new("L", (8, 8)), WHOLE)

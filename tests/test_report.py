from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from cfa_index.errors import OutputError
from cfa_index.images import frame_of, map_frame
from cfa_index.report import PatchPicture, context_box, heat_colours, overlay, query_panel, save_picture
from cfa_index.specs import FeatureSpec, Geometry

GREY = Image.new("RGB", (300, 200), (100, 100, 100))


def hot_corner() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    anomaly_map = np.zeros((224, 224), dtype=np.float32)
    anomaly_map[:60, :60] = 10.0
    return anomaly_map


def test_colours_rise_in_brightness_and_clip() -> None:
    colours = heat_colours(np.array([-1.0, 0.0, 0.3, 0.6, 1.0, 2.0])).astype(int)
    brightness = colours.sum(axis=1)
    assert (np.diff(brightness) >= 0).all()
    assert (colours[0] == colours[1]).all()
    assert (colours[4] == colours[5]).all()


def test_the_heat_lies_where_the_map_is_high() -> None:
    frame = frame_of(300, 200, FeatureSpec())
    picture = np.asarray(overlay(GREY, hot_corner(), frame, 5.0)).astype(int)
    assert picture.shape == (200, 300, 3)
    assert (picture[150, 250] == 100).all()  # cold: the image itself
    assert picture[20, 20, 0] > 180  # hot: bright
    outlined = (picture == [0, 255, 120]).all(axis=2)
    rows, columns = np.nonzero(outlined)
    assert abs(rows.max() - 60 * 200 / 224) < 2
    assert abs(columns.max() - 60 * 300 / 224) < 2


@pytest.mark.parametrize(("geometry", "corner"), [("crop", 0.4 * 100), ("whole", 100), ("letterbox", 100)])
def test_what_the_network_did_not_see_is_darkened(geometry: Geometry, corner: float) -> None:
    frame = frame_of(300, 200, FeatureSpec(geometry=geometry))
    picture = np.asarray(overlay(GREY, np.zeros((224, 224), dtype=np.float32), frame, 5.0))
    assert picture[0, 0, 0] == pytest.approx(corner, abs=1)
    assert (picture[100, 150] == 100).all()


def test_large_images_are_shown_small() -> None:
    image = Image.new("RGB", (4000, 1000))
    frame = frame_of(4000, 1000, FeatureSpec())
    assert overlay(image, hot_corner(), frame, None).size == (1024, 256)


def test_a_peak_of_a_large_map_is_not_lost_in_a_small_picture() -> None:
    tiles = FeatureSpec(tile_px=224, overlap_px=32)
    peak = np.zeros((1500, 4096), np.float32)
    peak[701, 1003] = 10.0  # between the pixels that a picture of 1,024 would read
    image = Image.new("RGB", (4096, 1500), (90, 90, 90))
    picture = np.asarray(overlay(image, peak, map_frame(4096, 1500, tiles), 5.0)).astype(int)
    assert picture.shape == (375, 1024, 3)
    hot = np.abs(picture - 90).sum(axis=2) > 30
    assert hot[701 // 4, 1003 // 4]
    assert hot.sum() <= 9


def test_without_a_threshold_a_flat_map_is_fine() -> None:
    frame = frame_of(300, 200, FeatureSpec())
    assert overlay(GREY, np.ones((224, 224), dtype=np.float32), frame, None).size == (300, 200)


@pytest.mark.parametrize("box", [(0, 0, 8, 8), (290, 190, 300, 200), (100, 100, 111, 111), (0, 0, 300, 200)])
def test_the_context_of_a_patch_stays_inside_the_image(box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = context_box(box, (300, 200))
    assert 0 <= left < right <= 300
    assert 0 <= top < bottom <= 200
    assert right - left == bottom - top


def test_a_panel_has_a_row_a_patch_and_takes_missing_exemplars() -> None:
    jpeg = io.BytesIO()
    Image.new("RGB", (64, 64), (0, 0, 255)).save(jpeg, "JPEG")
    patches = [
        PatchPicture(
            box=(10, 10, 20, 20),
            score=3.0,
            matches=[(jpeg.getvalue(), 1.0, "a/very/long/name/indeed.png"), (b"", 2.0, "x.png")],
        ),
        PatchPicture(box=(50, 50, 60, 60), score=2.0, matches=[]),
    ]
    frame = frame_of(300, 200, FeatureSpec())
    one, two = (
        query_panel(GREY, hot_corner(), frame, score=3.0, threshold=limit, patches=chosen, footer="credit")
        for limit, chosen in ((None, patches[:1]), (2.0, patches * 3))
    )
    assert two.height > one.height
    blue = (np.asarray(two).astype(int) - [0, 0, 254] == 0).all(axis=2)
    assert blue.sum() > 1000


def test_a_picture_that_cannot_be_written_is_an_output_error() -> None:
    with pytest.raises(OutputError):
        save_picture(GREY, Path("/proc/nowhere/x.png"))


def test_a_credit_is_a_text_of_the_png(tmp_path: Path) -> None:
    for credit, texts in (("A. Maker, CC BY 4.0", {"Copyright": "A. Maker, CC BY 4.0"}), ("", {})):
        save_picture(GREY, tmp_path / "x.png", credit)
        with Image.open(tmp_path / "x.png") as picture:
            assert isinstance(picture, PngImageFile)
            assert picture.text == texts

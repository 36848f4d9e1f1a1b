from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_up import (
    QUICK,
    SIDE_PX,
    cfa,
    leftovers,
    texture,
    tree,
    workplace,
    write_broken,
    write_category,
    write_image,
)
from numpy.typing import NDArray
from PIL import Image

from cfa_index.errors import DatasetError, OutputError, SpecError
from cfa_index.images import open_category
from cfa_index.workflows.rotate import Corners, RotationSpec, rotate_category

SMALL = RotationSpec(resize_px=64, crop_px=56)


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.array(image)


def test_a_category_becomes_a_category(tmp_path: Path) -> None:
    source = write_category(tmp_path / "data", train=3, test=2)
    report = rotate_category(open_category(tmp_path / "data", "weave"), tmp_path / "turned", SMALL)
    copy = open_category(tmp_path / "turned", "weave")
    assert (report.images, report.masks, report.resumed, report.rejected) == (7, 2, 0, 0)
    assert [path.name for path in copy.train_good()] == ["000.png", "001.png", "002.png"]
    assert [image.defect for image in copy.test()] == ["good", "good", "hole", "hole"]
    assert all(image.mask is not None for image in copy.test() if image.is_defect)
    for path in (tmp_path / "turned").rglob("*.png"):
        assert pixels(path).shape[:2] == (56, 56)
    assert (pixels(copy.train_good()[0]) != pixels(source / "train/good/000.png")[4:60, 4:60]).any()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("corners", ["reflect", "black"])
@pytest.mark.parametrize(("width", "height"), [(64, 64), (300, 200), (90, 400)])
def test_image_and_mask_stay_aligned(tmp_path: Path, corners: Corners, width: int, height: int) -> None:
    """Blue pixels are the defect, in the source and in the copy; at the border too, where it is mirrored."""
    folder = tmp_path / "data" / "plate"
    write_image(folder / "train" / "good" / "0.png", texture(0))
    for number in range(6):
        image, mask = (
            np.full((height, width, 3), (200, 200, 0), np.uint8),
            np.zeros((height, width), np.uint8),
        )
        top, left = number * height // 12, number * width // 12
        inside = np.s_[top : top + height // 3, left : left + width // 3]
        image[inside], mask[inside] = (0, 0, 255), 255
        write_image(folder / "test" / "hole" / f"{number}.png", image)
        write_image(folder / "ground_truth" / "hole" / f"{number}_mask.png", mask)
    spec = RotationSpec(resize_px=128, crop_px=112, degrees=30, corners=corners)
    rotate_category(open_category(tmp_path / "data", "plate"), tmp_path / "turned", spec)
    for test in open_category(tmp_path / "turned", "plate").test():
        assert test.mask is not None
        blue, marked = pixels(test.path)[:, :, 2] > 127, pixels(test.mask) > 0
        assert marked.any()
        assert (blue != marked).sum() <= 10 + 0.03 * marked.sum()  # rounding along the edges


def test_a_draw_follows_from_seed_and_path(tmp_path: Path) -> None:
    write_category(tmp_path / "data", train=6, test=2)
    category = open_category(tmp_path / "data", "weave")
    rotate_category(category, tmp_path / "first", SMALL, threads=1)
    again = rotate_category(category, tmp_path / "first", SMALL)
    assert again.resumed == again.images == 10
    shutil.rmtree(tmp_path / "first" / "weave" / "test")  # a run that was stopped half way
    resumed = rotate_category(category, tmp_path / "first", SMALL)
    assert resumed.resumed == 6
    (category.folder / "train" / "good" / "000.png").unlink()  # the others keep their draws
    rotate_category(category, tmp_path / "second", SMALL, threads=3)
    first, second = tree(tmp_path / "first"), tree(tmp_path / "second")
    assert set(first) - set(second) == {"weave/train/good/000.png"}
    assert second.items() < first.items()
    rotate_category(category, tmp_path / "third", RotationSpec(resize_px=64, crop_px=56, seed=1))
    third = tree(tmp_path / "third")
    assert all(third[name] != second[name] for name in second if name.endswith(".png") and "/test/" in name)


def test_the_same_picture_at_two_paths_is_turned_twice(tmp_path: Path) -> None:
    folder = write_category(tmp_path / "data", train=1, test=1)
    shutil.copy(folder / "train" / "good" / "000.png", folder / "train" / "good" / "001.png")
    rotate_category(open_category(tmp_path / "data", "weave"), tmp_path / "turned", SMALL)
    good = tmp_path / "turned" / "weave" / "train" / "good"
    assert (pixels(good / "000.png") != pixels(good / "001.png")).any()


def test_without_a_turn_it_is_a_random_crop(tmp_path: Path) -> None:
    folder = write_category(tmp_path / "data", train=8, test=1)
    spec = RotationSpec(degrees=0, resize_px=SIDE_PX, crop_px=60)
    rotate_category(open_category(tmp_path / "data", "weave"), tmp_path / "turned", spec)
    places = set()
    for path in sorted((folder / "train" / "good").iterdir()):
        whole, part = pixels(path), pixels(tmp_path / "turned/weave/train/good" / path.name)
        found = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if (whole[top : top + 60, left : left + 60] == part).all()
        ]
        assert len(found) == 1
        places |= set(found)
    assert len(places) > 4


@pytest.mark.parametrize(("corners", "darkest"), [("reflect", 200), ("black", 0)])
def test_corners(tmp_path: Path, corners: Corners, darkest: int) -> None:
    folder = write_category(tmp_path / "data", train=0, test=1)
    for number in range(4):
        write_image(folder / "train" / "good" / f"{number}.png", np.full((80, 50, 3), 200, np.uint8))
    spec = RotationSpec(resize_px=64, crop_px=64, corners=corners)
    rotate_category(open_category(tmp_path / "data", "weave"), tmp_path / "turned", spec)
    made = [pixels(path) for path in (tmp_path / "turned/weave/train/good").iterdir()]
    assert min(image.min() for image in made) == darkest


def test_a_changed_source_is_done_again_and_a_gone_one_goes(tmp_path: Path) -> None:
    folder = write_category(tmp_path / "data", train=3, test=2)
    category, copy = open_category(tmp_path / "data", "weave"), tmp_path / "turned" / "weave"
    rotate_category(category, tmp_path / "turned", SMALL)
    before = tree(copy)
    write_image(folder / "train" / "good" / "001.png", texture(77))
    write_image(folder / "ground_truth" / "hole" / "000_mask.png", np.zeros((SIDE_PX, SIDE_PX), np.uint8))
    (folder / "test" / "hole" / "001.png").unlink()
    report = rotate_category(category, tmp_path / "turned", SMALL)
    assert (report.images, report.resumed, report.out_of_view) == (6, 4, 1)
    after = tree(copy)
    assert set(before) - set(after) == {"test/hole/001.png", "ground_truth/hole/001_mask.png"}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"train/good/001.png", "ground_truth/hole/000_mask.png"}
    assert rotate_category(category, tmp_path / "turned", SMALL).out_of_view == 1  # also when resumed


def test_a_defect_may_be_out_of_view(tmp_path: Path) -> None:
    folder = write_category(tmp_path / "data", train=1, test=0)
    mask = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    mask[0, 0] = 255
    for number in range(5):
        write_image(folder / "test" / "hole" / f"{number}.png", texture(number))
        write_image(folder / "ground_truth" / "hole" / f"{number}_mask.png", mask)
    spec = RotationSpec(degrees=0, resize_px=64, crop_px=20)
    report = rotate_category(open_category(tmp_path / "data", "weave"), tmp_path / "turned", spec)
    assert report.out_of_view == 5
    assert [image.defect for image in open_category(tmp_path / "turned", "weave").test()] == ["hole"] * 5


def test_the_test_split_alone(tmp_path: Path) -> None:
    write_category(tmp_path / "data", train=2, test=2)
    category = open_category(tmp_path / "data", "weave")
    report = rotate_category(category, tmp_path / "turned", SMALL, splits="test")
    assert report.images == 4
    assert not (tmp_path / "turned" / "weave" / "train").exists()
    assert rotate_category(category, tmp_path / "turned", SMALL).resumed == 4  # and the rest later


def test_targets_that_are_refused(tmp_path: Path) -> None:
    folder = write_category(tmp_path / "data", train=2, test=1)
    category = open_category(tmp_path / "data", "weave")
    before = tree(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for output in (tmp_path / "data", folder, folder / "train", tmp_path / "link"):
        with pytest.raises(OutputError, match="a copy outside its source"):
            rotate_category(category, output, SMALL)
    (tmp_path / "link").unlink()
    assert tree(tmp_path) == before
    write_category(tmp_path / "mine", train=1, test=1)
    with pytest.raises(OutputError, match="to be new, empty, or from an earlier run"):
        rotate_category(category, tmp_path / "mine", SMALL)
    rotate_category(category, tmp_path / "turned", SMALL)
    with pytest.raises(OutputError, match="the same settings"):
        rotate_category(category, tmp_path / "turned", RotationSpec())
    (tmp_path / "turned" / "weave" / "rotation.json").write_text("{")
    with pytest.raises(OutputError, match="the same settings"):
        rotate_category(category, tmp_path / "turned", SMALL)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = write_category(tmp_path / "data", train=2, test=1)
    shutil.copy(folder / "train/good/000.png", folder / "train/good/000.jpg")
    with pytest.raises(DatasetError, match="differ in more than their suffix"):
        rotate_category(open_category(tmp_path / "data", "weave"), tmp_path / "turned", SMALL)
    assert not (tmp_path / "turned").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"degrees": float("nan")}, "degrees to be from 0 to 180"),
        ({"degrees": -1}, "degrees to be from 0 to 180"),
        ({"crop_px": 300}, "crop_px to be from 1 to resize_px = 256"),
        ({"resize_px": 0}, "resize_px to be from 1"),
        ({"seed": -1}, "seed to be from 0"),
        ({"corners": "white"}, "corners to be one of"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, float | str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        RotationSpec(**settings)  # type: ignore[arg-type]  # the point of the test


def test_the_command(tmp_path: Path) -> None:
    place = workplace(tmp_path, train=4, test=2)
    write_category(place.data, "plate", train=2, test=1)
    rotate = ("dataset", "rotate", "--data-root", place.data, "--resize", 72, "--crop", 64)
    outcome = cfa(*rotate, "-c", "all", "-o", tmp_path / "turned", "--json", "-")
    assert outcome.code == 0, outcome
    assert [one["images"] for one in outcome.document["categories"]] == [4, 8]
    again = cfa(*rotate, "-c", "weave", "-o", tmp_path / "turned", "--json", "-")
    assert again.document["resumed"] == again.document["images"] == 8
    built = cfa("build", "-c", "weave", "--data-root", tmp_path / "turned", *place.stores, *QUICK)
    assert built.code == 0, built
    evaluated = cfa(
        "evaluate", "-c", "weave", "--data-root", tmp_path / "turned", *place.model, "--json", "-"
    )
    assert evaluated.code == 0, evaluated
    assert evaluated.document["pixel_auroc"] is not None
    refused = cfa(*rotate, "-c", "weave", "-o", place.data)
    assert "a copy outside its source" in refused.error_line
    assert json.loads((tmp_path / "turned/weave/rotation.json").read_text())["degrees"] == 10


def test_the_help_shows_the_defaults() -> None:
    text = "".join(cfa("dataset", "rotate", "--help", env={"COLUMNS": "400"}).out.split())
    spec = RotationSpec()
    for value in (f"{spec.degrees:g}", spec.resize_px, spec.crop_px, spec.seed, spec.corners):
        assert f"[default:{value}]" in text


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    folder = write_category(tmp_path / "data", train=3, test=2)
    names = write_broken(folder / "test" / "hole")
    (folder / "ground_truth" / "hole" / "000_mask.png").write_bytes(b"no mask")
    arguments = (
        "dataset",
        "rotate",
        "-c",
        "weave",
        "--data-root",
        tmp_path / "data",
        "-o",
        tmp_path / "turned",
    )
    outcome = cfa(*arguments, "--json", "-")
    assert outcome.code == 3, outcome
    assert outcome.document["rejected"] == len(names) + 1
    assert outcome.err.count("left out: ") == len(names) + 1
    assert [path.name for path in (tmp_path / "turned/weave/test/hole").iterdir()] == ["001.png"]
    assert [path.name for path in (tmp_path / "turned/weave/ground_truth/hole").iterdir()] == ["001_mask.png"]
    assert leftovers(tmp_path) == []

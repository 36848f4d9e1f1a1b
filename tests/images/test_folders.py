"""Folders as they come: odd names, links, missing parts, the MVTec layout and masks."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfa_index.errors import DatasetError, ImageError
from cfa_index.images import (
    Category,
    TestImage,
    list_categories,
    list_images,
    open_category,
    plain_folder,
    read_mask,
)

ODD_NAMES = ["two words", 'it\'s "quoted"', "кабель", "線", "a..b", "%s{0}"]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(DatasetError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def below(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in list_images(folder)]


# Any folder


def test_images_come_sorted_within_each_folder(tmp_path: Path) -> None:
    names = ["b.png", "a.JPG", "c/2.tif", "c/1.webp", "c/d/x.bmp", "aa/z.jpeg", "z.TIFF"]
    touch(*(tmp_path / name for name in names))
    assert below(tmp_path) == ["a.JPG", "aa/z.jpeg", "b.png", "c/1.webp", "c/2.tif", "c/d/x.bmp", "z.TIFF"]
    assert next(list_images(tmp_path)).parent == tmp_path


def test_hidden_entries_and_other_files_are_left_out(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in [".a.png", ".cache/b.png", "c.txt", "d.png.part", "png", "e.png"]))
    assert below(tmp_path) == ["e.png"]


def test_a_directory_named_like_an_image_is_given_and_not_entered(tmp_path: Path) -> None:
    touch(tmp_path / "x.png" / "inside.png", tmp_path / "y.png")
    assert below(tmp_path) == ["x.png", "y.png"]


def test_links_to_directories_are_not_entered(tmp_path: Path) -> None:
    touch(tmp_path / "real" / "a.png", tmp_path / "outside" / "b.png")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "other").symlink_to(tmp_path / "outside")
    (tmp_path / "real" / "c.png").symlink_to(tmp_path / "outside" / "b.png")
    (tmp_path / "real" / "d.png").symlink_to(tmp_path / "nowhere")
    assert below(tmp_path / "real") == ["a.png", "c.png", "d.png"]
    (tmp_path / "door").symlink_to(tmp_path / "real")  # the folder that was asked for is another matter
    assert below(tmp_path / "door") == ["a.png", "c.png", "d.png"]


def test_listing_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a" / "1.png", tmp_path / "b" / "2.png", tmp_path / "c" / "3.png")
    opened: list[str] = []
    scan = os.scandir

    def counted(folder: Path) -> object:
        opened.append(folder.name)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", counted)
    images = list_images(tmp_path)
    assert next(images).name == "1.png"
    assert opened == [tmp_path.name, "a"]


def test_a_tree_deeper_than_the_recursion_limit(tmp_path: Path) -> None:
    deep = tmp_path / "/".join("d" * 300) / "deep.png"
    touch(deep)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)  # a tree beyond the usual 1,000 is hard to remove
    try:
        assert list(list_images(tmp_path)) == [deep]
    finally:
        sys.setrecursionlimit(limit)


def test_a_missing_folder_and_a_file_are_errors_at_once(tmp_path: Path) -> None:
    assert "No such file" in error_of(lambda: list_images(tmp_path / "missing"))
    touch(tmp_path / "file.png")
    assert "Not a directory" in error_of(lambda: list_images(tmp_path / "file.png"))


def test_plain_folder_says_why_it_is_empty(tmp_path: Path) -> None:
    assert "an empty folder" in error_of(lambda: plain_folder(tmp_path))
    touch(tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c" / "d.gif", tmp_path / ".hidden.png")
    assert "none, but 3 other files (.txt, .gif)" in error_of(lambda: plain_folder(tmp_path))
    touch(tmp_path / "c" / "e.png")
    assert plain_folder(tmp_path) == [tmp_path / "c" / "e.png"]


# The MVTec layout


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_category_in_the_layout_of_mvtec(tmp_path: Path, name: str) -> None:
    base = tmp_path / f"root of {name}" / name
    defect = f"bent {name}"
    touch(
        *(base / "train" / "good" / f"{name} {i}.png" for i in (1, 0)),
        base / "test" / "good" / "0.png",
        base / "test" / defect / f"{name}.png",
        base / "test" / defect / "plain.jpg",
        base / "test" / defect / "unknown.png",
        base / "test" / "a crack" / "sub" / "1.png",
        base / "ground_truth" / defect / f"{name}_mask.png",
        base / "ground_truth" / defect / "plain.png",
        base / "ground_truth" / "a crack" / "sub" / "1_mask.png",
        base / "ground_truth" / "good" / "0_mask.png",
    )
    category = open_category(base.parent, name)
    assert category == Category(base.parent, name)
    assert list_categories(base.parent) == [name]
    assert [path.name for path in category.train_good()] == [f"{name} 0.png", f"{name} 1.png"]
    images = category.test()
    assert [image.defect for image in images] == ["good", "a crack", defect, defect, defect]
    assert [image.is_defect for image in images] == [False, True, True, True, True]
    masks = {image.path.name: image.mask for image in images if image.is_defect}
    truth = base / "ground_truth"
    assert masks == {
        "1.png": truth / "a crack" / "sub" / "1_mask.png",
        f"{name}.png": truth / defect / f"{name}_mask.png",
        "plain.jpg": truth / defect / "plain.png",
        "unknown.png": None,
    }
    assert images[0] == TestImage(path=base / "test" / "good" / "0.png", defect="good", mask=None)


def test_a_split_that_is_missing_or_empty(tmp_path: Path) -> None:
    category = Category(tmp_path, "cable")
    category.folder.mkdir()
    assert "no such folder; lay the category out as" in error_of(category.train_good)
    assert "no such folder; lay the category out as" in error_of(category.test)
    (category.folder / "train" / "good").mkdir(parents=True)
    (category.folder / "test" / "good").mkdir(parents=True)
    touch(category.folder / "test" / "0.png")
    assert "an empty folder" in error_of(category.train_good)
    assert "none in its 1 subfolders" in error_of(category.test)


def test_a_category_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    root = tmp_path / "data"
    assert f"a folder at {root}, got No such file" in error_of(lambda: open_category(root, "cable"))
    root.mkdir()
    assert "no category at all" in error_of(lambda: open_category(root, "cable"))
    touch(root / "file", root / "notes" / "a.png", root / ".hidden" / "train" / "good" / "a.png")
    for number in range(12):
        touch(root / f"part{number:02}" / "train" / "good" / "0.png")
    text = error_of(lambda: open_category(root, "cabel"))
    assert "expected category 'cabel' in" in text
    assert "'part00', 'part01'" in text
    assert "'part09' and 2 more" in text
    assert "notes" not in text
    assert len(list_categories(root)) == 12
    error_of(lambda: open_category(root, "file"))
    error_of(lambda: open_category(root, "x" * 300))
    error_of(lambda: open_category(root / "file", "part00"))


@pytest.mark.parametrize("name", ["", ".", "..", "../cable", "a/b", "a\\b", "/etc", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert "the name of a folder" in error_of(lambda: open_category(tmp_path / "a", name))


def test_a_category_may_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path / "disk" / "train" / "good" / "0.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cable").symlink_to(tmp_path / "disk")
    assert list_categories(tmp_path / "data") == ["cable"]
    assert len(open_category(tmp_path / "data", "cable").train_good()) == 1


# Stamps


# Masks


def test_anything_but_zero_is_a_defect(tmp_path: Path) -> None:
    expected = np.zeros((4, 6), dtype=bool)
    expected[1, 2:5] = True
    ones = expected.astype(np.uint8)
    palette = Image.fromarray(ones).convert("P")
    palette.putpalette([0, 0, 0, 200, 0, 0])
    opaque = np.full((4, 6), 255, dtype=np.uint8)
    for number, image in enumerate(
        [
            Image.fromarray(ones),  # a label of 1, as well as
            Image.fromarray(ones * 255),  # white
            Image.fromarray(expected),  # 1 bit
            Image.fromarray(ones.astype(np.uint16)),  # 1 of 65535
            Image.fromarray(np.dstack([ones * 0, ones * 9, ones * 0])),
            Image.fromarray(np.dstack([ones, ones, ones, opaque])),
            palette,
        ]
    ):
        path = tmp_path / f"{number}_mask.png"
        image.save(path)
        mask = read_mask(path, 6, 4)
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, expected)


def test_a_mask_turns_as_its_image_does(tmp_path: Path) -> None:
    values = np.array([[1, 0, 0], [0, 0, 0]], dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", 2, 3), np.rot90(values, -1).astype(bool))


def test_a_mask_of_another_size_or_broken_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    Image.new("L", (6, 4)).save(path)
    with pytest.raises(ImageError, match=r"a mask of 4x6, as its image, in .*m\.png, got 6x4"):
        read_mask(path, 4, 6)
    path.write_bytes(path.read_bytes()[:45])
    with pytest.raises(ImageError, match=r"m\.png"):
        read_mask(path, 6, 4)
    Image.fromarray(np.ones((4, 6), dtype=np.float32)).save(tmp_path / "m.tif")
    with pytest.raises(ImageError, match=r"m\.tif, got 32-bit float"):
        read_mask(tmp_path / "m.tif", 6, 4)

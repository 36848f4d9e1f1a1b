"""Folders of images: any folder, and the layout of MVTec AD.

<data root>/<category>/train/good/*
                       test/good/*, test/<defect>/*
                       ground_truth/<defect>/<stem>_mask.png
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import ImageOps

from cfa_index.errors import DatasetError, ImageError
from cfa_index.images.decode import MAX_PIXELS, SUFFIXES, name_of, opened, to_rgb

GOOD = "good"
"""The folder, and the label, of images without a defect."""
_LISTED = 10


def list_images(folder: Path) -> Iterator[Path]:
    """Every entry below a folder that is named like an image, sorted by name within each folder.

    Streams: what is held is the names of the folders on the way down. Hidden entries are left out, and
    directories behind symbolic links are not entered. A directory named x.png is given like a file,
    not entered: reading it fails, and so it is seen.

    Args:
        folder: searched with all its subfolders.

    Returns:
        An iterator of paths that begin with `folder`.

    Raises:
        DatasetError: the folder is missing, is a file, or cannot be read; of a subfolder, on the way.
    """
    return (path for path in _entries(folder) if _named_like_an_image(path))


def plain_folder(folder: Path) -> list[Path]:
    """The images of a plain folder, as `list_images` gives them.

    Raises:
        DatasetError: as `list_images`, or there is not one image.
    """
    images = list(list_images(folder))
    if not images:
        raise DatasetError(
            expected=f"images ({', '.join(sorted(SUFFIXES))}) in {name_of(folder)}",
            got=_what_else(folder),
            remedy="convert them or give another folder",
        )
    return images


def _named_like_an_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _entries(folder: Path) -> Iterator[Path]:
    """All but directories, and directories named like an image. The folder itself is read at once."""
    first = _sorted_names(folder)

    def walk() -> Iterator[Path]:
        # A stack of its own: a tree may be deeper than Python's recursion.
        levels = [(folder, iter(first))]
        while levels:
            parent, names = levels[-1]
            for name, enter in names:
                path = parent / name
                if enter and not _named_like_an_image(path):
                    levels.append((path, iter(_sorted_names(path))))
                    break
                yield path
            else:
                levels.pop()

    return walk()


def _sorted_names(folder: Path) -> list[tuple[str, bool]]:
    """Visible entries of a directory, by name, and whether each is a directory and no link to one."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (entry.name, entry.is_dir(follow_symlinks=False))
                for entry in entries
                if not entry.name.startswith(".")
            )
    except OSError as error:
        raise DatasetError(
            expected=f"a folder at {name_of(folder)}",
            got=error.strerror or str(error),
            remedy="check the path and its permissions",
        ) from error


def _what_else(folder: Path) -> str:
    """What a folder without images holds instead."""
    kinds = Counter(path.suffix.lower() or "no suffix" for path in _entries(folder))
    if not kinds:
        return "an empty folder"
    return f"none, but {kinds.total()} other files ({', '.join(kind for kind, _ in kinds.most_common(3))})"


@dataclass(frozen=True, kw_only=True)
class TestImage:
    """One image of a test split.

    Attributes:
        path: of the image.
        defect: name of its folder, `good` for none.
        mask: where the defect is, if that is known.
    """

    __test__: ClassVar[bool] = False  # or pytest takes it for a class of tests

    path: Path
    defect: str
    mask: Path | None

    @property
    def is_defect(self) -> bool:
        """The label: anything but `good`."""
        return self.defect != GOOD


@dataclass(frozen=True)
class Category:
    """One product, laid out as in MVTec AD (top of this module).

    Attributes:
        root: the data root.
        name: of the product's folder in it.
    """

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        """root / name."""
        return self.root / self.name

    def train_good(self) -> list[Path]:
        """The good images to learn from, sorted.

        Raises:
            DatasetError: there is no folder train/good, or no image in it.
        """
        folder = self.folder / "train" / GOOD
        if not _is_folder(folder):
            raise DatasetError(
                expected=f"good images in {name_of(folder)}",
                got="no such folder",
                remedy="lay the category out as <category>/train/good/*, or give a plain folder with --normals",
            )
        return plain_folder(folder)

    def test(self) -> list[TestImage]:
        """The test split, `good` first, then each defect by name.

        A mask is ground_truth/<defect>/<stem>_mask.png, or <stem>.png, else None.

        Raises:
            DatasetError: there is no folder test, or no image in its subfolders.
        """
        folder = self.folder / "test"
        defects = _subfolders(folder) if _is_folder(folder) else []
        images = [
            TestImage(path=path, defect=defect, mask=self._mask(path, defect))
            for defect in sorted(defects, key=lambda name: (name != GOOD, name))
            for path in list_images(folder / defect)
        ]
        if not images:
            raise DatasetError(
                expected=f"images in the subfolders of {name_of(folder)}",
                got=f"none in its {len(defects)} subfolders" if _is_folder(folder) else "no such folder",
                remedy="lay the category out as <category>/test/good/* and <category>/test/<defect>/*",
            )
        return images

    def _mask(self, image: Path, defect: str) -> Path | None:
        if defect == GOOD:
            return None
        inside = image.relative_to(self.folder / "test" / defect).parent
        folder = self.folder / "ground_truth" / defect / inside
        names = (f"{image.stem}_mask.png", f"{image.stem}.png")
        return next((folder / name for name in names if (folder / name).is_file()), None)


def open_category(data_root: Path, name: str) -> Category:
    """The category of that name under a data root; its splits are read later.

    Raises:
        DatasetError: the data root or the category is missing, or the name is no folder's name.
    """
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
        raise DatasetError(
            expected="the name of a folder under the data root as category",
            got=repr(name),
            remedy="give the folder that holds it with --data-root",
        )
    category = Category(data_root, name)
    if _is_folder(category.folder):
        return category
    there = list_categories(data_root)
    some = ", ".join(repr(other) for other in there[:_LISTED])
    more = f" and {len(there) - _LISTED} more" if len(there) > _LISTED else ""
    raise DatasetError(
        expected=f"category {name!r} in {name_of(data_root)}",
        got=f"only {some}{more}" if there else "no category at all (a folder with train/good in it)",
        remedy="choose one of them or another --data-root" if there else "give another --data-root",
    )


def list_categories(data_root: Path) -> list[str]:
    """Names of the subfolders that hold train/good, sorted.

    Raises:
        DatasetError: the data root is missing, a file, or cannot be read.
    """
    return [name for name in _subfolders(data_root) if _is_folder(data_root / name / "train" / GOOD)]


def _subfolders(folder: Path) -> list[str]:
    """Names of the visible directories in a folder, by name; links to directories count here."""
    return [name for name, _ in _sorted_names(folder) if _is_folder(folder / name)]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name too long for the file system, or a folder that may not be looked into
        return False


def read_mask(path: Path, width: int, height: int) -> npt.NDArray[np.bool_]:
    """Where a defect is: any value but zero (black) in the mask's image.

    Args:
        path: of an image of any mode, 16 bits included; a colour of a palette counts, not its number.
        width, height: of the image that it belongs to, in pixels.

    Returns:
        (height, width) bool.

    Raises:
        ImageError: see `decode`; or the mask has another size than its image.
    """
    with opened(path, max_pixels=max(MAX_PIXELS, width * height)) as image:
        mask = ImageOps.exif_transpose(image)
        if mask.size != (width, height):
            raise ImageError(
                expected=f"a mask of {width}x{height}, as its image, in {name_of(path)}",
                got=f"{mask.width}x{mask.height}",
                remedy="give the mask of this image, unscaled",
            )
        if mask.mode == "I" or mask.mode.startswith("I;16"):
            return np.array(mask).astype(np.bool_)  # the high byte alone would lose small labels
        coloured: npt.NDArray[np.bool_] = np.array(to_rgb(mask, name=name_of(path))).max(axis=2) > 0
        return coloured

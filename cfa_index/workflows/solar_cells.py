"""The solar cells of the PyPI package `elpv-dataset` as a category in MVTec's layout.

Deitsch et al., electroluminescence images of 2,624 cells, 300 x 300 px, CC BY-NC-SA 4.0. Each cell
has a type (mono, poly) and a probability of being defective (0, 1/3, 2/3, 1).
"""

from __future__ import annotations

import importlib.util
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cfa_index.errors import DatasetError
from cfa_index.files import atomic_path, writing
from cfa_index.images import Category

CREDIT = "Images: ELPV dataset, Deitsch et al., CC BY-NC-SA 4.0"
CellType = Literal["mono", "poly"]


@dataclass(frozen=True, kw_only=True)
class CellSplit:
    """Files of one cell type.

    Attributes:
        train_good: the first 80% of the shuffled cells of probability 0.
        test_good: the rest of them.
        test_defect: cells of probability 1.
        uncertain: cells of probability 1/3 and 2/3, in neither; for development.
    """

    train_good: tuple[Path, ...]
    test_good: tuple[Path, ...]
    test_defect: tuple[Path, ...]
    uncertain: tuple[Path, ...]


def split_cells(cell_type: CellType) -> CellSplit:
    """The split that every figure in this project is measured on.

    Raises:
        DatasetError: the package is not installed, or is not as expected.
    """
    root = _dataset_folder()
    by_probability: dict[str, list[Path]] = {}
    for line in (root / "labels.csv").read_text().splitlines():
        name, probability, kind = line.split()
        if kind == cell_type:
            by_probability.setdefault(f"{float(probability):.1f}", []).append(root / name)
    good = by_probability.get("0.0", [])
    random.Random(0).shuffle(good)
    cut = int(0.8 * len(good))
    return CellSplit(
        train_good=tuple(good[:cut]),
        test_good=tuple(good[cut:]),
        test_defect=tuple(by_probability.get("1.0", [])),
        uncertain=tuple(by_probability.get("0.3", []) + by_probability.get("0.7", [])),
    )


def lay_out_cells(data_root: Path, cell_type: CellType, *, limit: int | None = None) -> Category:
    """Copy the cells into <data_root>/<cell_type>-cells/{train/good,test/good,test/defect}.

    Args:
        data_root: made if missing; files that are there already are left alone.
        cell_type: `mono` or `poly`.
        limit: most training images; the test folders get a quarter of it each.

    Raises:
        DatasetError: the package is not installed.
        OutputError: the disk is full or read-only.
    """
    split = split_cells(cell_type)
    category = Category(data_root, f"{cell_type}-cells")
    quarter = None if limit is None else max(1, limit // 4)
    _copy(split.train_good, limit, category.folder / "train" / "good")
    _copy(split.test_good, quarter, category.folder / "test" / "good")
    _copy(split.test_defect, quarter, category.folder / "test" / "defect")
    return category


def _copy(files: Sequence[Path], limit: int | None, folder: Path) -> None:
    """Make `folder` hold the first `limit` of `files`; cells of a run with another limit go."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(files):
            target = folder / file.name
            if limit is not None and number >= limit:
                target.unlink(missing_ok=True)
            elif not target.exists():
                with atomic_path(target) as temporary:
                    shutil.copyfile(file, temporary)


def _dataset_folder() -> Path:
    found = importlib.util.find_spec("elpv_dataset")
    if found is None or found.origin is None:
        raise DatasetError(
            expected="the Python package elpv-dataset with the solar cells",
            got="no such package",
            remedy="run: pip install 'cfa-index[demo]'",
        )
    return Path(found.origin).parent / "data"

"""A workplace whose bank is changed, and the command that changes it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import made_up
import numpy as np
from made_up import Workplace, cfa
from numpy.typing import NDArray

from cfa_index import Manifest, ModelBundle


def built(root: Path, method: str, *more: object) -> Workplace:
    """`weave` built with a method, and ten new good images in the folder `new` beside it."""
    place = made_up.workplace(root / method)
    made_up.write_good(root / "new", 10, first=500)
    size = () if method == "full" else ("--bank-size", "48")
    quick = made_up.QUICK[:-2]
    outcome = cfa("build", "-c", "weave", *place.everything, *quick, *size, "--method", method, *more)
    assert outcome.code == 0, outcome
    return place


def copied(place: Workplace, tmp_path: Path) -> Workplace:
    """Models are changed; data and features of a store are known by their own paths and stay where they are."""
    shutil.copytree(place.models, tmp_path / "models")
    shutil.copytree(place.features, tmp_path / "features")
    (tmp_path / "data").symlink_to(place.data)
    return Workplace(root=tmp_path)


def new_folder(place: Workplace) -> Path:
    """The new good images of a workplace."""
    return place.data.resolve().parent.parent / "new"


def bank(command: str, place: Workplace, *more: object, stores: bool = True) -> made_up.Outcome:
    """`cfa-index bank`, its document on standard output."""
    folders = place.stores if stores else place.model
    return cfa("bank", command, *more, "-c", "weave", *folders, "--json", "-")


def scores(place: Workplace) -> NDArray[np.float64]:
    """Of all test images."""
    files = sorted((place.data / "weave" / "test").rglob("*.png"))
    return np.array([verdict.score for verdict in ModelBundle.load(place.models / "weave").score(files)])


def manifest(place: Workplace) -> Manifest:
    """Of the current generation."""
    return ModelBundle.load(place.models / "weave").manifest


def names(images: Sequence[str]) -> tuple[str, ...]:
    """`--image` for each."""
    return tuple(part for image in images for part in ("--image", image))

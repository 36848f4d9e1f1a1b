"""A data set in MVTec AD's layout that takes a second to draw, and weights to go with it: for `--quick`.

Its scores mean nothing for any product: it only proves that every cell of every table can be computed.
Textures are woven stripes that fill the frame, objects a disc with a hole on a plain ground; each has one
defect that is easy and one that is faint, with masks. Every picture follows from its number alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from benchmarks.paper.published import TEXTURES
from cfa_index import BACKBONES, atomic_path, load_backbone, write_bytes

SIDE_PX = 64
QUICK_CLASSES = ("bottle", "carpet")
"""An object and a texture."""
_DEFECTS = {"broken": 90.0, "faint": 25.0}
"""By defect: how much brighter it is, in grey levels."""

_Array = np.ndarray[Any, np.dtype[np.floating[Any]]]


def write_dataset(
    root: Path, *, classes: tuple[str, ...] = QUICK_CLASSES, train: int = 8, test: int = 3
) -> Path:
    """Draw the data set below `root`, unless it is there.

    Args:
        root: the data root.
        classes: names of MVTec AD's classes; those in `TEXTURES` are drawn as textures.
        train: good images to learn from, a class.
        test: test images a class, good and of each defect.

    Returns:
        `root`.

    Raises:
        OutputError: the disk is full or read-only.
    """
    for position, name in enumerate(classes):
        first = 10_000 * position
        for number in range(train):
            _write(root / name / "train" / "good" / f"{number:03d}.png", picture(name, first + number))
        for number in range(test):
            _write(root / name / "test" / "good" / f"{number:03d}.png", picture(name, first + 1000 + number))
            for kind, (defect, contrast) in enumerate(_DEFECTS.items()):
                pixels = picture(name, first + 2000 * (kind + 1) + number)
                mask = defect_mask(number + kind)
                _write(
                    root / name / "test" / defect / f"{number:03d}.png",
                    np.where(mask[..., None], pixels + contrast, pixels),
                )
                _write(root / name / "ground_truth" / defect / f"{number:03d}_mask.png", 255.0 * mask)
    return root


def write_weights(folder: Path, backbones: Iterable[str]) -> Path:
    """Random weights of some backbones, files such as a user hands over; those that are there are left.

    Raises:
        OutputError: the disk is full or read-only.
    """
    for name in backbones:
        file = (folder / BACKBONES[name].checkpoint).with_suffix(".safetensors")
        if not file.exists():
            tensors = load_backbone(name, (4, 8, 16), size_px=SIDE_PX, weights="random").state_tensors()
            with atomic_path(file) as temporary:
                save_file(tensors, temporary)
    return folder


def picture(name: str, number: int) -> _Array:
    """A good image of a class: (64, 64, 3), grey levels."""
    draw = np.random.default_rng(number)
    y, x = np.mgrid[0:SIDE_PX, 0:SIDE_PX]
    if name in TEXTURES:
        grey = 110 + 25 * (np.sin(x / 3 + draw.uniform(0, 6)) + np.sin(y / 4 + draw.uniform(0, 6)))
    else:
        distance = np.hypot(*(np.stack([x, y]) - SIDE_PX / 2 - draw.uniform(-1, 1, (2, 1, 1))))
        grey = np.where(distance < 24, 140.0, 60.0)
        grey[distance < 8] = 60
    noisy = grey + draw.normal(0, 5, grey.shape)
    coloured: _Array = noisy[..., None] * np.array([1.0, 0.95, 0.85])
    return coloured


def defect_mask(number: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where the defect of an image is: (64, 64); a square inside the centre crop, its place by number."""
    mask = np.zeros((SIDE_PX, SIDE_PX), dtype=bool)
    top, left = 12 + 9 * (number % 4), 36 - 7 * (number % 3)
    mask[top : top + 10, left : left + 10] = True
    return mask


def _write(path: Path, pixels: _Array) -> None:
    if path.exists():
        return
    buffer = BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    write_bytes(path, buffer.getvalue())

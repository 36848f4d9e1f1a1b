"""Small made-up data sets, and the command line as the tests call it.

Every picture is drawn from its number alone, so that two runs see the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import sys
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from cfa_index_cli.main import app
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

SIDE_PX = 64
QUICK = (
    *("--weights", "random", "--backbone", "resnet18", "--strides", "4,8"),
    *("--size", str(SIDE_PX), "--bank-size", "32"),
)
"""Options of a build that takes a fraction of a second."""
CONSOLE_SCRIPT = Path(sys.executable).parent / "cfa-index"
ONE_THREAD = {"CFA_INDEX_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of a command in a test: on a small shared machine, more threads wait for each other."""


def texture(number: int, *, width: int = SIDE_PX, height: int = SIDE_PX) -> NDArray[np.uint8]:
    """Woven stripes with noise, (height, width, 3) uint8: all alike, no two the same."""
    draw = np.random.default_rng(number)
    y, x = np.mgrid[0:height, 0:width]
    stripes = np.sin(x / 3.0 + draw.uniform(0, 6)) + np.sin(y / 5.0 + draw.uniform(0, 6))
    grey = 120 + 30 * stripes + draw.normal(0, 6, (height, width))
    return np.stack([grey, grey * 0.9, grey * 0.8], axis=2).clip(0, 255).astype(np.uint8)


def write_image(path: Path, pixels: NDArray[np.uint8]) -> Path:
    """A PNG, its folders too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG", compress_level=1)
    return path


def write_good(folder: Path, count: int, *, first: int = 0) -> Path:
    """`count` good images 000.png, 001.png, ... in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / f"{number:03d}.png").write_bytes(_png(number))
    return folder


@cache
def _png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(texture(number)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_category(root: Path, name: str = "weave", *, train: int = 20, test: int = 4) -> Path:
    """A category in MVTec's layout: train/good, test/good, test/hole, and a mask for each hole."""
    folder = root / name
    write_good(folder / "train" / "good", train)
    write_good(folder / "test" / "good", test, first=1000)
    for number in range(test):
        pixels, mask = texture(2000 + number), np.zeros((SIDE_PX, SIDE_PX), np.uint8)
        top, left = 8 + 9 * (number % 4), 30 - 5 * (number % 4)
        pixels[top : top + 18, left : left + 18] = (250, 20, 20)
        mask[top : top + 18, left : left + 18] = 255
        write_image(folder / "test" / "hole" / f"{number:03d}.png", pixels)
        write_image(folder / "ground_truth" / "hole" / f"{number:03d}_mask.png", mask)
    return folder


def write_scratches(root: Path, count: int, name: str = "weave") -> None:
    """A second defect type of a category: test/scratch with its masks, thin and faint."""
    folder = root / name
    for number in range(count):
        pixels, mask = texture(3000 + number), np.zeros((SIDE_PX, SIDE_PX), np.uint8)
        row = 12 + 12 * (number % 4)
        pixels[row : row + 2, 8:50] = (60, 60, 60)
        mask[row : row + 2, 8:50] = 255
        write_image(folder / "test" / "scratch" / f"{number:03d}.png", pixels)
        write_image(folder / "ground_truth" / "scratch" / f"{number:03d}_mask.png", mask)


def write_huge(path: Path) -> Path:
    """A true PNG of 10,000 x 10,000 = 100 megapixels that takes 12 kB: one bit a pixel, all black."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1251 * 10_000))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    return path


def write_broken(folder: Path) -> list[str]:
    """One of each kind of image that cannot be used; gives their names."""
    write_image(folder / "cut.png", texture(7))
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:900])
    (folder / "empty.png").write_bytes(b"")
    (folder / "words.png").write_bytes(b"this is no image")
    write_huge(folder / "huge.png")
    (folder / "folder.png").mkdir()
    return ["cut.png", "empty.png", "words.png", "huge.png", "folder.png"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)

    @property
    def error_line(self) -> str:
        """The one line of a command that failed; nothing may follow it, and no traceback."""
        assert self.code == 1, self
        assert "Traceback" not in self.out + self.err, self
        assert self.out == "", self
        lines = self.err.splitlines()
        assert [line.startswith("cfa-index: expected ") for line in lines].count(True) == 1, self
        assert lines[-1].startswith("cfa-index: expected "), self
        assert "; " in lines[-1], self
        return lines[-1]


def cfa(*arguments: object, env: dict[str, str] | None = None) -> Outcome:
    """Run a command of `cfa-index` in this process, on one thread; a stray exception is raised here."""
    given = {**ONE_THREAD, **(env or {})}
    threadpool_limits(1, "blas")  # numpy's, which --threads leaves alone
    result = CliRunner().invoke(app, [str(a) for a in arguments], env=given, catch_exceptions=False)
    return Outcome(code=result.exit_code, out=result.stdout, err=result.stderr)


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Folders of one user: data, models, features, and the options that name them."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def features(self) -> Path:
        return self.root / "features"

    @property
    def model(self) -> tuple[str, ...]:
        """`--models-dir`."""
        return ("--models-dir", str(self.models))

    @property
    def stores(self) -> tuple[str, ...]:
        """`--models-dir` and `--features-dir`."""
        return (*self.model, "--features-dir", str(self.features))

    @property
    def everything(self) -> tuple[str, ...]:
        """`--data-root`, `--models-dir` and `--features-dir`."""
        return ("--data-root", str(self.data), *self.stores)

    def build(self, *more: object, category: str = "weave") -> Outcome:
        """`cfa-index build`, quick."""
        return cfa("build", "-c", category, *self.everything, *QUICK, *more)


def workplace(root: Path, *, train: int = 20, test: int = 4) -> Workplace:
    """A workplace with the category `weave`, not built yet."""
    write_category(root / "data", train=train, test=test)
    return Workplace(root=root)


def built_workplace(root: Path, *, train: int = 20, test: int = 4) -> Workplace:
    """A workplace with the category `weave`, built."""
    place = workplace(root, train=train, test=test)
    outcome = place.build()
    assert outcome.code == 0, outcome
    return place


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder and its checksum, to see whether anything has changed."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def leftovers(folder: Path) -> list[str]:
    """Names of temporary files and folders below a folder; there should be none."""
    return [
        str(Path(at) / name)
        for at, folders, files in os.walk(folder)
        for name in (*folders, *files)
        if name.endswith(".tmp") or ".partial" in name
    ]


def copied(place: Workplace, root: Path) -> Workplace:
    """The same workplace elsewhere, its data, models and features copied, to be changed by one test."""
    for folder in (place.data, place.models, place.features):
        shutil.copytree(folder, root / folder.name)
    return Workplace(root=root)

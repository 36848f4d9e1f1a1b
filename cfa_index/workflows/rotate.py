"""RD-MVTec: a copy of a category whose images are turned, resized and cropped at random (paper, Sec. 4.1).

"Each sample is rotated randomly within 10 degrees [...], resized to 256x256 and then randomly cropped to
224x224", training and test images alike. Where the published code does otherwise:

- It draws for the image and for its mask apart, so that they no longer fit. Here both get one draw.
- It draws anew each time an image is read. Here a draw follows from the seed and the image's path, so
  that the copy is one fixed data set, whatever the order or the number of runs that made it.
- It turns after resizing, by the nearest pixel. Here the turn comes first, as in the text, bilinear at
  full resolution; masks take the nearest pixel.
- It leaves the corners black: a mark that no real part has, of another shape in every image. Here the
  image goes on mirrored at its edges, its mask too, so that a mirrored defect is labelled as one.
  `corners="black"` gives the published corners.

A crop can leave a defect out of view. Its image keeps its label, as in the published code, and is counted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cfa_index.errors import DatasetError, ImageError, OutputError, SpecError
from cfa_index.events import Listener, Notice, ignore, stage
from cfa_index.files import atomic_path, sha256_of_file, write_json, writing
from cfa_index.images import Category, decode, list_images, read_mask
from cfa_index.specs import LARGEST_SEED

Corners = Literal["reflect", "black"]
Splits = Literal["all", "test"]

_RECORD = "rotation.json"
_SOURCE_KEY = "source-sha256"
"""Text chunk of every PNG: of the file that it was made from."""


@dataclass(frozen=True, kw_only=True)
class RotationSpec:
    """What is drawn for each image.

    Attributes:
        degrees: largest turn, either way.
        resize_px: side of the square that the turned image is resized to.
        crop_px: side of the square that is cut out of it.
        seed: with an image's path it decides that image's draw.
        corners: what shows where the turned image ends.

    Raises:
        SpecError: a value is out of its range, or the crop is larger than the square.
    """

    degrees: float = 10.0
    resize_px: int = 256
    crop_px: int = 224
    seed: int = 0
    corners: Corners = "reflect"

    def __post_init__(self) -> None:
        for name, fits, expected in (
            ("degrees", 0 <= self.degrees <= 180, "from 0 to 180"),
            ("resize_px", 1 <= self.resize_px <= 8192, "from 1 to 8192"),
            ("crop_px", 1 <= self.crop_px <= self.resize_px, f"from 1 to resize_px = {self.resize_px}"),
            ("seed", 0 <= self.seed <= LARGEST_SEED, f"from 0 to {LARGEST_SEED}"),
            ("corners", self.corners in get_args(Corners), f"one of {get_args(Corners)}"),
        ):
            if not fits:
                raise SpecError(
                    expected=f"{name} to be {expected}",
                    got=repr(getattr(self, name)),
                    remedy=f"give another value for {name}",
                )


@dataclass(frozen=True, kw_only=True)
class RotateReport:
    """What a run made of one category.

    Attributes:
        output: the category's folder in the new data root.
        images: in the copy, masks not counted.
        masks: in the copy.
        resumed: of the images, those that an earlier run had finished.
        out_of_view: of the masks, those that are empty now: the crop has left the defect out.
        rejected: images that could not be read, or whose mask could not; they are not in the copy.
    """

    category: str
    output: Path
    images: int
    masks: int
    resumed: int
    out_of_view: int
    rejected: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"schema_version": 1, **asdict(self), "output": str(self.output)}


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One image with its mask: where they are and where their copies go."""

    image: Path
    target: Path
    mask: Path | None
    mask_target: Path | None


@dataclass(frozen=True, kw_only=True)
class _Done:
    resumed: bool
    out_of_view: bool


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """One draw: an angle in degrees, and the crop's place in the resized square."""

    angle: float
    left: int
    top: int


def rotate_category(
    category: Category,
    output: Path,
    spec: RotationSpec,
    *,
    splits: Splits = "all",
    threads: int = 2,
    listener: Listener = ignore,
) -> RotateReport:
    """Write <output>/<category> in MVTec's layout, every image and mask a PNG of crop_px x crop_px.

    A rerun leaves finished files alone and gives the same bytes; a source that has changed is done again,
    and what the copy holds of images that are gone is deleted.

    Args:
        category: the source.
        output: the new data root.
        spec: what is drawn.
        splits: `all` (the paper), or only `test`, for a model that has learned from upright images.
        threads: that read and turn images.
        listener: told of progress, and of images that were left out.

    Raises:
        DatasetError: a split of the source is missing or empty, or two images would get one name.
        OutputError: the copy would lie in its source, the target is from other settings or other
            images, or the disk refuses.
    """
    folder = output / category.name
    jobs = list(_jobs(category, folder, splits))
    _claim(folder, category, spec)
    done: list[_Done] = []
    written: set[Path] = set()
    with stage(listener, "rotate", len(jobs), "images") as advance, ThreadPoolExecutor(threads) as pool:

        def work(job: _Job) -> _Done | ImageError:
            try:
                return _rotate(job, _draw(spec, job.image.relative_to(category.root)), spec)
            except ImageError as error:
                return error

        for job, outcome in zip(jobs, pool.map(work, jobs), strict=True):
            if isinstance(outcome, ImageError):
                listener(Notice(message=f"left out: {outcome}"))
            else:
                done.append(outcome)
                written |= {job.target} if job.mask_target is None else {job.target, job.mask_target}
            advance(1)
    _remove_others([folder / "test", folder / "ground_truth"], written)
    if splits == "all":
        _remove_others([folder / "train"], written)
    return RotateReport(
        category=category.name,
        output=folder,
        images=len(done),
        masks=len(written) - len(done),
        resumed=sum(one.resumed for one in done),
        out_of_view=sum(one.out_of_view for one in done),
        rejected=len(jobs) - len(done),
    )


def _jobs(category: Category, folder: Path, splits: Splits) -> Iterator[_Job]:
    """All images, training first; each with its mask where there is one."""
    pairs: list[tuple[Path, Path | None]] = [(test.path, test.mask) for test in category.test()]
    if splits == "all":
        pairs = [(path, None) for path in category.train_good()] + pairs
    taken: dict[Path, Path] = {}
    for image, mask in pairs:
        inside = image.relative_to(category.folder).with_suffix(".png")
        target = folder / inside
        if target in taken:
            raise DatasetError(
                expected="images whose names differ in more than their suffix",
                got=f"{taken[target]} and {image}",
                remedy="rename one of them, and its mask",
            )
        taken[target] = image
        mask_target = folder / "ground_truth" / inside.relative_to("test") if mask else None
        if mask_target:
            mask_target = mask_target.with_name(f"{inside.stem}_mask.png")
        yield _Job(image=image, target=target, mask=mask, mask_target=mask_target)


def _claim(folder: Path, category: Category, spec: RotationSpec) -> None:
    """Take the target folder, new or left by a run with the same settings."""
    source, target = category.folder.resolve(), folder.resolve()
    if source.is_relative_to(target) or target.is_relative_to(source):
        raise OutputError(
            expected=f"a copy outside its source {category.folder}",
            got=str(folder),
            remedy="give --output another folder",
        )
    record, settings = folder / _RECORD, {"schema_version": 1, **asdict(spec)}
    if not record.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(
                expected=f"{folder} to be new, empty, or from an earlier run",
                got="something else there",
                remedy="give --output another folder",
            )
        write_json(record, settings)
        return
    try:
        before = json.loads(record.read_bytes())
    except ValueError:
        before = None
    if before != settings:
        raise OutputError(
            expected=f"{folder} to be from a run with the same settings {settings}",
            got=f"{before}",
            remedy="give --output another folder, or delete this one",
        )


def _draw(spec: RotationSpec, path: Path) -> _Turn:
    """The draw of the image at `path`, relative to the data root."""
    digest = hashlib.sha256(os.fsencode(path.as_posix())).digest()
    turn, left, top = np.random.default_rng([spec.seed, int.from_bytes(digest[:16])]).random(3)
    room = spec.resize_px - spec.crop_px + 1
    return _Turn(angle=float(spec.degrees * (2 * turn - 1)), left=int(left * room), top=int(top * room))


def _rotate(job: _Job, turn: _Turn, spec: RotationSpec) -> _Done:
    """Write the copies of an image and its mask, unless they are there. Raises ImageError, OutputError."""
    source = _digest(job.image)
    mask_source = _digest(job.mask) if job.mask else ""
    if _made_from(job.target) == source and (
        job.mask_target is None or _made_from(job.mask_target) == mask_source
    ):
        return _Done(resumed=True, out_of_view=job.mask_target is not None and _is_black(job.mask_target))
    image = decode(job.image)
    out_of_view = False
    if job.mask and job.mask_target:
        mask = read_mask(job.mask, image.width, image.height)
        turned = _turned(mask.astype(np.uint8) * np.uint8(255), turn, spec, Image.Resampling.NEAREST)
        out_of_view = not np.array(turned).any()
        _save(turned, job.mask_target, mask_source)
    _save(_turned(np.array(image), turn, spec, Image.Resampling.BILINEAR), job.target, source)
    return _Done(resumed=False, out_of_view=out_of_view)


def _turned(
    pixels: NDArray[np.uint8], turn: _Turn, spec: RotationSpec, resample: Image.Resampling
) -> Image.Image:
    """(H, W) or (H, W, 3) turned about its centre, resized, cropped."""
    height, width = pixels.shape[:2]
    cosine, sine = (abs(f(math.radians(turn.angle))) for f in (math.cos, math.sin))
    x, y = (  # how far the turned frame reaches beyond the image
        max(0, math.ceil((side * cosine + other * sine - side) / 2)) + 1
        for side, other in ((width, height), (height, width))
    )
    margins = [(y, y), (x, x), (0, 0)][: pixels.ndim]
    # `symmetric` and not `reflect`: it also goes on at the edge of an image one pixel wide.
    padded = (
        np.pad(pixels, margins, mode="symmetric")
        if spec.corners == "reflect"
        else np.pad(pixels, margins, mode="constant")
    )
    rotated = Image.fromarray(padded).rotate(turn.angle, resample=resample)
    square = rotated.resize((spec.resize_px, spec.resize_px), resample, box=(x, y, x + width, y + height))
    return square.crop((turn.left, turn.top, turn.left + spec.crop_px, turn.top + spec.crop_px))


def _digest(path: Path) -> str:
    """SHA-256 of a source. Raises ImageError."""
    try:
        return sha256_of_file(path)
    except OSError as error:  # a directory named like an image, or a file that is gone
        raise ImageError(
            expected=f"to read {path}",
            got=error.strerror or str(error),
            remedy="check the path and its permissions",
        ) from error


def _save(image: Image.Image, target: Path, source: str) -> None:
    texts = PngInfo()
    texts.add_text(_SOURCE_KEY, source)
    with atomic_path(target) as temporary:
        image.save(temporary, "PNG", pnginfo=texts)


def _made_from(target: Path) -> str | None:
    """Checksum of the file that a finished copy was made from; None when there is no such copy."""
    try:
        with Image.open(target, formats=["PNG"]) as image:
            return str(image.info.get(_SOURCE_KEY))
    except OSError:
        return None


def _is_black(target: Path) -> bool:
    with Image.open(target, formats=["PNG"]) as image:
        return image.getbbox() is None


def _remove_others(folders: Sequence[Path], written: set[Path]) -> None:
    """Delete what an earlier run has made of images that are gone. Raises OutputError."""
    for folder in folders:
        if folder.is_dir():
            for file in set(list_images(folder)) - written:
                with writing(file):
                    file.unlink()

"""Batches of pixels, decoded by a few threads ahead of whoever uses them.

Memory is a function of the batch: at most two batches are under way or waiting, however long the
sequence is, and an endless one will do. Threads and not processes: Pillow and numpy release the
interpreter's lock where it counts, spawning would break scripts without a main guard, and FAISS can
hang after a fork.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from cfa_index.errors import ImageError, SpecError
from cfa_index.images.decode import MAX_PIXELS, Source, as_image, decode
from cfa_index.images.frame import Frame
from cfa_index.images.tiles import view_at, view_count
from cfa_index.specs import FeatureSpec

_BATCHES_AHEAD = 2
_WHOLE_IMAGES_AHEAD = 2
"""Where an image is cut into tiles its pixels wait whole, and it may be large."""

_View = tuple[torch.Tensor, Frame]
_Read = Image.Image | _View | ImageError


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """Some consecutive views of a sequence of images, and the images that could not be read.

    A view is a whole image, or one of the tiles that `FeatureSpec.tile_px` asks for; then an image has several,
    one after another, perhaps in more than one batch.

    Attributes:
        positions: of the image of each of the B views in the sequence, ascending, from 0.
        tiles: number of each view within its image; zeros without tiles.
        pixels: uint8 (B, 3, S, S), not normalised; B is 0 when none could be read.
        frames: of each view, how it lies in its source.
        errors: position and cause of the images that could not be read, ascending.
    """

    positions: list[int]
    tiles: list[int]
    pixels: torch.Tensor
    frames: list[Frame]
    errors: list[tuple[int, ImageError]]


def load_batches(
    sources: Iterable[Source],
    features: FeatureSpec,
    *,
    batch_size: int,
    threads: int = 2,
    max_pixels: int = MAX_PIXELS,
) -> Generator[ImageBatch, None, None]:
    """Decode and resize images, `batch_size` views at a time, in order.

    Args:
        sources: what `as_image` takes; consumed at most two batches ahead, with tiles two images, and only
            from the thread that iterates. Images in memory are copied when they are consumed, so that a
            camera may use its buffer again.
        features: geometry, size_px and tiles.
        batch_size: views a batch, an unreadable image counted as one; only the last batch may have fewer.
        threads: that decode; they end with the generator, however it ends.
        max_pixels: as in `decode`.

    Returns:
        A generator of batches; close it, or drop it, to stop early.

    Raises:
        SpecError: batch_size or threads is below 1 (at once, not on the first batch).
    """
    for name, value in (("batch_size", batch_size), ("threads", threads)):
        if value < 1:
            raise SpecError(
                expected=f"{name} to be 1 or more", got=repr(value), remedy=f"give another value for {name}"
            )
    return _batches(enumerate(sources), features, batch_size, threads, max_pixels)


def _batches(
    numbered: Iterator[tuple[int, Source]],
    features: FeatureSpec,
    batch_size: int,
    threads: int,
    max_pixels: int,
) -> Generator[ImageBatch, None, None]:
    waiting: deque[tuple[int, Future[_Read]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="cfa-index-decode")
    ahead = _WHOLE_IMAGES_AHEAD if features.tile_px else _BATCHES_AHEAD * batch_size
    batch = _Gathering()
    try:
        while True:
            for position, source in islice(numbered, ahead - len(waiting)):
                waiting.append((position, _submit(pool, source, features, max_pixels)))
            if not waiting:
                break
            position, future = waiting.popleft()
            read = future.result()
            del future  # it would hold the image while its tiles are used
            if isinstance(read, ImageError):
                batch.errors.append((position, read))
                if batch.count == batch_size:
                    yield batch.result(features)
                    batch = _Gathering()
                continue
            for number, view in enumerate(_views(read, features)):
                batch.views.append((position, number, view))
                if batch.count == batch_size:
                    yield batch.result(features)
                    batch = _Gathering()
        if batch.count:
            yield batch.result(features)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Gathering:
    """A batch that is being filled: (position, tile, view) each, and errors."""

    def __init__(self) -> None:
        self.views: list[tuple[int, int, _View]] = []
        self.errors: list[tuple[int, ImageError]] = []

    @property
    def count(self) -> int:
        return len(self.views) + len(self.errors)

    def result(self, features: FeatureSpec) -> ImageBatch:
        side = features.size_px
        return ImageBatch(
            positions=[position for position, _, _ in self.views],
            tiles=[number for _, number, _ in self.views],
            pixels=torch.stack([pixels for _, _, (pixels, _) in self.views])
            if self.views
            else torch.empty((0, 3, side, side), dtype=torch.uint8),
            frames=[frame for _, _, (_, frame) in self.views],
            errors=self.errors,
        )


def _views(read: Image.Image | _View, features: FeatureSpec) -> Iterator[_View]:
    """The views of an image, its tiles cut one at a time."""
    if not isinstance(read, Image.Image):
        yield read
        return
    for number in range(view_count(read.width, read.height, features)):
        pixels, frame = view_at(read, features, number)
        yield torch.from_numpy(pixels), frame


def _submit(
    pool: ThreadPoolExecutor, source: Source, features: FeatureSpec, max_pixels: int
) -> Future[_Read]:
    if isinstance(source, str):
        source = Path(source)
    if not isinstance(source, Path | bytes):
        # Here and now: the buffer may be used again, and two threads must not load one lazy PIL image.
        try:
            source = as_image(source, max_pixels=max_pixels)
        except ImageError as error:
            failed: Future[_Read] = Future()
            failed.set_result(error)
            return failed
    return pool.submit(_read, source, features, max_pixels)


def _read(source: Path | bytes | Image.Image, features: FeatureSpec, max_pixels: int) -> _Read:
    """The one view of an image, or the image itself where it is to be cut."""
    try:
        image = source if isinstance(source, Image.Image) else decode(source, max_pixels=max_pixels)
        if features.tile_px:
            return image
        pixels, frame = view_at(image, features, 0)
        return torch.from_numpy(pixels), frame
    except ImageError as error:
        return error

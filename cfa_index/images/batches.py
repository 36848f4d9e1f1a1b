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
from cfa_index.images.frame import Frame, network_pixels
from cfa_index.specs import FeatureSpec

_BATCHES_AHEAD = 2

_Read = tuple[torch.Tensor, Frame] | ImageError


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """Some consecutive images of a sequence, those that could be read apart from the others.

    Attributes:
        positions: of the B good images in the sequence, ascending, from 0.
        pixels: uint8 (B, 3, S, S), not normalised; B is 0 when none could be read.
        frames: of each, how it lies in its source.
        errors: position and cause of those that could not be read, ascending.
    """

    positions: list[int]
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
    """Decode and resize images, `batch_size` at a time, in order.

    Args:
        sources: what `as_image` takes; consumed at most two batches ahead, and only from the thread
            that iterates. Images in memory are copied when they are consumed, so that a camera may
            use its buffer again.
        features: geometry and size_px.
        batch_size: sources a batch, the unreadable counted; only the last batch may have fewer.
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
    try:
        while True:
            done: list[tuple[int, _Read]] = []
            while len(done) < batch_size:
                room = _BATCHES_AHEAD * batch_size - len(waiting)
                for position, source in islice(numbered, room):
                    waiting.append((position, _submit(pool, source, features, max_pixels)))
                if not waiting:
                    break
                position, future = waiting.popleft()
                done.append((position, future.result()))
            if not done:
                return
            yield _gather(done, features)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
    try:
        image = source if isinstance(source, Image.Image) else decode(source, max_pixels=max_pixels)
        return network_pixels(image, features)
    except ImageError as error:
        return error


def _gather(done: list[tuple[int, _Read]], features: FeatureSpec) -> ImageBatch:
    good = [(position, read) for position, read in done if not isinstance(read, ImageError)]
    side = features.size_px
    return ImageBatch(
        positions=[position for position, _ in good],
        pixels=torch.stack([pixels for _, (pixels, _) in good])
        if good
        else torch.empty((0, 3, side, side), dtype=torch.uint8),
        frames=[frame for _, (_, frame) in good],
        errors=[(position, read) for position, read in done if isinstance(read, ImageError)],
    )

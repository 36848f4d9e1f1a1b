"""Batches in order, read ahead by a bounded amount, and no thread left behind."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from cfa_index.errors import ImageError, SpecError
from cfa_index.images import (
    ImageBatch,
    Source,
    as_image,
    batches as module,
    decode,
    load_batches,
    network_pixels,
)
from cfa_index.specs import FeatureSpec

SPEC = FeatureSpec(size_px=32)


def decoders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cfa-index-decode")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    assert decoders() == []
    yield
    assert decoders() == []


def shade(value: int) -> npt.NDArray[np.uint8]:
    return np.full((8, 8, 3), value % 256, dtype=np.uint8)


def seen(batch: ImageBatch) -> list[int]:
    """The shade of each image of a batch."""
    return [int(value) for value in batch.pixels[:, 0, 0, 0]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for value in range(10):
        Image.fromarray(shade(value)).save(tmp_path / f"{value}.png")
    return tmp_path


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 5, 64])
def test_order_is_kept(folder: Path, batch_size: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def unevenly(source: Path, *, max_pixels: int) -> Image.Image:
        time.sleep(0.002 * (int(source.stem) % 3))
        return decode(source, max_pixels=max_pixels)

    monkeypatch.setattr(module, "decode", unevenly)
    paths = [folder / f"{value}.png" for value in range(10)]
    found = list(load_batches(paths, SPEC, batch_size=batch_size, threads=threads))
    assert [position for batch in found for position in batch.positions] == list(range(10))
    assert [value for batch in found for value in seen(batch)] == list(range(10))
    assert [len(batch.positions) for batch in found[:-1]] == [batch_size] * (len(found) - 1)
    assert all(batch.pixels.dtype == torch.uint8 for batch in found)
    assert all(len(batch.frames) == len(batch.positions) == len(batch.pixels) for batch in found)


def test_every_kind_of_source_gives_the_same_pixels(folder: Path) -> None:
    path = folder / "7.png"
    array = shade(7)
    sources: list[Source] = [
        path,
        str(path),
        path.read_bytes(),
        Image.open(path),
        array,
        torch.from_numpy(array).permute(2, 0, 1),
    ]
    expected, frame = network_pixels(as_image(path), SPEC)
    (batch,) = load_batches(sources, SPEC, batch_size=8)
    assert batch.errors == []
    assert batch.frames == [frame] * 6
    for pixels in batch.pixels:
        torch.testing.assert_close(pixels, expected, rtol=0, atol=0)


def test_broken_images_are_told_apart_and_do_not_stop_the_rest(folder: Path) -> None:
    (folder / "x.png").mkdir()
    (folder / "0.png").write_bytes(b"")
    sources: list[Source] = [
        folder / "0.png",
        folder / "1.png",
        folder / "x.png",
        np.full((2, 2), np.nan),
        folder / "2.png",
        folder / "missing.png",
    ]
    first, second, third = load_batches(sources, SPEC, batch_size=2)
    assert (first.positions, [position for position, _ in first.errors]) == ([1], [0])
    assert (second.positions, [position for position, _ in second.errors]) == ([], [2, 3])
    assert second.pixels.shape == (0, 3, 32, 32)
    assert second.pixels.dtype == torch.uint8
    assert second.frames == []
    assert (third.positions, [position for position, _ in third.errors]) == ([4], [5])
    assert seen(third) == [2]
    for batch, told in ((first, "0 bytes"), (second, "a directory"), (third, "missing.png")):
        assert isinstance(batch.errors[0][1], ImageError)
        assert told in str(batch.errors[0][1])


def test_the_size_limit_is_passed_on(folder: Path) -> None:
    (batch,) = load_batches([folder / "1.png", shade(1)], SPEC, batch_size=4, max_pixels=63)
    assert [position for position, _ in batch.errors] == [0, 1]


def test_an_endless_sequence_is_read_two_batches_ahead() -> None:
    taken = 0

    def camera() -> Iterator[npt.NDArray[np.uint8]]:
        nonlocal taken
        buffer = shade(0)
        for value in itertools.count():
            taken += 1
            buffer[:] = value % 256  # the camera uses its buffer again
            yield buffer

    stream = load_batches(camera(), SPEC, batch_size=4)
    assert taken == 0
    for number in range(1, 30):
        batch = next(stream)
        assert seen(batch) == [value % 256 for value in range(4 * number - 4, 4 * number)]
        assert taken <= 4 * (number + 2)
    stream.close()
    assert taken <= 4 * 31


def test_no_sources_give_no_batches() -> None:
    assert list(load_batches([], SPEC, batch_size=4)) == []


def test_threads_end_when_the_generator_is_closed_or_dropped(folder: Path) -> None:
    stream = load_batches(itertools.repeat(folder / "1.png"), SPEC, batch_size=2, threads=3)
    next(stream)
    assert 1 <= len(decoders()) <= 3
    stream.close()
    assert decoders() == []
    stream = load_batches(itertools.repeat(folder / "1.png"), SPEC, batch_size=2)
    next(stream)
    del stream
    gc.collect()
    assert decoders() == []


def test_threads_end_when_the_sequence_fails(folder: Path) -> None:
    def failing() -> Iterator[Path]:
        yield from [folder / "1.png"] * 5
        raise RuntimeError("the list broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        list(load_batches(failing(), SPEC, batch_size=2))


def test_a_mistake_in_a_thread_is_raised_and_not_recorded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(module, "view_at", mistaken)
    with pytest.raises(ZeroDivisionError):
        next(load_batches([folder / "1.png"], SPEC, batch_size=2))


@pytest.mark.parametrize(("batch_size", "threads"), [(0, 1), (1, 0)])
def test_sizes_below_one_are_refused_at_once(batch_size: int, threads: int) -> None:
    with pytest.raises(SpecError, match="to be 1 or more, got 0"):
        load_batches([], SPEC, batch_size=batch_size, threads=threads)

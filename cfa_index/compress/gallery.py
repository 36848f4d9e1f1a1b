"""Memories that are patches themselves: some by their number, some by chance, or all of them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cfa_index.compress.sample import PatchSample
from cfa_index.compress.stream import OnStep, PatchStream, miscounted, no_patches, nothing
from cfa_index.errors import BankError
from cfa_index.files import writing

HELD_BYTES = 1 << 30
"""Features of a bank that may be held in memory; those of a larger one go to a mapped file."""


def gather_patches(
    stream: PatchStream,
    numbers: NDArray[np.int64],
    *,
    held_bytes: int = HELD_BYTES,
    on_image: OnStep = nothing,
) -> PatchSample:
    """Patches by their number in the stream, in one pass that holds one image and, up to `held_bytes`, them.

    Args:
        stream: the patches, numbered from 0 in the order that they come.
        numbers: (M,) int64, all different; the result keeps their order.
        held_bytes: features larger than this are in a memory-mapped temporary file, which goes with them.
        on_image: called after each image.

    Raises:
        BankError: the stream is empty, or has no patch of such a number.
        OutputError: there is no room for the file.
    """
    order = np.argsort(numbers)
    ascending = numbers[order]
    rows, cells = np.empty(len(numbers), np.int64), np.empty(len(numbers), np.int64)
    features: NDArray[np.float32] | None = None
    seen = 0
    for row, shown, patches in stream():
        if features is None:
            features = _empty((len(numbers), patches.shape[1]), held_bytes)
        first, last = np.searchsorted(ascending, [seen, seen + len(patches)])
        slots, inside = order[first:last], ascending[first:last] - seen
        features[slots], rows[slots], cells[slots] = patches[inside], row, shown[inside]
        seen += len(patches)
        on_image()
    if features is None:
        raise no_patches()
    if len(numbers) and ascending[-1] >= seen:
        raise miscounted(int(ascending[-1]) + 1, str(seen))
    return PatchSample(features=features, rows=rows, cells=cells)


def random_bank(
    stream: PatchStream, memories: int, *, total: int, seed: int, on_image: OnStep = nothing
) -> PatchSample:
    """M patches, each with the same chance, with the places that they come from.

    Args:
        stream: the patches.
        memories: M.
        total: how many patches the stream gives.
        seed: of the draw.
        on_image: called after each image.

    Raises:
        BankError: M is larger than `total`, or the stream is shorter.
    """
    check_enough(memories, total)
    drawn = np.random.default_rng(seed).choice(total, memories, replace=False)
    return gather_patches(stream, np.sort(drawn), on_image=on_image)


def full_bank(stream: PatchStream, *, total: int, on_image: OnStep = nothing) -> PatchSample:
    """Every patch (SPADE's gallery, Cohen and Hoshen 2020): total * D' * 4 bytes.

    Raises:
        BankError: the stream gives fewer than `total` patches.
    """
    return gather_patches(stream, np.arange(total), on_image=on_image)


def _empty(shape: tuple[int, int], held_bytes: int) -> NDArray[np.float32]:
    """Room for float32 features: in memory, or in a file without a name, so that no way to end leaves it."""
    size = shape[0] * shape[1] * 4
    if size <= held_bytes:
        return np.empty(shape, dtype=np.float32)
    with writing(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a disk that fills up later would end the process
        return np.memmap(file, dtype=np.float32, mode="r+", shape=shape)


def check_enough(memories: int, total: int) -> None:
    """Refuse more memories than there are patches; raises BankError."""
    if memories > total:
        raise BankError(
            expected=f"a bank of at most {total} memories, one a patch",
            got=str(memories),
            remedy="give a smaller --bank-size, or more good images",
        )

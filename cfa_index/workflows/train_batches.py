"""Batches of stored pyramids on the device: the next one is read and sent while the last one is worked on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from cfa_index.store import PatchStore
from cfa_index.transfers import Uploads
from cfa_index.workflows.extract import inspected_mask


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """B views on the device.

    Attributes:
        rows: of the store.
        levels: their pyramids, float16 (B, C_l, h_l, w_l): half of float32's way over the bus, widened by phi.
        inspected: (n,) int64, the patches of B*h*w that show their image and no padding; None for all of them.
    """

    rows: Sequence[int]
    levels: list[Tensor]
    inspected: Tensor | None


def train_batches(
    store: PatchStore, parts: Sequence[Sequence[int]], uploads: Uploads
) -> Iterator[TrainBatch]:
    """The views of each part; a thread reads the next ones, for a card into pinned memory.

    Raises:
        StoreError: a shard does not match its checksum.
    """

    def read(rows: Sequence[int]) -> tuple[list[Tensor], Tensor | None]:
        return store.read(rows, uploads.staging), _inspected(store, rows)

    reader = ThreadPoolExecutor(1)
    try:
        coming = reader.submit(read, parts[0]) if parts else None
        for number, rows in enumerate(parts):
            assert coming is not None
            levels, inspected = coming.result()
            coming = reader.submit(read, parts[number + 1]) if number + 1 < len(parts) else None
            sent = uploads(levels if inspected is None else [*levels, inspected])
            yield TrainBatch(
                rows=rows, levels=sent[: len(levels)], inspected=None if inspected is None else sent[-1]
            )
    finally:
        # Not waited for: what was left after an error the garbage collector may close in any thread, also in that
        # of the store, which the reader waits for.
        reader.shutdown(wait=False, cancel_futures=True)


def _inspected(store: PatchStore, rows: Sequence[int]) -> Tensor | None:
    """The patches of some views that count, by number; None for all, so that a full batch costs nothing."""
    mask = inspected_mask(store, rows)
    return None if bool(mask.all()) else mask.flatten().nonzero()[:, 0]

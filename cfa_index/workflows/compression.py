"""All patches of a store to a bank, by any method, and where each memory came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index.bank import PatchSources
from cfa_index.card_memory import card_memory
from cfa_index.compress import (
    PatchSample,
    PatchStream,
    coreset_bank,
    ema_bank,
    full_bank,
    hybrid_bank,
    kmeans_bank,
    mean_bank,
    nearest_sources,
    random_bank,
    sample_patches,
)
from cfa_index.descriptor import PatchDescriptor
from cfa_index.events import Listener, ignore, stage
from cfa_index.footprint import SMALLER_BANK
from cfa_index.specs import BankSpec, CardSpec
from cfa_index.store import PatchStore
from cfa_index.transfers import Downloads, Pending, Uploads
from cfa_index.workflows.extract import READ_IMAGES, inspected_cells

_POINTS_PER_MEMORY = 8
"""Fewest patches a memory that k-means sees, where there are as many: with one each it would only copy."""


def patch_stream(store: PatchStore, rows: Sequence[int], phi: PatchDescriptor) -> PatchStream:
    """The adapted patches of some views, one at a time, read in small batches; see `compress`.

    They are computed where phi is, and come to the host: a card has the next batch to work on meanwhile.
    """
    folded = phi.folded()
    device = folded.bias.device

    def stream() -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float32]]]:
        uploads, downloads = Uploads(device), Downloads(device)

        def adapted() -> Iterator[tuple[Sequence[int], Pending]]:
            for start in range(0, len(rows), READ_IMAGES):
                part = rows[start : start + READ_IMAGES]
                levels = store.read(part, uploads.staging)
                with torch.inference_mode():
                    pending = downloads.start([folded(uploads(levels))])
                yield part, pending

        for part, pending in downloads.behind(adapted()):
            for row, grid in zip(part, pending.result()[0].numpy(), strict=True):
                cells = inspected_cells(store, row)
                yield row, cells, grid if len(cells) == len(grid) else grid[cells]

    return stream


def compress_store(
    store: PatchStore,
    rows: Sequence[int],
    phi: PatchDescriptor,
    spec: BankSpec,
    *,
    seed: int,
    card: CardSpec = CardSpec(),
    listener: Listener = ignore,
) -> tuple[NDArray[np.float32], PatchSources]:
    """The bank of some images under phi, made where phi is: vectors (M, D') and where each came from.

    The memories of `coreset`, `random` and `full`, and half of those of `hybrid`, are patches, whose places
    are known; for means of patches the nearest patch of a sample is found.

    Raises:
        BankError: more memories are asked for than there are patches, or the patches of a coreset do
            not fit into memory.
        DeviceError, CardMemoryError: FAISS does not see the card, or it has no room.
    """
    with card_memory(phi.bias.device, "making the bank", lower=SMALLER_BANK):
        return _compress(store, rows, phi, spec, seed, card, listener)


def _compress(
    store: PatchStore,
    rows: Sequence[int],
    phi: PatchDescriptor,
    spec: BankSpec,
    seed: int,
    card: CardSpec,
    listener: Listener,
) -> tuple[NDArray[np.float32], PatchSources]:
    device = phi.bias.device
    height, width = store.header.grids[0]
    total = sum(len(inspected_cells(store, row)) for row in rows)
    memories = spec.memories(height * width, total)
    stream = patch_stream(store, rows, phi)
    if spec.method in ("coreset", "random", "full"):
        bank = _choose(stream, memories, len(rows), total, spec, seed, device, listener)
        return bank.features, PatchSources(rows=bank.rows, cells=bank.cells)
    with stage(listener, "sample", len(rows), store.header.features.view_unit) as advance:
        sample = sample_patches(
            stream,
            images=len(rows),
            per_image=height * width,
            limit=max(spec.sample_patches, _POINTS_PER_MEMORY * memories),
            seed=seed,
            on_image=lambda: advance(1),
        )
    if spec.method == "hybrid":
        bank = hybrid_bank(
            stream,
            sample,
            memories,
            images=len(rows),
            coverage=spec.coverage,
            iterations=spec.iterations,
            seed=seed,
            device=device,
            card=card,
            listener=listener,
        )
        return bank.features, PatchSources(rows=bank.rows, cells=bank.cells)
    vectors = _average(stream, sample, memories, len(rows), spec, seed, device, card, listener)
    return vectors, nearest_sources(vectors, sample, device=device, card=card)


def _choose(
    stream: PatchStream,
    memories: int,
    images: int,
    total: int,
    spec: BankSpec,
    seed: int,
    device: torch.device,
    listener: Listener,
) -> PatchSample:
    """Memories that are patches themselves."""
    if spec.method == "coreset":
        return coreset_bank(
            stream,
            memories,
            images=images,
            total=total,
            eps=spec.coreset_eps,
            seed=seed,
            device=device,
            listener=listener,
        )
    with stage(listener, "bank", images, "images") as advance:
        if spec.method == "random":
            return random_bank(stream, memories, total=total, seed=seed, on_image=lambda: advance(1))
        return full_bank(stream, total=total, on_image=lambda: advance(1))


def _average(
    stream: PatchStream,
    sample: PatchSample,
    memories: int,
    images: int,
    spec: BankSpec,
    seed: int,
    device: torch.device,
    card: CardSpec,
    listener: Listener,
) -> NDArray[np.float32]:
    """Memories that are means of patches."""
    if spec.method == "kmeans":
        with stage(listener, "k-means", spec.iterations, "iterations") as advance:
            return kmeans_bank(
                sample,
                memories,
                iterations=spec.iterations,
                seed=seed,
                on_iteration=lambda error: advance(1, sq_distance=error),
                device=device,
                card=card,
            )
    with stage(listener, "bank", images, "images") as advance:
        if spec.method == "ema":
            return ema_bank(
                stream,
                memories,
                beta=spec.beta,
                iterations=spec.iterations,
                seed=seed,
                device=device,
                card=card,
                on_image=lambda: advance(1),
            )
        return mean_bank(
            stream,
            memories,
            iterations=spec.iterations,
            seed=seed,
            device=device,
            card=card,
            on_image=lambda: advance(1),
        )

"""Where a model starts: phi_0 from the patches' moments, and the bank under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index.bank import Bank, MemoryBank, PatchSources
from cfa_index.bundle import (
    EXEMPLARS_FILE,
    SOURCES_FILE,
    VECTORS_FILE,
    Content,
    MemorySource,
    ModelBundle,
    Sources,
    exemplars_table,
    index_contents,
    sources_table,
)
from cfa_index.descriptor import PatchDescriptor, initial_descriptor
from cfa_index.events import Listener, ignore, stage
from cfa_index.moments import Moments
from cfa_index.specs import CardSpec, ModelSpec
from cfa_index.store import PatchStore
from cfa_index.workflows.compression import compress_store
from cfa_index.workflows.exemplars import MOST_EXEMPLARS, exemplar_crops, memory_sources
from cfa_index.workflows.extract import image_rows, inspected_cells


@dataclass(frozen=True, kw_only=True)
class Start:
    """A descriptor and its bank, before any training.

    Attributes:
        spec: the settings that they were made with.
        phi_0: on the bank's device.
        bank: frozen.
        owners: (M,) int64, first row in the store of the image that each memory came from.
        sources: of the memories; None where they are written already, in a model.
    """

    spec: ModelSpec
    phi_0: PatchDescriptor
    bank: Bank
    owners: NDArray[np.int64]
    sources: PatchSources | None


def patch_moments(
    store: PatchStore, rows: Sequence[int], *, seed: int, listener: Listener = ignore
) -> Moments:
    """Mean and covariance of the patches of some views."""
    with stage(listener, "covariance", len(rows), store.header.features.view_unit) as advance:
        return store.moments(
            rows,
            cells_of=lambda row: inspected_cells(store, row),
            seed=seed,
            on_image=lambda: advance(1),
        )


def make_start(
    store: PatchStore,
    rows: Sequence[int],
    spec: ModelSpec,
    *,
    moments: Moments | None,
    device: torch.device,
    card: CardSpec = CardSpec(),
    listener: Listener = ignore,
) -> Start:
    """phi_0 and the bank of some images.

    Args:
        store, rows: the views of these images.
        spec: all settings.
        moments: of these images' patches, where phi_0 `needs_moments`.
        device: of the bank, and where it is made.
        card: what it may take of a card.
        listener: told of progress.

    Raises:
        BankError, SpecError: see `compress_store`.
    """
    phi_0 = initial_descriptor(spec.descriptor, store.header.channels, moments, seed=spec.seed).to(device)
    vectors, sources = compress_store(
        store, rows, phi_0, spec.bank, seed=spec.seed, card=card, listener=listener
    )
    spec.check_memories(len(vectors))  # a letterbox's padding was counted before
    bank = MemoryBank(vectors, device, card=card)
    owners = image_rows(store, sources.rows)
    return Start(spec=spec, phi_0=phi_0, bank=bank, owners=owners, sources=sources)


def start_of(bundle: ModelBundle, store: PatchStore, spec: ModelSpec) -> Start:
    """Where a model's training starts: its phi_0 and its bank, under settings that may differ in `train`."""
    owners = owners_of(bundle.sources, store)
    return Start(spec=spec, phi_0=bundle.initial_descriptor, bank=bundle.bank, owners=owners, sources=None)


def owners_of(places: Sequence[MemorySource], store: PatchStore) -> NDArray[np.int64]:
    """(M,) first row in the store of the image that each memory came from."""
    row_of = {store.images[row].uri: row for row in store.images_in(store.good_rows)}
    return Sources.of(places).looked_up(row_of)


def bank_contents(store: PatchStore, start: Start, listener: Listener = ignore) -> dict[str, Content]:
    """A new bank's files: vectors, sources and, where it is small enough, exemplars."""
    assert start.sources is not None, "this bank's files are there already"
    places = memory_sources(store, start.sources)
    contents: dict[str, Content] = {
        VECTORS_FILE: start.bank.vectors,
        SOURCES_FILE: sources_table(places),
    }
    contents |= index_contents(start.bank.index)
    if len(start.bank) <= MOST_EXEMPLARS:
        crops = exemplar_crops(store, start.sources, places, listener)
        contents[EXEMPLARS_FILE] = exemplars_table(crops)
    return contents

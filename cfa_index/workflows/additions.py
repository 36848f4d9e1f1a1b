"""Good images that come to a model after its build: their features, and which patches become memories."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index.bank import PatchSources
from cfa_index.bundle import MemorySource, ModelBundle
from cfa_index.card_memory import card_memory
from cfa_index.compress import full_bank, greedy_k_centre, random_bank, worst_covered
from cfa_index.errors import DatasetError
from cfa_index.events import Listener, Notice, ignore, stage
from cfa_index.files import printable, sha256_of_file
from cfa_index.images import plain_folder
from cfa_index.store import JoinedStore, PatchStore
from cfa_index.workflows.compression import patch_stream
from cfa_index.workflows.exemplars import MOST_EXEMPLARS, exemplar_crops, memory_sources
from cfa_index.workflows.extract import extract, inspected_cells, store_header
from cfa_index.workflows.opening import addition_name, place_of

_POOL_PER_PICK = 8
"""Patches held for each that becomes a memory: those that the bank covers worst."""


@dataclass(frozen=True, kw_only=True)
class NewImages:
    """The features of added images: their store, its common folder, and the checksum of its image table."""

    store: PatchStore
    source: Path
    images_sha256: str


@dataclass(frozen=True, kw_only=True)
class NewMemories:
    """Patches that become memories: vectors (m, D') float32, the place of each, and a small picture of each."""

    vectors: NDArray[np.float32]
    places: Sequence[MemorySource]
    crops: list[bytes]


def new_images(
    given: Sequence[Path],
    bundle: ModelBundle,
    store: JoinedStore,
    *,
    features_dir: Path,
    threads: int,
    listener: Listener = ignore,
) -> NewImages:
    """The features of those of the given images that the model does not have.

    Args:
        given: files and folders.
        bundle: the model; its backbone makes the features.
        store: what it has.
        features_dir: where the new store goes.
        threads: that decode.
        listener: told of progress, and of images that are there already.

    Raises:
        DatasetError: nothing was given, or nothing that is new and can be read.
        StoreError, OutputError: see `extract`.
    """
    files: dict[Path, str] = {}
    known = {store.images[row].sha256: store.images[row].uri for row in store.good_rows}
    folder = Path(store.header.source)
    places = {place_of(folder / store.images[row].uri) for row in store.good_rows}
    for path in given:
        if not path.exists():
            raise DatasetError(
                expected=f"an image or a folder at {path}", got="nothing there", remedy="check the path"
            )
        for file in plain_folder(path) if path.is_dir() else [path]:
            checksum = _checksum(file)
            if place_of(file) in places:
                listener(Notice(message=f"left out: {printable(str(file))} is there already"))
                continue
            if checksum in known:
                listener(
                    Notice(
                        message=f"left out: {printable(str(file))} has the content of {known[checksum]}, which is there"
                    )
                )
                continue
            if checksum:  # without one it cannot be read, which `extract` will say
                known[checksum] = printable(str(file))
            files[place_of(file)] = checksum
    if not files:
        raise DatasetError(
            expected="good images that the model does not have",
            got="none" if given else "no image or folder",
            remedy="give files or folders of new good images",
        )
    images = sorted(files)
    source = Path(os.path.commonpath([image.parent for image in images]))
    features = bundle.manifest.spec.features
    header = store_header(source, features, bundle.backbone)
    stamps = [(printable(image.relative_to(source).as_posix()), files[image]) for image in images]
    path = features_dir / bundle.manifest.category / f"{addition_name(header, stamps)}.zarr"
    extracted = extract(
        images,
        source=source,
        backbone=bundle.backbone,
        features=features,
        path=path,
        device=bundle.bank.device,
        threads=threads,
        listener=listener,
    )
    return NewImages(
        store=extracted,
        source=Path(extracted.header.source),
        images_sha256=sha256_of_file(path / "images.parquet"),
    )


def _checksum(file: Path) -> str:
    """Empty for what cannot be read."""
    try:
        return sha256_of_file(file)
    except OSError:
        return ""


def new_memories(
    store: JoinedStore,
    rows: Sequence[int],
    bundle: ModelBundle,
    *,
    share: float,
    listener: Listener = ignore,
) -> NewMemories:
    """Patches of new images for a bank.

    Args:
        store, rows: the views of the new images; held-out ones are not among them.
        bundle: the model: its phi_0 makes the patches, its bank's method decides which are taken.
        share: memories a view, as the bank has them; `full` takes all patches.
        listener: told of progress.
    """
    spec = bundle.manifest.spec
    device = bundle.bank.device
    stream = patch_stream(store, rows, bundle.initial_descriptor)
    total = sum(len(inspected_cells(store, row)) for row in rows)
    count = min(total, max(1, round(share * len(rows))))
    with (
        card_memory(device, "choosing new memories", lower="give fewer images at a time"),
        stage(listener, "new memories", len(rows), spec.features.view_unit) as advance,
    ):
        if spec.bank.method == "full":
            taken = full_bank(stream, total=total, on_image=lambda: advance(1))
        elif spec.bank.method == "random":
            taken = random_bank(stream, count, total=total, seed=spec.seed, on_image=lambda: advance(1))
        else:
            taken, sq_distances = worst_covered(
                stream,
                bundle.bank.vectors,
                limit=min(total, _POOL_PER_PICK * count),
                device=device,
                card=bundle.bank.card,
                on_image=lambda: advance(1),
            )
            picks = greedy_k_centre(
                torch.from_numpy(taken.features),
                count,
                seed=spec.seed,
                covered=torch.from_numpy(sq_distances),
                device=device,
            )
            taken = type(taken)(
                features=taken.features[picks], rows=taken.rows[picks], cells=taken.cells[picks]
            )
    sources = PatchSources(rows=taken.rows, cells=taken.cells)
    places = memory_sources(store, sources)
    small = len(bundle.bank) + len(places) <= MOST_EXEMPLARS and bool(bundle.exemplars)
    crops = exemplar_crops(store, sources, places, listener) if small else []
    return NewMemories(vectors=taken.features, places=places, crops=crops)

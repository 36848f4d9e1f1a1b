"""The stores behind a model, and which of their images fit it and which set its threshold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cfa_index.bundle import Addition, Manifest
from cfa_index.errors import StoreError
from cfa_index.files import sha256_of_file, sha256_of_json
from cfa_index.specs import ModelSpec
from cfa_index.store import JoinedStore, PatchStore, StoreHeader
from cfa_index.workflows.extract import store_path


def open_store(manifest: Manifest, features_dir: Path) -> JoinedStore:
    """The features that a model was made from: its build's, and those of images that were added since.

    Raises:
        StoreError: a store is missing or damaged, or its images are not those that the model saw.
    """
    header = StoreHeader(
        source=manifest.source,
        features=manifest.spec.features,
        weights_sha256=manifest.weights.sha256,
        channels=manifest.channels,
    )
    path = store_path(features_dir, manifest.category, header)
    parts = [
        _checked(
            path,
            manifest.images_sha256,
            f"generation {manifest.generation} was built from",
            "run build again, then train",
        )
    ]
    for addition in manifest.added:
        path = features_dir / manifest.category / f"{addition.store}.zarr"
        remedy = "run bank rollback to a generation before, then bank add again"
        try:
            parts.append(_checked(path, addition.images_sha256, "were added to the model", remedy))
        except StoreError as error:  # the store itself advises a build, which would not bring it back
            raise StoreError(expected=error.expected, got=error.got, remedy=remedy) from error
    return JoinedStore(parts, [manifest.removed, *(addition.removed for addition in manifest.added)])


def fit_and_held(store: JoinedStore, spec: ModelSpec) -> tuple[list[int], list[int]]:
    """Rows for bank and training, and rows for the threshold, both sorted.

    A share of each part is held out, of the build's images and of every later addition, drawn by the seed
    from all of the part. So no image changes sides when others come or go.
    """
    fit: list[int] = []
    held: list[int] = []
    for group in store.groups:
        for rows, kept in zip(split_rows(store, group, spec), (fit, held), strict=True):
            kept += [row for row in rows if store.is_kept(row)]
    return fit, held


def split_rows(store: PatchStore, rows: Sequence[int], spec: ModelSpec) -> tuple[list[int], list[int]]:
    """Rows for bank and training and rows for the threshold, see `split_held_out`; an image's tiles stay together."""
    fit, held = split_held_out(store.images_in(rows), spec.held_out, spec.seed)
    return store.views_of(fit), store.views_of(held)


def judging_rows(store: JoinedStore, held_rows: Sequence[int], manifest: Manifest) -> list[int]:
    """Those of the held-out rows that set the threshold: they had no say in a choice of `train`, nor ever will."""
    judges = set(manifest.held_out.uris)
    return [row for row in held_rows if store.images[row].uri in judges]


def split_held_out(rows: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Images for bank and training, and images for the threshold: a random `share`, sorted.

    A single image is never held out: a bank needs it more than the threshold does.
    """
    count = min(int(len(rows) * share), len(rows) - 1)
    shuffled = np.random.default_rng(seed).permutation(np.asarray(rows))
    return sorted(shuffled[count:].tolist()), sorted(shuffled[:count].tolist())


def averaged(additions: Sequence[Addition]) -> tuple[Addition, ...]:
    """Additions whose images a new bank was made of, like those of the build."""
    return tuple(replace(addition, averaged=True) for addition in additions)


def place_of(file: Path) -> Path:
    """A file's absolute path, links to folders followed: a model knows an image by its own name there."""
    return Path(os.path.realpath(file.parent)) / file.name


def addition_name(header: StoreHeader, images: Sequence[tuple[str, str]]) -> str:
    """Name of the store of added images; it covers their uris and checksums too: two additions of one folder differ."""
    return f"added-{sha256_of_json([header.to_dict(), [list(image) for image in images]])[:16]}"


def _checked(path: Path, images_sha256: str, which: str, remedy: str) -> PatchStore:
    store = PatchStore.open(path)
    if sha256_of_file(path / "images.parquet") != images_sha256:
        raise StoreError(
            expected=f"the images that {which}",
            got=f"a store at {path} that was filled again since",
            remedy=remedy,
        )
    return store

"""What a study measures on: a category's good images and its test split, each with its features in a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from cfa_index.backbones import Backbone
from cfa_index.errors import DatasetError, StoreError
from cfa_index.events import Listener, Notice
from cfa_index.files import printable, sha256_of_file, sha256_of_json
from cfa_index.images import Category, TestImage
from cfa_index.specs import ModelSpec
from cfa_index.store import PatchStore
from cfa_index.workflows.extract import extract, store_header, store_path
from cfa_index.workflows.labelled import why_unmasked
from cfa_index.workflows.opening import split_rows

TIMED_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class StudyImages:
    """The images of a study, as a build splits them.

    Attributes:
        store: of the good images; `fit_rows` make the banks, `held_rows` tune the indexes.
        test_store: of the test split; None without one.
        test: its images, in the order of its rows.
        unmasked: why there is no pixel AUROC; empty when there is one.
        identity: digest of images, masks, features and weights.
    """

    store: PatchStore
    fit_rows: list[int]
    held_rows: list[int]
    test_store: PatchStore | None
    test: Sequence[TestImage]
    unmasked: str
    identity: str

    @cached_property
    def test_of(self) -> dict[int, TestImage]:
        """The images of the test split by their first rows in its store."""
        if self.test_store is None:
            return {}
        return dict(zip(self.test_store.images_in(range(len(self.test_store))), self.test, strict=True))

    @property
    def unseen(self) -> tuple[PatchStore, list[int], str]:
        """Where recall and time are measured, and what a person calls it: good images outside the banks.

        Not defects: their patches are far from all memories, and which of these is the nearest says little.
        Those of the test split, else those held out, else, where there are none, those in the banks.
        """
        if self.test_store is not None:
            good = [
                row
                for row in self.test_store.images_in(self.test_store.good_rows)
                if not self.test_of[row].is_defect
            ]
            if good:
                return self.test_store, self.test_store.views_of(good), "good test images"
        if self.held_rows:
            return self.store, self.held_rows, "held-out good images"
        return self.store, self.fit_rows, "good images that are in the banks"

    @property
    def rejected(self) -> int:
        """Images of both splits that could not be read."""
        stores = [self.store, *([self.test_store] if self.test_store else [])]
        return sum(store.rejected for store in stores)

    @property
    def timed(self) -> tuple[PatchStore, list[int]]:
        """Some of the unseen images, or of their tiles, evenly spaced."""
        store, rows, _ = self.unseen
        return store, rows[:: -(-len(rows) // TIMED_IMAGES)]


def split_of(category: Category) -> list[TestImage]:
    """The test split of a category; empty where it has none."""
    try:
        return category.test()
    except DatasetError:
        return []


def extract_images(
    category: Category,
    spec: ModelSpec,
    *,
    backbone: Backbone,
    features_dir: Path,
    device: torch.device,
    threads: int,
    listener: Listener,
) -> StudyImages:
    """Both splits through the backbone, as far as their features are not in the stores yet.

    Raises:
        DatasetError: no good image, or of one of the splits none can be read.
        StoreError, OutputError: see `extract`.
    """
    test = split_of(category)
    if not test:
        listener(Notice(message=f"{printable(category.name)} has no test split: there is no AUROC"))
    stores = [
        extract(
            images,
            source=source,
            backbone=backbone,
            features=spec.features,
            path=store_path(features_dir, category.name, store_header(source, spec.features, backbone)),
            device=device,
            threads=threads,
            listener=listener,
        )
        for source, images in _sources(category, test)
    ]
    return _images(stores, test, spec)


def stored_images(
    category: Category, spec: ModelSpec, *, backbone: Backbone, features_dir: Path
) -> StudyImages | None:
    """The images whose features are in finished stores already; None where some are missing."""
    test = split_of(category)
    stores = []
    for source, images in _sources(category, test):
        try:
            store = PatchStore.open(
                store_path(features_dir, category.name, store_header(source, spec.features, backbone))
            )
        except StoreError:
            return None
        uris = [printable(image.relative_to(source).as_posix()) for image in images]
        if uris != [store.images[row].uri for row in store.images_in(range(len(store)))]:
            return None
        stores.append(store)
    return _images(stores, test, spec)


def _sources(category: Category, test: Sequence[TestImage]) -> list[tuple[Path, list[Path]]]:
    """The folder and the images of each store; a build uses the first one too."""
    sources = [(category.folder, category.train_good())]
    if test:
        sources.append((category.folder / "test", [image.path for image in test]))
    return sources


def _images(stores: Sequence[PatchStore], test: Sequence[TestImage], spec: ModelSpec) -> StudyImages:
    fit_rows, held_rows = split_rows(stores[0], stores[0].good_rows, spec)
    masks = [sha256_of_file(image.mask) if image.mask else "" for image in test]
    seen = [
        {
            "header": store.header.to_dict(),
            "images": [
                [store.images[row].uri, store.images[row].sha256]
                for row in store.images_in(range(len(store)))
            ],
        }
        for store in stores
    ]
    return StudyImages(
        store=stores[0],
        fit_rows=fit_rows,
        held_rows=held_rows,
        test_store=stores[1] if test else None,
        test=test,
        unmasked=why_unmasked(test),
        identity=sha256_of_json([*seen, masks]),
    )

"""Banks and queries of real features for `benchmarks.search` and `benchmarks.bank_size`: the ELPV solar cells."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index import (
    BankSpec,
    DescriptorSpec,
    FeatureSpec,
    PatchDescriptor,
    PatchStore,
    compress_store,
    extract,
    initial_descriptor,
    load_backbone,
    patch_moments,
    patch_stream,
    split_cells,
)

PAPER = FeatureSpec(backbone="wide_resnet50_2", strides=(4, 8, 16))
LARGE = FeatureSpec(backbone="efficientnet_lite0", strides=(4, 8, 16))
LARGEST_LARGE = 3_000_000
"""Memories that the good cells of both types give."""
_SPARE = 1.05
"""Images beyond those that a bank needs, so that not every patch of an image is in it."""


@dataclass(frozen=True, kw_only=True)
class SearchCase:
    """A bank and three sets of queries from images that are not in it.

    Attributes:
        vectors: (M, D') float32.
        tuning: (n, D') float32 of good images, for nprobe, efSearch and the shortlist.
        good: of other good images.
        defective: of defective images.
        patches_per_image: h * w.
    """

    vectors: NDArray[np.float32]
    tuning: NDArray[np.float32]
    good: NDArray[np.float32]
    defective: NDArray[np.float32]
    patches_per_image: int


def paper_case(folder: Path, *, size_px: int, images: int, seed: int) -> SearchCase:
    """The paper's bank: position means of WRN50-2's features under a random phi, gamma 1 (3,136 x 1,792 at 224 px)."""
    features = replace(PAPER, size_px=size_px)
    store, parts = _store(folder / "paper.zarr", features, (images, 2, 2, 2), seed, weights="random")
    phi = initial_descriptor(
        DescriptorSpec(init="he", standardise=False), store.header.channels, None, seed=seed
    )
    spec = BankSpec(method="mean", size=None, iterations=2)
    vectors, _ = compress_store(store, parts[0], phi, spec, seed=seed)
    queries = [_patches(store, rows, phi) for rows in parts[1:]]
    return SearchCase(
        vectors=vectors,
        tuning=queries[0],
        good=queries[1],
        defective=queries[2],
        patches_per_image=features.patches_per_image,
    )


def large_case(
    folder: Path, *, memories: int, queries: int, seed: int, init: Literal["whiten", "identity"] = "whiten"
) -> SearchCase:
    """Random patches of good cells of both types under EfficientNet-Lite0 at strides 4, 8, 16.

    Args:
        init: of the descriptor; `whiten` as by default, `identity` for standardised features as they are.
    """
    patches = LARGE.patches_per_image
    bank_images = max(2, int(np.ceil(_SPARE * memories / patches)))
    store, parts = _store(folder / "large.zarr", LARGE, (bank_images, 12, 12, 12), seed, weights=None)
    phi = initial_descriptor(
        DescriptorSpec(init=init),
        store.header.channels,
        patch_moments(store, parts[0][:100], seed=seed),
        seed=seed,
    )
    each = -(-queries // 12)
    sets = [_patches(store, rows, phi, each=each, seed=seed) for rows in parts[1:]]
    vectors = _patches(store, parts[0], phi, each=-(-memories // bank_images), seed=seed)[:memories]
    return SearchCase(
        vectors=vectors, tuning=sets[0], good=sets[1], defective=sets[2], patches_per_image=patches
    )


def _store(
    path: Path,
    features: FeatureSpec,
    counts: tuple[int, int, int, int],
    seed: int,
    *,
    weights: Literal["random"] | None,
) -> tuple[PatchStore, list[list[int]]]:
    """A store of ELPV cells, and the rows of the bank's, the tuning, the good and the defective images."""
    cells = [split_cells("mono"), split_cells("poly")]
    draw = random.Random(seed)
    good = [file for split in cells for file in split.train_good]
    defective = [file for split in cells for file in split.test_defect]
    draw.shuffle(good)
    draw.shuffle(defective)
    most = sum(counts[:3])
    if most > len(good):
        raise ValueError(f"expected at most {len(good)} good images, got {most}: ask for a smaller bank")
    files = [*good[:most], *defective[: counts[3]]]
    backbone = load_backbone(
        features.backbone, features.strides, size_px=features.size_px, weights=weights, seed=seed
    )
    store = extract(
        files,
        source=files[0].parent,
        backbone=backbone,
        features=features,
        path=path,
        device=torch.device("cpu"),
    )
    row_of = {image.uri: row for row, image in enumerate(store.images)}
    rows = [row_of[file.name] for file in files]
    ends = np.cumsum(counts).tolist()
    return store, [rows[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _patches(
    store: PatchStore, rows: Sequence[int], phi: PatchDescriptor, *, each: int | None = None, seed: int = 0
) -> NDArray[np.float32]:
    """Adapted patches (n, D') of some images, `each` an image at random or all."""
    draw = np.random.default_rng(seed)
    width, per_image = phi.folded().width, store.header.features.patches_per_image
    taken = per_image if each is None else min(each, per_image)
    found = np.empty((len(rows) * taken, width), dtype=np.float32)
    for number, (_, _, patches) in enumerate(patch_stream(store, sorted(rows), phi)()):
        chosen = np.arange(per_image) if each is None else np.sort(draw.permutation(per_image)[:taken])
        found[number * taken : (number + 1) * taken] = patches[chosen]
    return found

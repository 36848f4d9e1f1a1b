"""The index under a bank, tuned on patches of good images that the bank has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index.bank import Bank, IndexChoice, Truth, make_index, tune
from cfa_index.descriptor import PatchDescriptor
from cfa_index.events import Listener, Notice, ignore, stage
from cfa_index.specs import ModelSpec
from cfa_index.store import PatchStore
from cfa_index.workflows.extract import READ_IMAGES, inspected_cells, iterate_pyramids
from cfa_index.workflows.start import Start

_MOST_QUERIES, _LEAST_QUERIES = 8192, 512
_MOST_PRODUCTS = 2e12
"""Multiplications that the true neighbours of all queries may cost: some 20 s on two cores."""
_QUERY_IMAGES = 32


def index_bank(
    start: Start,
    store: PatchStore,
    *,
    held_rows: Sequence[int],
    fit_rows: Sequence[int],
    phi: PatchDescriptor | None = None,
    listener: Listener = ignore,
) -> tuple[Start, IndexChoice | None]:
    """A start whose bank has the index that its settings ask for; None beside it for plain Flat.

    Args:
        start: phi_0 and a bank under Flat.
        store: of the images.
        held_rows: images whose patches tune it; where there are none, `fit_rows` do, and a notice says so.
        fit_rows: the images in the bank.
        phi: what the queries are seen by; None for phi_0.
        listener: told of progress.

    Raises:
        BankError: FAISS cannot make the index, or nothing keeps within the budgets.
    """
    spec = start.spec
    if spec.index.factory.lower() == "flat":
        return start, None
    if not held_rows:
        listener(Notice(message="no images are held out: the index is tuned on patches that are in the bank"))
    choice = make_index(
        start.bank.vectors,
        spec.index,
        query_patches(
            store,
            held_rows or fit_rows,
            (phi or start.phi_0).folded().cpu(),
            most=query_count(start.bank.vectors.shape),
            seed=spec.seed,
        ),
        k=spec.score.neighbors,
        patches_per_image=spec.features.patches_per_image,
        seed=spec.seed,
        scratch_dir=store.path.parent,
        flat=start.bank,
        listener=listener,
    )
    bank = start.bank if choice.index is None else start.bank.with_index(choice.index)
    return replace(start, bank=bank), choice


def remeasure_index(
    start: Start,
    phi: PatchDescriptor,
    store: PatchStore,
    *,
    rows: Sequence[int],
    listener: Listener = ignore,
) -> None:
    """Measure a bank's index again under another phi, and tune it again where it no longer finds enough.

    Args:
        start: its bank's index takes the new state.
        phi: the new descriptor.
        store, rows: images whose patches are asked for.
        listener: told of progress.
    """
    index = start.bank.index
    if index is None:
        return
    spec: ModelSpec = start.spec
    with stage(listener, "tuning", None, "searches"):
        truth = truth_of(start.bank, spec, store, rows, phi, k=spec.score.neighbors).where(index)
        truth.measure(index)
        if index.state.recall_at_1 < spec.index.min_recall:
            reached = tune(index, truth, spec.index.min_recall)
            truth.measure(index)
            if not reached:
                listener(
                    Notice(
                        message=f"{index.state.describe()}: recall@1 of {index.state.recall_at_1:.4f} after training, "
                        f"{spec.index.min_recall:g} were asked for"
                    )
                )


def truth_of(
    bank: Bank,
    spec: ModelSpec,
    store: PatchStore,
    rows: Sequence[int],
    phi: PatchDescriptor,
    *,
    k: int,
) -> Truth:
    """Patches of some images under phi and their true neighbours in a bank, on its device; K is `k`."""
    most = query_count(bank.vectors.shape)
    queries = query_patches(store, rows, phi.folded().cpu(), most=most, seed=spec.seed)
    patches = spec.features.patches_per_image
    return Truth(bank.vectors, queries, k=k, patches_per_image=patches, flat=bank)


def query_count(shape: tuple[int, ...]) -> int:
    """How many queries to measure an index over (M, D') vectors with."""
    return int(np.clip(_MOST_PRODUCTS / (shape[0] * shape[1]), _LEAST_QUERIES, _MOST_QUERIES))


def query_patches(
    store: PatchStore, rows: Sequence[int], phi: PatchDescriptor, *, most: int, seed: int
) -> NDArray[np.float32]:
    """Patches drawn from some images: float32 (n, D'), n at most `most`, image after image.

    Args:
        store, rows: the images; at most `_QUERY_IMAGES` of them are read.
        phi: folded, on the CPU.
        most: n where the images have as many.
        seed: of the draw.
    """
    draw = np.random.default_rng(seed)
    picked = draw.permutation(np.asarray(rows))[:_QUERY_IMAGES].tolist()
    found = []
    for part, levels in iterate_pyramids(store, picked, READ_IMAGES):
        with torch.inference_mode():
            patches = phi(levels).numpy()
        for row, grid in zip(part, patches, strict=True):
            cells = draw.permutation(inspected_cells(store, row))[: -(-most // len(picked))]
            found.append(grid[np.sort(cells)])
    return np.concatenate(found)[:most]

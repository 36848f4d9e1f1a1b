"""The generation of a model whose bank has changed: its index, baseline and threshold, and its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cfa_index.bank import Bank, IndexTrial, SearchIndex, changed_faiss, read_faiss
from cfa_index.bundle import (
    BACKBONE_FILE,
    BASELINE_FILE,
    DESCRIPTOR_FILE,
    EXEMPLARS_FILE,
    INDEX_FILE,
    LISTS_FILE,
    SOURCES_FILE,
    TRAIN_LOG_FILE,
    VECTORS_FILE,
    Content,
    Manifest,
    MemorySource,
    ModelBundle,
    changed_files,
    exemplars_table,
    generation_names,
    index_contents,
    read_manifest,
    sources_table,
    write_generation,
)
from cfa_index.errors import BundleError
from cfa_index.events import Listener, ignore
from cfa_index.files import sha256_of_npy
from cfa_index.store import JoinedStore
from cfa_index.workflows.build import fit, timestamp, versions
from cfa_index.workflows.calibrate import calibrated_scorer, score_held_out, with_scores
from cfa_index.workflows.exemplars import MOST_EXEMPLARS
from cfa_index.workflows.indexing import remeasure_index
from cfa_index.workflows.opening import averaged, fit_and_held, judging_rows
from cfa_index.workflows.start import Start, owners_of

_KEPT_FILES = (BACKBONE_FILE, DESCRIPTOR_FILE, TRAIN_LOG_FILE)


@dataclass(frozen=True, kw_only=True)
class LivingReport:
    """What a change of a bank made.

    Attributes:
        path, manifest: of the new generation.
        images: uris that came or went.
        memories_before, memories: M before and after.
        threshold_before: of the generation before; None where it had none.
        rejected: images that could not be read.
        trials: the indexes that were tried.
    """

    path: Path
    manifest: Manifest
    images: tuple[str, ...]
    memories_before: int
    memories: int
    threshold_before: float | None
    rejected: int = 0
    trials: tuple[IndexTrial, ...] = ()


def write_change(
    folder: Path,
    bundle: ModelBundle,
    store: JoinedStore,
    manifest: Manifest,
    bank: Bank,
    *,
    places: Sequence[MemorySource],
    crops: Sequence[bytes],
    images: tuple[str, ...] = (),
    rejected: int = 0,
    measured: bool = False,
    trials: tuple[IndexTrial, ...] = (),
    listener: Listener = ignore,
) -> LivingReport:
    """Calibrate a changed bank under the model's phi and write its generation.

    Args:
        folder: <models>/<category>, whose lock is held.
        bundle: the generation before.
        store: with the images as they are now.
        manifest: with action, additions and removals as they are now, and the threshold's images in `held_out`.
        bank: as it is now.
        places, crops: source and picture of each memory; no crops for a large bank.
        images, rejected, trials: for the report.
        measured: the index's state is that of this bank and phi already.
        listener: told of progress.
    """
    fit_rows, held_rows = fit_and_held(store, manifest.spec)
    start = Start(
        spec=manifest.spec,
        phi_0=bundle.initial_descriptor,
        bank=bank,
        owners=owners_of(places, store),
        sources=None,
    )
    if not measured:
        remeasure_index(start, bundle.descriptor, store, rows=held_rows or fit_rows, listener=listener)
    scorer = calibrated_scorer(
        bundle.backbone, bundle.descriptor, start, store=store, rows=fit_rows, listener=listener
    )
    held_out = score_held_out(scorer, store, judging_rows(store, held_rows, manifest), listener)
    manifest = replace(
        with_scores(manifest, held_out),
        parent=bundle.manifest.generation,
        created=timestamp(),
        images=len(store.images_in([*fit_rows, *held_rows])),
        index=bank.index.state if bank.index else None,
        versions=versions(),
    )
    contents: dict[str, Content] = {
        name: bundle.path / name for name in _KEPT_FILES if name in bundle.manifest.files
    }
    contents |= {VECTORS_FILE: bank.vectors, SOURCES_FILE: sources_table(places)}
    if len(crops) == len(bank) <= MOST_EXEMPLARS:
        contents[EXEMPLARS_FILE] = exemplars_table(crops)
    contents |= index_contents(bank.index)
    if scorer.baseline is not None:
        contents[BASELINE_FILE] = scorer.baseline.cpu().numpy()
    path, manifest = write_generation(folder, manifest, contents)
    return LivingReport(
        path=path,
        manifest=manifest,
        images=images,
        memories_before=len(bundle.bank),
        memories=len(bank),
        threshold_before=bundle.threshold,
        rejected=rejected,
        trials=trials,
    )


def write_rebuild(
    folder: Path,
    bundle: ModelBundle,
    store: JoinedStore,
    manifest: Manifest,
    *,
    images: tuple[str, ...],
    listener: Listener = ignore,
) -> LivingReport:
    """Fit everything again from the stored features: phi_0, bank, index, baseline, threshold.

    Arguments are those of `write_change`.
    """
    fit_rows, held_rows = fit_and_held(store, manifest.spec)
    held_rows = judging_rows(store, held_rows, manifest)
    fitted = fit(
        bundle.backbone,
        store,
        manifest.spec,
        fit_rows=fit_rows,
        held_rows=held_rows,
        device=bundle.bank.device,
        card=bundle.bank.card,
        listener=listener,
    )
    contents, bank = dict(fitted.contents), fitted.start.bank
    if BACKBONE_FILE in bundle.manifest.files:
        contents[BACKBONE_FILE] = bundle.path / BACKBONE_FILE
    manifest = replace(
        with_scores(manifest, fitted.held_out),
        parent=bundle.manifest.generation,
        action="rebuild",
        created=timestamp(),
        images=len(store.images_in([*fit_rows, *held_rows])),
        radius=0.0,
        added=averaged(manifest.added),
        index=bank.index.state if bank.index else None,
        versions=versions(),
    )
    path, manifest = write_generation(folder, manifest, contents)
    return LivingReport(
        path=path,
        manifest=manifest,
        images=images,
        memories_before=len(bundle.bank),
        memories=len(bank),
        threshold_before=bundle.threshold,
        trials=fitted.trials,
    )


def grown_index(bundle: ModelBundle, vectors: NDArray[np.float32]) -> SearchIndex | None:
    """The model's index with the vectors that were appended to its own; None under Flat."""
    if bundle.manifest.index is None:
        return None
    return changed_faiss(
        bundle.path / INDEX_FILE,
        bundle.manifest.index,
        vectors,
        kept=len(bundle.bank),
        seed=bundle.manifest.spec.seed,
    )


def shrunk_index(
    folder: Path, bundle: ModelBundle, vectors: NDArray[np.float32]
) -> tuple[SearchIndex | None, bool]:
    """The model's index over fewer vectors, and whether its state is right for them; None under Flat.

    Where an earlier generation had these very vectors under this very phi and these settings of the index, its
    index and state are right as they are, so that its scores come back whatever the kind of index. Else the
    model's own index is filled again, to be measured.
    """
    manifest = bundle.manifest
    if manifest.index is None:
        return None, True
    checksum = sha256_of_npy(vectors)
    for name in generation_names(folder):
        path = folder / "generations" / name
        try:
            earlier = read_manifest(path)
        except BundleError:  # a damaged one lends nothing
            continue
        same = earlier.files.get(VECTORS_FILE) == checksum and earlier.spec.index == manifest.spec.index
        same = same and earlier.files[DESCRIPTOR_FILE] == manifest.files[DESCRIPTOR_FILE]
        if same and earlier.index and _are_whole(path, earlier):
            return read_faiss(path / INDEX_FILE, earlier.index, vectors.shape), True
    index = changed_faiss(bundle.path / INDEX_FILE, manifest.index, vectors, kept=0, seed=manifest.spec.seed)
    return index, False


def _are_whole(path: Path, manifest: Manifest) -> bool:
    """Whether a generation's index is there, as it was written."""
    names = [name for name in (INDEX_FILE, LISTS_FILE) if name in manifest.files]
    files = {name: manifest.files[name] for name in names}
    return INDEX_FILE in files and not any(wrong for _, wrong in changed_files(path, files))

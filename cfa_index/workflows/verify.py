"""Is a model on disk what it says? Checksums, the index against the vectors, sources against memories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cfa_index.bank import MemoryBank, read_faiss, shared_threads
from cfa_index.bundle import (
    EXEMPLARS_FILE,
    INDEX_FILE,
    SOURCES_FILE,
    VECTORS_FILE,
    Manifest,
    changed_files,
    check_model,
    current_generation,
    generation_folder,
    generation_names,
    load_array,
    load_descriptor,
    read_exemplars,
    read_manifest,
    read_sources,
)
from cfa_index.errors import CfaIndexError, StoreError
from cfa_index.events import Listener, Notice, ignore, stage
from cfa_index.workflows.indexing import truth_of
from cfa_index.workflows.opening import fit_and_held, judging_rows, open_store

_SAMPLE = 512
"""Memories that are looked up."""
_LOST_RECALL = 0.02
"""Another machine rounds differently, and other held-out images may have measured it."""
_SLACK = 0.05
"""Memories that may be missed beyond what the recall in the manifest says: it is that of patches."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it should be: in which generation (empty: the pointer), and what."""

    generation: str
    message: str


@shared_threads()
def verify(
    models_dir: Path,
    category: str,
    *,
    generation: str | None = None,
    features_dir: Path | None = None,
    listener: Listener = ignore,
) -> tuple[Finding, ...]:
    """Look for damage in a model; nothing is changed.

    Every file is compared with its checksum. Some memories are then looked up in the index: they have to find
    themselves, at distance zero, about as often as the manifest says. Where the features of the images are
    there, too, the recall is measured again on the patches that it was measured on.

    Args:
        models_dir, category: where the model is.
        generation: which one; None for all of them and the pointer to the one in use.
        features_dir: where the stores may be.
        listener: told of progress, and of a recall that cannot be measured.

    Returns:
        What was found; nothing where all is well.

    Raises:
        BundleError: there is no model or no such generation.
    """
    folder = models_dir / category
    check_model(folder)
    findings = []
    names = generation_names(folder) if generation is None else [generation_folder(folder, generation).name]
    if generation is None:
        try:
            current_generation(folder)
        except CfaIndexError as error:
            findings.append(Finding(generation="", message=str(error)))
    manifests = {}
    for name in names:
        try:
            manifests[name] = read_manifest(folder / "generations" / name)
        except CfaIndexError as error:
            findings.append(Finding(generation=name, message=str(error)))
    total = sum(len(manifest.files) for manifest in manifests.values())
    with stage(listener, "verify", total, "files") as advance:
        for name, manifest in manifests.items():
            path = folder / "generations" / name
            messages = []
            for file, wrong in changed_files(path, manifest.files):
                messages += [f"{file} {wrong}"] if wrong else []
                advance(1)
            try:
                if not messages:
                    messages = [
                        *damage_of(path, manifest),
                        *_lost_recall(path, manifest, features_dir, listener),
                    ]
            except CfaIndexError as error:
                messages.append(str(error))
            findings += [Finding(generation=name, message=message) for message in messages]
    return tuple(findings)


def damage_of(path: Path, manifest: Manifest) -> Iterator[str]:
    """What a generation whose files are as they were written says against itself.

    Raises:
        CfaIndexError: of a file that is not what its name says.
    """
    if manifest.generation != path.name:
        yield f"its manifest is that of generation {manifest.generation}"
    vectors = load_array(path / VECTORS_FILE)
    sources = len(read_sources(path / SOURCES_FILE))
    if sources != len(vectors):
        yield f"{SOURCES_FILE} has {sources} rows for {len(vectors)} memories"
    if EXEMPLARS_FILE in manifest.files:
        pictures = len(read_exemplars(path / EXEMPLARS_FILE))
        if pictures != len(vectors):
            yield f"{EXEMPLARS_FILE} has {pictures} rows for {len(vectors)} memories"
    state = manifest.index
    if state is None:
        return
    index = read_faiss(path / INDEX_FILE, state, vectors.shape)
    bank = MemoryBank(vectors, torch.device("cpu"), index)
    rows = np.sort(
        np.random.default_rng(0).choice(len(vectors), size=min(_SAMPLE, len(vectors)), replace=False)
    )
    memories = torch.from_numpy(np.ascontiguousarray(vectors[rows]))
    lost = int((bank.search(memories, 1).sq_distances[:, 0] > 0).sum())
    if lost > len(rows) * (1 - state.recall_at_1 + _SLACK):
        yield f"{lost} of {len(rows)} memories do not find themselves in {INDEX_FILE}"


def _lost_recall(
    path: Path, manifest: Manifest, features_dir: Path | None, listener: Listener
) -> Iterator[str]:
    """Whether the index still finds what it found when it was tuned."""
    state, spec = manifest.index, manifest.spec
    if state is None or features_dir is None:
        return
    try:
        store = open_store(manifest, features_dir)
    except StoreError as error:
        listener(Notice(message=f"generation {path.name}: its recall is not measured: {error}"))
        return
    fit_rows, held_rows = fit_and_held(store, spec)
    rows = judging_rows(store, held_rows, manifest) or fit_rows
    vectors = load_array(path / VECTORS_FILE)
    index = read_faiss(path / INDEX_FILE, state, vectors.shape)
    bank = MemoryBank(vectors, torch.device("cpu"))
    truth_of(bank, spec, store, rows, load_descriptor(path, manifest), k=state.k).measure(index)
    reached = index.state.recall_at_1
    if reached < state.recall_at_1 - _LOST_RECALL:
        yield f"recall@1 is {reached:.4f}, the manifest says {state.recall_at_1:.4f}"

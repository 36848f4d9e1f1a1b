"""Is a model on disk what it says? Checksums, the index against the vectors, sources against memories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cfa_index.bank import MemoryBank, read_faiss, shared_threads
from cfa_index.bundle import (
    INDEX_FILE,
    SOURCES_FILE,
    VECTORS_FILE,
    Manifest,
    current_generation,
    generation_folder,
    generation_names,
    load_array,
    read_manifest,
    read_sources,
)
from cfa_index.errors import CfaIndexError
from cfa_index.events import Listener, ignore, stage
from cfa_index.files import sha256_of_file

_SAMPLE = 512
"""Memories that are looked up."""
_SLACK = 0.05
"""Memories that may be missed beyond what the recall in the manifest says: it is that of patches."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it should be: in which generation (empty: the pointer), and what."""

    generation: str
    message: str


@shared_threads()
def verify(
    models_dir: Path, category: str, *, generation: str | None = None, listener: Listener = ignore
) -> tuple[Finding, ...]:
    """Look for damage in a model; nothing is changed.

    Every file is compared with its checksum. Some memories are then looked up in the index: they have to find
    themselves, at distance zero, about as often as the manifest says.

    Args:
        models_dir, category: where the model is.
        generation: which one; None for all of them and the pointer to the one in use.
        listener: told of progress.

    Returns:
        What was found; nothing where all is well.

    Raises:
        BundleError: there is no model or no such generation.
    """
    folder = models_dir / category
    if not generation_names(folder):
        current_generation(folder)  # says that there is no model
    findings = []
    names = generation_names(folder) if generation is None else [generation]
    if generation is None:
        try:
            current_generation(folder)
        except CfaIndexError as error:
            findings.append(Finding(generation="", message=str(error)))
    with stage(listener, "verify", len(names), "generations") as advance:
        for name in names:
            path = generation_folder(folder, name)
            try:
                manifest = read_manifest(path)
                messages = list(_damage(path, manifest))
            except CfaIndexError as error:
                messages = [str(error)]
            findings += [Finding(generation=name, message=message) for message in messages]
            advance(1)
    return tuple(findings)


def _damage(path: Path, manifest: Manifest) -> Iterator[str]:
    whole = True
    for name, checksum in manifest.files.items():
        file = path / name
        if Path(name).name != name or not file.exists():
            yield f"{name} is missing"
            whole = False
        elif sha256_of_file(file) != checksum:
            yield f"{name} differs from its checksum"
            whole = False
    if not whole:
        return
    vectors = load_array(path / VECTORS_FILE)
    sources = len(read_sources(path / SOURCES_FILE))
    if sources != len(vectors):
        yield f"{SOURCES_FILE} has {sources} rows for {len(vectors)} memories"
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

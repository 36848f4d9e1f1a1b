"""A bank that lives: good images come, bad ones that slipped in go, the index changes.

Each change makes a generation and calibrates anew; whoever reads the one before is not disturbed.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cfa_index.bank import MemoryBank, shared_threads
from cfa_index.bundle import (
    Addition,
    Manifest,
    ModelBundle,
    category_lock,
    current_generation,
    generation_folder,
    read_manifest,
    set_current,
)
from cfa_index.errors import BankError, BundleError
from cfa_index.events import Listener, ignore
from cfa_index.specs import IndexSpec
from cfa_index.store import JoinedStore
from cfa_index.workflows.additions import new_images, new_memories
from cfa_index.workflows.changes import (
    LivingReport,
    grown_index,
    shrunk_index,
    write_change,
    write_rebuild,
)
from cfa_index.workflows.indexing import index_bank
from cfa_index.workflows.opening import fit_and_held, open_store
from cfa_index.workflows.start import start_of

_SHOWN = 3
AVERAGES = ("hybrid", "ema", "mean", "kmeans")
"""Methods whose memories are means over images, so that no image can be taken out of them."""


@shared_threads()
def add_images(
    models_dir: Path,
    category: str,
    images: Sequence[Path],
    *,
    features_dir: Path,
    device: str = "cpu",
    weights: Path | None = None,
    threads: int = 2,
    listener: Listener = ignore,
) -> LivingReport:
    """Add good images to a model's bank.

    As many of their patches become memories as keep the bank's density: all of them in a `full` bank, some at
    random in a `random` one, otherwise those that the bank covers worst, farthest first. The model's share
    of the new images is held out for the threshold, too. phi stays; `train` adapts it to the new images.

    Args:
        models_dir, category: where the model is.
        images: files, and folders with all that is in them.
        features_dir: where `build` left the store, and where that of the new images goes.
        device, weights: see `ModelBundle.load`.
        threads: that decode.
        listener: told of progress, and of images that are there already.

    Raises:
        DatasetError: no image, or none that is new and can be read.
        StoreError: the features of the model's images are missing.
        BundleError: there is no model, it is damaged, or another process writes it.
    """
    with category_lock(models_dir / category):
        bundle = ModelBundle.load(models_dir / category, device=device, weights=weights)
        store = open_store(bundle.manifest, features_dir)
        new = new_images(images, bundle, store, features_dir=features_dir, threads=threads, listener=listener)
        addition = Addition(
            source=str(new.source), store=new.store.path.stem, images_sha256=new.images_sha256
        )
        manifest = replace(bundle.manifest, added=(*bundle.manifest.added, addition))
        grown = open_store(manifest, features_dir)
        before, _ = fit_and_held(store, manifest.spec)
        fit_rows, held_rows = fit_and_held(grown, manifest.spec)
        coming = sorted(set(fit_rows) - set(before))
        memories = new_memories(
            grown, coming, bundle, share=len(bundle.bank) / len(before), listener=listener
        )
        vectors = np.concatenate([bundle.bank.vectors, memories.vectors])
        came = {*fit_rows, *held_rows} - set(store.good_rows)
        return write_change(
            models_dir / category,
            bundle,
            grown,
            replace(manifest, action="add"),
            MemoryBank(vectors, bundle.bank.device, grown_index(bundle, vectors)),
            places=[*bundle.sources, *memories.places],
            crops=[*bundle.exemplars, *memories.crops],
            images=tuple(grown.images[row].uri for row in sorted(came)),
            rejected=len(new.store) - len(new.store.good_rows),
            listener=listener,
        )


@shared_threads()
def remove_images(
    models_dir: Path,
    category: str,
    names: Sequence[str],
    *,
    features_dir: Path,
    rebuild: bool = False,
    device: str = "cpu",
    weights: Path | None = None,
    listener: Listener = ignore,
) -> LivingReport:
    """Take images out of a model: their memories, and their part in baseline and threshold.

    An image that was added later is taken out of any bank, and the scores are those of before. One of the
    build's is taken out of a bank of patches (`full`, `random`, `coreset`); phi_0's mean and covariance have
    still seen it. Memories that are means over images cannot lose one: there `rebuild` fits everything again
    from the stored features of the others, and phi starts again at phi_0.

    Args:
        models_dir, category: where the model is.
        names: uris, file names or paths of images.
        features_dir: where the stores are.
        rebuild: fit everything again.
        device, weights: see `ModelBundle.load`.
        listener: told of progress.

    Raises:
        BankError: a name fits no image or several, none would be left, or the bank's method needs `rebuild`.
        StoreError: the features of the model's images are missing.
        BundleError: there is no model, it is damaged, or another process writes it.
    """
    with category_lock(models_dir / category):
        bundle = ModelBundle.load(models_dir / category, device=device, weights=weights)
        store = open_store(bundle.manifest, features_dir)
        leaving = sorted({_find(store, name) for name in names})
        uris = tuple(store.images[row].uri for row in leaving)
        manifest = _without(bundle.manifest, store, set(uris))
        less = open_store(manifest, features_dir)
        fit_rows, _ = fit_and_held(less, manifest.spec)
        if not fit_rows:
            raise BankError(
                expected="at least one good image to stay",
                got=f"{len(uris)} to remove, which are all",
                remedy="build a model from other images",
            )
        if rebuild:
            return write_rebuild(
                models_dir / category, bundle, less, manifest, images=uris, listener=listener
            )
        in_bank = set(fit_and_held(store, manifest.spec)[0]) & set(leaving)
        built = [row for row in in_bank if row < len(store.first)]
        if built and manifest.spec.bank.method in AVERAGES:
            raise BankError(
                expected=f"a bank of patches, to take {store.images[min(built)].uri} out of",
                got=f"method {manifest.spec.bank.method}, whose memories are means over many images",
                remedy="add --rebuild: everything is fitted again from the stored features of the others",
            )
        stay = [source.uri not in set(uris) for source in bundle.sources]
        manifest.spec.check_memories(sum(stay))
        vectors = np.ascontiguousarray(bundle.bank.vectors[stay])
        index, measured = shrunk_index(models_dir / category, bundle, vectors)
        return write_change(
            models_dir / category,
            bundle,
            less,
            replace(manifest, action="remove"),
            MemoryBank(vectors, bundle.bank.device, index),
            places=list(itertools.compress(bundle.sources, stay)),
            crops=list(itertools.compress(bundle.exemplars, stay)),
            images=uris,
            measured=measured,
            listener=listener,
        )


@shared_threads()
def reindex(
    models_dir: Path,
    category: str,
    index: IndexSpec,
    *,
    features_dir: Path,
    device: str = "cpu",
    weights: Path | None = None,
    listener: Listener = ignore,
) -> LivingReport:
    """Put another index over a model's memories.

    Args:
        models_dir, category: where the model is.
        index: which one.
        features_dir: where the stores are.
        device, weights: see `ModelBundle.load`.
        listener: told of progress.

    Raises:
        BankError: FAISS cannot make it, or nothing keeps within the budgets.
        StoreError, BundleError: see `remove_images`.
    """
    with category_lock(models_dir / category):
        bundle = ModelBundle.load(models_dir / category, device=device, weights=weights)
        store = open_store(bundle.manifest, features_dir)
        spec = replace(bundle.manifest.spec, index=index)
        fit_rows, held_rows = fit_and_held(store, spec)
        start = start_of(bundle, store, spec)
        start = replace(start, bank=MemoryBank(bundle.bank.vectors, bundle.bank.device))
        start, choice = index_bank(
            start, store, held_rows=held_rows, fit_rows=fit_rows, phi=bundle.descriptor, listener=listener
        )
        return write_change(
            models_dir / category,
            bundle,
            store,
            replace(bundle.manifest, spec=spec, action="reindex"),
            start.bank,
            places=bundle.sources,
            crops=bundle.exemplars,
            measured=True,
            trials=choice.trials if choice else (),
            listener=listener,
        )


def rollback(models_dir: Path, category: str, generation: str | None = None) -> Manifest:
    """Make an earlier generation the current one; nothing is written but the pointer.

    Args:
        models_dir, category: where the model is.
        generation: its name; None for the parent of the current one.

    Returns:
        The manifest that is now the current one's.

    Raises:
        BundleError: there is no such generation, it is damaged, or another process writes the model.
    """
    folder = models_dir / category
    with category_lock(folder):
        if generation is None:
            current = read_manifest(current_generation(folder))
            if not current.parent:
                raise BundleError(
                    expected=f"a generation before {current.generation}",
                    got="a first build",
                    remedy="name another with --to",
                )
            generation = current.parent
        manifest = read_manifest(generation_folder(folder, generation))
        ModelBundle.check_files(generation_folder(folder, generation), manifest)
        set_current(folder, generation)
    return manifest


def _find(store: JoinedStore, name: str) -> int:
    """The row of the image that a user means by its uri, a path, or a file name.

    Raises:
        BankError: none is, or several are.
    """
    rows = store.good_rows
    path = str(Path(name).absolute())
    source = Path(store.header.source)
    found = [
        row for row in rows if store.images[row].uri == name or str(source / store.images[row].uri) == path
    ]
    found = found or [row for row in rows if Path(store.images[row].uri).name == name]
    if len(found) == 1:
        return found[0]
    if found:
        uris = ", ".join(store.images[row].uri for row in found[:_SHOWN])
        raise BankError(
            expected=f"one image named {name}", got=f"{len(found)}: {uris}", remedy="give its whole path"
        )
    near = difflib.get_close_matches(name, [store.images[row].uri for row in rows], n=_SHOWN, cutoff=0.3)
    raise BankError(
        expected=f"an image {name} in the model",
        got=f"none; there are {', '.join(near or [store.images[row].uri for row in rows[:_SHOWN]])} and others",
        remedy="see them all with `cfa-index bank info --images`",
    )


def _without(manifest: Manifest, store: JoinedStore, uris: Collection[str]) -> Manifest:
    """A manifest without some images; additions of which nothing is left are forgotten."""
    removed = {*manifest.removed, *uris}
    additions = []
    for addition, group in zip(manifest.added, store.groups[1:], strict=True):
        those = {store.images[row].uri for row in group}
        if those <= removed:
            removed -= those
        else:
            additions.append(addition)
    return replace(manifest, added=tuple(additions), removed=tuple(sorted(removed)))

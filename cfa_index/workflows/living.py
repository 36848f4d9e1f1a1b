"""A bank that lives: good images come, bad ones that slipped in go, the index changes.

Each change makes a generation and calibrates anew; whoever reads the one before is not disturbed.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cfa_index.bank import MemoryBank, shared_threads
from cfa_index.bundle import (
    Addition,
    HeldOut,
    Manifest,
    ModelBundle,
    category_lock,
    check_model,
    current_generation,
    generation_folder,
    generation_names,
    read_manifest,
    set_current,
)
from cfa_index.devices import resolve_device
from cfa_index.errors import BankError, BundleError
from cfa_index.events import Listener, ignore
from cfa_index.specs import CardSpec, IndexSpec
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
from cfa_index.workflows.opening import fit_and_held, judging_rows, open_store, place_of
from cfa_index.workflows.start import start_of
from cfa_index.workflows.verify import damage_of

_SHOWN = 3
AVERAGES = ("hybrid", "ema", "mean", "kmeans")
"""Methods whose memories are means over images, so that no image can be taken out of them."""


def _loaded(folder: Path, device: str, card: CardSpec, weights: Path | None) -> ModelBundle:
    """The model on one device: a changed bank is made there."""
    return ModelBundle.load(folder, device=str(resolve_device(device)), card=card, weights=weights)


@shared_threads()
def add_images(
    models_dir: Path,
    category: str,
    images: Sequence[Path],
    *,
    features_dir: Path,
    device: str = "cpu",
    card: CardSpec = CardSpec(),
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
        device, card, weights: see `ModelBundle.load`.
        threads: that decode.
        listener: told of progress, and of images that are there already.

    Raises:
        DatasetError: no image, or none that is new and can be read.
        StoreError: the features of the model's images are missing.
        BundleError: there is no model, it is damaged, or another process writes it.
    """
    check_model(models_dir / category)
    with category_lock(models_dir / category):
        bundle = _loaded(models_dir / category, device, card, weights)
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
        came = sorted({*fit_rows, *held_rows} - set(store.good_rows))
        uris = tuple(grown.images[row].uri for row in grown.images_in(came))
        judges = bundle.manifest.held_out.uris + uris  # of these, those that are held out
        return write_change(
            models_dir / category,
            bundle,
            grown,
            replace(manifest, action="add", held_out=HeldOut(uris=judges, scores=())),
            MemoryBank(vectors, bundle.bank.device, grown_index(bundle, vectors), card=card),
            places=[*bundle.sources, *memories.places],
            crops=[*bundle.exemplars, *memories.crops],
            images=uris,
            rejected=new.store.rejected,
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
    card: CardSpec = CardSpec(),
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
        device, card, weights: see `ModelBundle.load`.
        listener: told of progress.

    Raises:
        BankError: a name fits no image or several, none would be left, or the bank's method needs `rebuild`.
        StoreError: the features of the model's images are missing.
        BundleError: there is no model, it is damaged, or another process writes it.
    """
    check_model(models_dir / category)
    with category_lock(models_dir / category):
        bundle = _loaded(models_dir / category, device, card, weights)
        store = open_store(bundle.manifest, features_dir)
        if not names:
            raise BankError(expected="images to remove", got="none", remedy="name one with --image")
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
        apart = [not addition.averaged for addition in bundle.manifest.added]
        groups = zip(store.groups, [False, *apart], strict=True)
        built = [row for group, is_apart in groups if not is_apart for row in group if row in in_bank]
        if built and manifest.spec.bank.method in AVERAGES:
            raise BankError(
                expected=f"a bank of patches, to take {store.images[min(built)].uri} out of",
                got=f"method {manifest.spec.bank.method}, whose memories are means over many images",
                remedy="add --rebuild: everything is fitted again from the stored features of the others",
            )
        stay = [source.uri not in set(uris) for source in bundle.sources]
        if sum(stay) < manifest.spec.score.neighbors:
            raise BankError(
                expected=f"at least {manifest.spec.score.neighbors} memories to stay, as K asks",
                got=str(sum(stay)),
                remedy="remove fewer images, or build with a larger bank",
            )
        vectors = np.ascontiguousarray(bundle.bank.vectors[stay])
        index, measured = shrunk_index(models_dir / category, bundle, vectors)
        return write_change(
            models_dir / category,
            bundle,
            less,
            replace(manifest, action="remove"),
            MemoryBank(vectors, bundle.bank.device, index, card=card),
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
    card: CardSpec = CardSpec(),
    weights: Path | None = None,
    listener: Listener = ignore,
) -> LivingReport:
    """Put another index over a model's memories.

    Args:
        models_dir, category: where the model is.
        index: which one.
        features_dir: where the stores are.
        device, card, weights: see `ModelBundle.load`.
        listener: told of progress.

    Raises:
        BankError: FAISS cannot make it, or nothing keeps within the budgets.
        StoreError, BundleError: see `remove_images`.
    """
    check_model(models_dir / category)
    with category_lock(models_dir / category):
        bundle = _loaded(models_dir / category, device, card, weights)
        store = open_store(bundle.manifest, features_dir)
        spec = replace(bundle.manifest.spec, index=index)
        fit_rows, held_rows = fit_and_held(store, spec)
        start = start_of(bundle, store, spec)
        start = replace(start, bank=bundle.bank.as_flat())
        judges = judging_rows(store, held_rows, bundle.manifest)
        start, choice = index_bank(
            start, store, held_rows=judges, fit_rows=fit_rows, phi=bundle.descriptor, listener=listener
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


@dataclass(frozen=True, kw_only=True)
class RollbackReport:
    """Which generation a model went back to.

    Attributes:
        before: manifest of the one that was current; None where the pointer was damaged.
        manifest: of the one that is.
    """

    before: Manifest | None
    manifest: Manifest


def rollback(models_dir: Path, category: str, generation: str | None = None) -> RollbackReport:
    """Make an earlier generation the current one; nothing is written but the pointer.

    Args:
        models_dir, category: where the model is.
        generation: its name or number, also where the pointer is damaged; None for the parent of the current one.

    Raises:
        BundleError: there is no such generation, it is damaged, or another process writes the model.
    """
    folder = models_dir / category
    check_model(folder)
    with category_lock(folder):
        try:
            before = read_manifest(current_generation(folder))
        except BundleError:
            if generation is None:
                raise
            before = None
        if generation is None:
            assert before is not None, "raised above"
            if not before.parent:
                raise BundleError(
                    expected=f"a generation before {before.generation}",
                    got="a first build",
                    remedy=f"choose one of {', '.join(generation_names(folder))} with --to",
                )
            generation = before.parent
        path = generation_folder(folder, generation)
        manifest = read_manifest(path)
        ModelBundle.check_files(path, manifest)
        if found := list(damage_of(path, manifest)):
            raise BundleError(
                expected=f"generation {path.name} to be sound",
                got="; ".join(found),
                remedy="choose another with --to",
            )
        set_current(folder, path.name)
    return RollbackReport(before=before, manifest=manifest)


def _find(store: JoinedStore, name: str) -> int:
    """The first row of the image that a user means by its uri, a path, or a file name.

    Raises:
        BankError: none is, or several are.
    """
    rows = store.images_in(store.good_rows)
    path, source = place_of(Path(name)), Path(store.header.source)
    found = [
        row
        for row in rows
        if store.images[row].uri == name or place_of(source / store.images[row].uri) == path
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
    built, *added = ([store.images[row].uri for row in group if store.is_kept(row)] for group in store.groups)
    additions = []
    for addition, those in zip(manifest.added, added, strict=True):
        gone = set(uris).intersection(those)
        if gone != set(those):
            additions.append(replace(addition, removed=tuple(sorted({*addition.removed, *gone}))))
    judges = tuple(uri for uri in manifest.held_out.uris if uri not in uris)
    return replace(
        manifest,
        added=tuple(additions),
        removed=tuple(sorted({*manifest.removed, *set(uris).intersection(built)})),
        held_out=HeldOut(uris=judges, scores=()),
    )

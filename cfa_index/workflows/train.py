"""Adapt phi against the frozen bank (Eqs. 1-3).

Training reads the store; the backbone is called only for synthetic defects, where they choose.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index.bank import shared_threads
from cfa_index.bundle import (
    BACKBONE_FILE,
    BASELINE_FILE,
    DESCRIPTOR_FILE,
    EPOCHS_FILE,
    EXEMPLARS_FILE,
    INDEX_FILE,
    LISTS_FILE,
    SELECTION_FILE,
    SOURCES_FILE,
    TRAIN_LOG_FILE,
    VECTORS_FILE,
    Content,
    Manifest,
    ModelBundle,
    category_lock,
    descriptor_tensors,
    epoch_descriptors,
    write_generation,
)
from cfa_index.descriptor import PatchDescriptor
from cfa_index.errors import SpecError
from cfa_index.events import Listener, ignore, stage
from cfa_index.files import sha256_of_json
from cfa_index.scorer import Scorer
from cfa_index.specs import CardSpec, TrainSpec
from cfa_index.workflows.build import timestamp, versions
from cfa_index.workflows.calibrate import calibrated_scorer, score_held_out, with_scores
from cfa_index.workflows.checkpoint import read_checkpoint, remove_checkpoint, write_checkpoint
from cfa_index.workflows.epochs import are_kept, keep_epoch, kept_epochs
from cfa_index.workflows.indexing import index_bank, remeasure_index
from cfa_index.workflows.opening import averaged, fit_and_held, judging_rows, open_store
from cfa_index.workflows.probes import FEWEST_PROBES, draw_probes, split_probes
from cfa_index.workflows.select import Selection, Trial, choose_epoch, choose_start
from cfa_index.workflows.start import Start, bank_contents, start_of
from cfa_index.workflows.train_batches import train_batches
from cfa_index.workflows.trainer import EpochLog, Trainer, median_radius, restore, snapshot, train_epoch


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a training made.

    Attributes:
        path, manifest: of its generation.
        log: a row an epoch.
        epoch: whose phi is kept; 0 for phi_0.
        trials: what was tried by synthetic defects, in order.
    """

    path: Path
    manifest: Manifest
    log: tuple[EpochLog, ...]
    epoch: int
    trials: tuple[Trial, ...] = ()


@shared_threads()
def train(
    models_dir: Path,
    category: str,
    spec: TrainSpec,
    *,
    features_dir: Path,
    seed: int | None = None,
    device: str = "cpu",
    card: CardSpec = CardSpec(),
    weights: Path | None = None,
    keep_epochs: bool = False,
    listener: Listener = ignore,
) -> TrainReport:
    """Train the current generation of a category and make the result the next one.

    A checkpoint is written after every epoch. A run that was killed goes on from there when it is
    started again with the same settings, to the same result as an unbroken one.

    Args:
        models_dir, category: where the model is.
        spec: the settings, which replace those of the build.
        features_dir: where `build` left the store.
        seed: of the order of the images, in place of `spec.seed`.
        device, card: see `ModelBundle.load`.
        weights: of the backbone, for a model that was written without them.
        keep_epochs: keep phi after each epoch in the model, for `evaluate_published`.
        listener: told of progress.

    Raises:
        BundleError: there is no model, or it is damaged.
        StoreError: the store is missing or damaged, or the images have changed since the build.
        SpecError: K + J is larger than the bank, `drop_last` leaves no batch, or too few images were held
            out for `select`.
        DatasetError: `select` needs a held-out image that is gone or was changed.
        CardMemoryError: a card has no room for the model or a step.
    """
    with category_lock(models_dir / category):
        return _train(
            models_dir, category, spec, features_dir, seed, device, card, weights, keep_epochs, listener
        )


def _train(
    models_dir: Path,
    category: str,
    spec: TrainSpec,
    features_dir: Path,
    seed: int | None,
    device: str,
    card: CardSpec,
    weights: Path | None,
    keep_epochs: bool,
    listener: Listener,
) -> TrainReport:
    bundle = ModelBundle.load(models_dir / category, device=device, card=card, weights=weights)
    model_seed = bundle.manifest.spec.seed if spec.seed is None else spec.seed
    order_seed = model_seed if seed is None else seed
    spec = replace(spec, seed=order_seed)
    model_spec = replace(bundle.manifest.spec, train=spec)
    store = open_store(bundle.manifest, features_dir)
    rows, held_rows = fit_and_held(store, model_spec)
    start = start_of(bundle, store, model_spec)
    _check_trainable(spec, len(start.bank), len(rows), model_spec.features.view_unit)
    selection = None
    threshold_rows = judging_rows(store, held_rows, bundle.manifest)
    if spec.select == "synthetic":
        chosen_by = store.images_in(
            sorted(set(held_rows) - set(threshold_rows))
        )  # what chose before chooses again
        if len(chosen_by) < FEWEST_PROBES:
            chosen_by, judges = split_probes(store.images_in(threshold_rows), model_spec.seed)
            threshold_rows = store.views_of(judges)
        probes = draw_probes(store, chosen_by, bundle.backbone, seed=model_spec.seed, listener=listener)
        selection = Selection(probes, epochs=spec.epochs)
        start = choose_start(
            selection, start, backbone=bundle.backbone, store=store, rows=rows, listener=listener
        )
    if start.sources is not None:  # a new bank, chosen under Flat
        start, _ = index_bank(start, store, held_rows=threshold_rows, fit_rows=rows, listener=listener)
    phi = copy.deepcopy(start.phi_0)
    if isinstance(spec.radius, str):
        radius = median_radius(store, rows, phi, start.bank, spec)
    else:
        radius = spec.radius
    trainer = Trainer(phi, start.bank, spec, radius)
    trainer.require_room(store.header)
    identity = {"parent": bundle.manifest.generation, "manifest": bundle.manifest.to_dict()["sha256"]}
    identity |= {"train": str(spec.to_dict())}
    keeping = keep_epochs or selection is not None
    identity |= {"epochs": "kept"} if keeping else {}
    if selection is not None:  # it is chosen anew on each resume, which must not go on from another start
        identity |= {"start": sha256_of_json(start.spec.to_dict()), "bank": _sha256(start.bank.vectors)}
    folder = models_dir / category / "checkpoint"
    done = read_checkpoint(folder, identity)
    if done and keeping and not are_kept(folder, identity, len(done.log)):
        done = None
    log = restore(trainer, done) if done else []
    steps = len(rows) // spec.batch_size if spec.drop_last else math.ceil(len(rows) / spec.batch_size)
    with stage(listener, "training", steps * (spec.epochs - len(log)), "steps") as advance:
        for epoch in range(len(log), spec.epochs):
            order = np.random.default_rng([order_seed, epoch]).permutation(np.asarray(rows)).tolist()
            parts = [order[step * spec.batch_size : (step + 1) * spec.batch_size] for step in range(steps)]
            # After an error the garbage collector would close it, maybe in the store's own thread, which it waits for.
            with closing(train_batches(store, parts, trainer.uploads)) as batches:
                log.append(train_epoch(trainer, batches, epoch=epoch + 1, advance=advance))
            if keeping:
                keep_epoch(folder, identity, epoch + 1, trainer.descriptor)
            write_checkpoint(folder, identity, snapshot(trainer, log))

    epoch = len(log)
    if selection is not None:
        kept = epoch_descriptors(kept_epochs(folder, identity, len(log)), start.phi_0)
        epoch = choose_epoch(
            selection, kept, start, backbone=bundle.backbone, store=store, rows=rows, listener=listener
        )
        phi = kept[epoch - 1] if epoch else start.phi_0
    radius = log[epoch - 1].radius if epoch else 0.0
    remeasure_index(start, phi, store, rows=threshold_rows or rows, listener=listener)
    scorer = calibrated_scorer(bundle.backbone, phi, start, store=store, rows=rows, listener=listener)
    held_out = score_held_out(scorer, store, threshold_rows, listener)
    manifest = replace(
        with_scores(replace(bundle.manifest, spec=start.spec), held_out),
        parent=bundle.manifest.generation,
        action="train",
        created=timestamp(),
        radius=radius,
        index=start.bank.index.state if start.bank.index else None,
        versions=versions(),
    )
    contents = _contents(bundle, start, phi, radius, scorer, log)
    if start.sources is not None:
        contents |= bank_contents(store, start, listener)
        manifest = replace(manifest, added=averaged(manifest.added))
    if selection is not None:
        contents[SELECTION_FILE] = _csv(Trial, selection.trials)
    if keep_epochs and log:
        contents[EPOCHS_FILE] = kept_epochs(folder, identity, len(log))
    path, manifest = write_generation(models_dir / category, manifest, contents)
    remove_checkpoint(folder)
    return TrainReport(
        path=path,
        manifest=manifest,
        log=tuple(log),
        epoch=epoch,
        trials=tuple(selection.trials) if selection else (),
    )


def _check_trainable(spec: TrainSpec, memories: int, views: int, unit: str) -> None:
    if spec.attract + spec.repel > memories:
        raise SpecError(
            expected=f"K + J to be at most the bank's {memories} memories",
            got=f"{spec.attract} + {spec.repel}",
            remedy="give a smaller --attract or --repel, or build a larger bank",
        )
    if spec.drop_last and views < spec.batch_size:
        raise SpecError(
            expected=f"at least one full batch of {spec.batch_size} {unit}, as drop_last asks",
            got=f"{views} training {unit}",
            remedy="give a smaller --batch-size",
        )


def _contents(
    bundle: ModelBundle,
    start: Start,
    phi: PatchDescriptor,
    radius: float,
    scorer: Scorer,
    log: Sequence[EpochLog],
) -> dict[str, Content]:
    """Files of the trained generation; those of the bank are its parent's, unless it has another bank."""
    contents: dict[str, Content] = {
        DESCRIPTOR_FILE: {
            **descriptor_tensors(phi, "phi"),
            **descriptor_tensors(start.phi_0, "phi_0"),
            "radius": torch.tensor(radius),
        },
        TRAIN_LOG_FILE: _csv(EpochLog, log),
    }
    if scorer.baseline is not None:
        contents[BASELINE_FILE] = scorer.baseline.cpu().numpy()
    banks = (
        (VECTORS_FILE, SOURCES_FILE, EXEMPLARS_FILE, INDEX_FILE, LISTS_FILE) if start.sources is None else ()
    )
    for name in (BACKBONE_FILE, *banks):
        if name in bundle.manifest.files:
            contents[name] = bundle.path / name
    return contents


def _sha256(vectors: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(vectors).data).hexdigest()


def _csv(kind: type[EpochLog] | type[Trial], rows: Sequence[EpochLog] | Sequence[Trial]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(kind.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.__dict__ for row in rows)
    return text.getvalue().encode()

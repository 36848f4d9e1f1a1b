"""Adapt phi against the frozen bank (Eqs. 1-3). Training reads the store; the backbone is not called."""

from __future__ import annotations

import copy
import csv
import io
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cfa_index.bank import MemoryBank
from cfa_index.bundle import (
    BACKBONE_FILE,
    DESCRIPTOR_FILE,
    EPOCHS_FILE,
    EXEMPLARS_FILE,
    SOURCES_FILE,
    TRAIN_LOG_FILE,
    VECTORS_FILE,
    Content,
    Manifest,
    ModelBundle,
    category_lock,
    descriptor_tensors,
    write_generation,
)
from cfa_index.descriptor import PatchDescriptor
from cfa_index.errors import SpecError, StoreError
from cfa_index.events import Listener, ignore, stage
from cfa_index.files import sha256_of_file
from cfa_index.hypersphere import HypersphereLoss, neighbor_sq_distances
from cfa_index.scorer import Scorer
from cfa_index.specs import TrainSpec
from cfa_index.store import PatchStore, StoreHeader
from cfa_index.workflows.build import timestamp, versions
from cfa_index.workflows.calibrate import score_held_out, split_held_out, with_scores
from cfa_index.workflows.checkpoint import Checkpoint, read_checkpoint, remove_checkpoint, write_checkpoint
from cfa_index.workflows.epochs import are_kept, keep_epoch, kept_epochs
from cfa_index.workflows.extract import inspected_mask, store_path

_RADIUS_IMAGES = 32
"""Images that decide the radius `median`: tens of thousands of patches."""
_LEAST_RADIUS = 1e-5
"""Where the paper starts."""


@dataclass(frozen=True, kw_only=True)
class EpochLog:
    """A row of train_log.csv; means over the epoch.

    Attributes:
        attraction, repulsion: L_att and L_rep.
        radius: r at the end of the epoch.
        neighbor_distance: rooted, mean over the K nearest.
    """

    epoch: int
    attraction: float
    repulsion: float
    radius: float
    neighbor_distance: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a training made: its generation and a row an epoch."""

    path: Path
    manifest: Manifest
    log: tuple[EpochLog, ...]


class Trainer:
    """phi, the loss and the optimiser; `step` is one update.

    Args:
        descriptor: phi, changed in place.
        bank: frozen.
        spec: the settings.
        radius: where r starts.
    """

    def __init__(self, descriptor: PatchDescriptor, bank: MemoryBank, spec: TrainSpec, radius: float) -> None:
        self.descriptor = descriptor.train()
        self.bank = bank
        self.spec = spec
        self.loss = HypersphereLoss(
            attract=spec.attract, repel=spec.repel, margin=spec.margin, radius=radius
        ).to(bank.device)
        self.loss.radius.requires_grad_(spec.learn_radius)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(descriptor.parameters()), "weight_decay": spec.weight_decay},
                # r moves through L_att and L_rep only (PAPER, Loss): no decay on it.
                {"params": [self.loss.radius], "weight_decay": 0.0},
            ],
            lr=spec.learning_rate,
            amsgrad=True,
        )

    def step(self, levels: Sequence[Tensor], inspected: Tensor | None = None) -> tuple[float, float, float]:
        """One update from a batch.

        Args:
            levels: pyramids (B, C_l, h_l, w_l).
            inspected: bool (B, h*w), the patches that count; None for all of them.

        Returns:
            L_att, L_rep and the mean rooted distance to the K nearest memories.
        """
        adapted = self.descriptor(levels)
        patches = adapted.flatten(0, 1) if inspected is None else adapted[inspected]  # (n, D')
        found = self.bank.search(patches.detach(), self.spec.attract + self.spec.repel)
        sq_distances = neighbor_sq_distances(patches, self.bank.tensor, found.ids, found.sq_distances)
        terms = self.loss(sq_distances)
        self.optimizer.zero_grad(set_to_none=True)
        (terms.total * self.spec.loss_scale).backward()
        self.optimizer.step()
        distance = found.sq_distances[:, : self.spec.attract].sqrt().mean()
        return float(terms.attraction.detach()), float(terms.repulsion.detach()), float(distance)


def train(
    models_dir: Path,
    category: str,
    spec: TrainSpec,
    *,
    features_dir: Path,
    seed: int | None = None,
    device: str = "cpu",
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
        device: see `resolve_device`.
        weights: of the backbone, for a model that was written without them.
        keep_epochs: keep phi after each epoch in the model, for `evaluate_published`.
        listener: told of progress.

    Raises:
        BundleError: there is no model, or it is damaged.
        StoreError: the store is missing or damaged, or the images have changed since the build.
        SpecError: K + J is larger than the bank, or `drop_last` leaves no batch.
    """
    with category_lock(models_dir / category):
        return _train(models_dir, category, spec, features_dir, seed, device, weights, keep_epochs, listener)


def _train(
    models_dir: Path,
    category: str,
    spec: TrainSpec,
    features_dir: Path,
    seed: int | None,
    device: str,
    weights: Path | None,
    keep_epochs: bool,
    listener: Listener,
) -> TrainReport:
    bundle = ModelBundle.load(models_dir / category, device=device, weights=weights)
    model_seed = bundle.manifest.spec.seed if spec.seed is None else spec.seed
    order_seed = model_seed if seed is None else seed
    spec = replace(spec, seed=order_seed)
    model_spec = replace(bundle.manifest.spec, train=spec)
    store = open_store(bundle, features_dir)
    rows, held_rows = split_held_out(store.good_rows, model_spec.held_out, model_spec.seed)
    _check_trainable(spec, len(bundle.bank), len(rows))
    phi = copy.deepcopy(bundle.initial_descriptor)
    if isinstance(spec.radius, str):
        radius = median_radius(store, rows, phi, bundle.bank, spec)
    else:
        radius = spec.radius
    trainer = Trainer(phi, bundle.bank, spec, radius)
    identity = {"parent": bundle.manifest.generation, "manifest": bundle.manifest.to_dict()["sha256"]}
    identity |= {"train": str(spec.to_dict())}
    identity |= {"epochs": "kept"} if keep_epochs else {}
    folder = models_dir / category / "checkpoint"
    done = read_checkpoint(folder, identity)
    if done and keep_epochs and not are_kept(folder, identity, len(done.log)):
        done = None
    log = restore(trainer, done) if done else []
    steps = len(rows) // spec.batch_size if spec.drop_last else math.ceil(len(rows) / spec.batch_size)
    with stage(listener, "training", steps * (spec.epochs - len(log)), "steps") as advance:
        for epoch in range(len(log), spec.epochs):
            started = time.perf_counter()
            order = np.random.default_rng([order_seed, epoch]).permutation(np.asarray(rows)).tolist()
            totals, images = np.zeros(3), 0
            for batch, levels in _prefetched(store, order, spec):
                figures = trainer.step(
                    [level.to(bundle.bank.device) for level in levels], _inspected(store, batch)
                )
                totals += np.asarray(figures) * len(batch)
                images += len(batch)
                attraction, repulsion, distance = figures
                advance(
                    1,
                    epoch=epoch + 1,
                    L_att=attraction,
                    L_rep=repulsion,
                    radius=float(trainer.loss.radius.detach()),
                    distance=distance,
                    images=len(batch),
                )
            means = totals / max(images, 1)
            log.append(
                EpochLog(
                    epoch=epoch + 1,
                    attraction=float(means[0]),
                    repulsion=float(means[1]),
                    radius=float(trainer.loss.radius.detach()),
                    neighbor_distance=float(means[2]),
                    seconds=time.perf_counter() - started,
                )
            )
            if keep_epochs:
                keep_epoch(folder, identity, epoch + 1, trainer.descriptor)
            write_checkpoint(folder, identity, snapshot(trainer, log))

    scorer = Scorer(
        bundle.backbone,
        trainer.descriptor,
        bundle.bank,
        features=model_spec.features,
        score=model_spec.score,
    )
    held_out = score_held_out(scorer, store, held_rows, listener)
    manifest = replace(
        with_scores(bundle.manifest, held_out),
        parent=bundle.manifest.generation,
        action="train",
        created=timestamp(),
        spec=model_spec,
        radius=float(trainer.loss.radius.detach()),
        versions=versions(),
    )
    contents = _contents(bundle, trainer, log)
    if keep_epochs and log:
        contents[EPOCHS_FILE] = kept_epochs(folder, identity, len(log))
    path, manifest = write_generation(models_dir / category, manifest, contents)
    remove_checkpoint(folder)
    return TrainReport(path=path, manifest=manifest, log=tuple(log))


def open_store(bundle: ModelBundle, features_dir: Path) -> PatchStore:
    """The store that a model was built from.

    Raises:
        StoreError: it is missing or damaged, or its images are not those of the build.
    """
    manifest = bundle.manifest
    header = StoreHeader(
        source=manifest.source,
        features=manifest.spec.features,
        weights_sha256=manifest.weights.sha256,
        channels=manifest.channels,
    )
    path = store_path(features_dir, manifest.category, header)
    store = PatchStore.open(path)
    if sha256_of_file(path / "images.parquet") != manifest.images_sha256:
        raise StoreError(
            expected=f"the images that generation {manifest.generation} was built from",
            got=f"a store at {path} that was filled again since",
            remedy="run build again, then train",
        )
    return store


def median_radius(
    store: PatchStore, rows: Sequence[int], phi: PatchDescriptor, bank: MemoryBank, spec: TrainSpec
) -> float:
    """Root of the median squared distance of good patches to their K-th memory, under phi."""
    picked = rows[:: max(1, len(rows) // _RADIUS_IMAGES)][:_RADIUS_IMAGES]
    kth = []
    for row in picked:
        with torch.inference_mode():
            patches = phi([level.to(bank.device) for level in store.read([row])])
            patches = patches[inspected_mask(store, [row])]
        kth.append(bank.search(patches, spec.attract).sq_distances[:, -1])
    # Where every patch is a memory the median is zero, and r = 0 has no gradient.
    return max(float(torch.cat(kth).median().sqrt()), _LEAST_RADIUS)


def _inspected(store: PatchStore, rows: Sequence[int]) -> Tensor | None:
    """Which patches of a batch count: None for all, so that a full batch costs nothing."""
    mask = inspected_mask(store, rows)
    return None if bool(mask.all()) else mask


def _check_trainable(spec: TrainSpec, memories: int, images: int) -> None:
    if spec.attract + spec.repel > memories:
        raise SpecError(
            expected=f"K + J to be at most the bank's {memories} memories",
            got=f"{spec.attract} + {spec.repel}",
            remedy="give a smaller --attract or --repel, or build a larger bank",
        )
    if spec.drop_last and images < spec.batch_size:
        raise SpecError(
            expected=f"at least one full batch of {spec.batch_size} images, as drop_last asks",
            got=f"{images} training images",
            remedy="give a smaller --batch-size",
        )


def _prefetched(
    store: PatchStore, order: Sequence[int], spec: TrainSpec
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Batches of the store in order, the next one read while the caller works on this one."""
    parts = [list(order[start : start + spec.batch_size]) for start in range(0, len(order), spec.batch_size)]
    if spec.drop_last and parts and len(parts[-1]) < spec.batch_size:
        parts.pop()
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(store.read, parts[0]) if parts else None
        for number, part in enumerate(parts):
            assert coming is not None
            levels = coming.result()
            coming = reader.submit(store.read, parts[number + 1]) if number + 1 < len(parts) else None
            yield part, levels


def snapshot(trainer: Trainer, log: Sequence[EpochLog]) -> Checkpoint:
    """All that a training needs to go on."""
    return Checkpoint(
        descriptor=trainer.descriptor.state_dict(),
        radius=trainer.loss.radius.detach(),
        optimizer=trainer.optimizer.state_dict()["state"],
        log=[row.__dict__ for row in log],
    )


def restore(trainer: Trainer, checkpoint: Checkpoint) -> list[EpochLog]:
    """Put a checkpoint's state into a trainer; gives the epochs that are done."""
    trainer.descriptor.load_state_dict(dict(checkpoint.descriptor))
    with torch.no_grad():
        trainer.loss.radius.copy_(checkpoint.radius)
    state = trainer.optimizer.state_dict()
    state["state"] = checkpoint.optimizer
    trainer.optimizer.load_state_dict(state)
    return [EpochLog(**row) for row in checkpoint.log]


def _contents(bundle: ModelBundle, trainer: Trainer, log: Sequence[EpochLog]) -> dict[str, Content]:
    """Files of the trained generation: the bank's are those of its parent."""
    contents: dict[str, Content] = {
        DESCRIPTOR_FILE: {
            **descriptor_tensors(trainer.descriptor, "phi"),
            **descriptor_tensors(bundle.initial_descriptor, "phi_0"),
            "radius": trainer.loss.radius.detach().cpu(),
        },
        TRAIN_LOG_FILE: _log_csv(log),
    }
    for name in (BACKBONE_FILE, VECTORS_FILE, SOURCES_FILE, EXEMPLARS_FILE):
        if name in bundle.manifest.files:
            contents[name] = bundle.path / name
    return contents


def _log_csv(log: Sequence[EpochLog]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(EpochLog.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.__dict__ for row in log)
    return text.getvalue().encode()

"""Good images to a model: store, phi_0, bank, threshold."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from cfa_index.backbones import Backbone
from cfa_index.bank import IndexTrial, faiss_version, shared_threads
from cfa_index.bundle import (
    BACKBONE_FILE,
    BASELINE_FILE,
    DESCRIPTOR_FILE,
    Content,
    HeldOut,
    Manifest,
    category_lock,
    descriptor_tensors,
    write_generation,
)
from cfa_index.descriptor import needs_moments
from cfa_index.errors import BankError, DatasetError
from cfa_index.events import Listener, ignore, stage
from cfa_index.files import sha256_of_file
from cfa_index.specs import CardSpec, ModelSpec
from cfa_index.store import PatchStore
from cfa_index.workflows.calibrate import calibrated_scorer, score_held_out, threshold_of
from cfa_index.workflows.extract import (
    extract,
    store_header,
    store_path,
)
from cfa_index.workflows.indexing import index_bank
from cfa_index.workflows.opening import split_held_out, split_rows
from cfa_index.workflows.start import Start, bank_contents, make_start, patch_moments


@dataclass(frozen=True, kw_only=True)
class GoodImages:
    """Where a build's images are: files below `source`, under a category's name.

    Raises:
        DatasetError: the name is no folder's name, so that the model would lie elsewhere.
    """

    category: str
    source: Path
    images: Sequence[Path]

    def __post_init__(self) -> None:
        if self.category in ("", ".", "..") or any(mark in self.category for mark in "/\\\0"):
            raise DatasetError(
                expected="the name of a folder as category",
                got=repr(self.category),
                remedy="give a name without slashes with --category",
            )


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What a build made.

    Attributes:
        path: of the generation.
        manifest: of the generation.
        store: path of the PatchStore.
        images, rejected: good images used (bank and threshold), and those that could not be read.
        memories, width: M and D'.
        trials: the indexes that were tried; none for plain Flat.
    """

    path: Path
    manifest: Manifest
    store: Path
    images: int
    rejected: int
    memories: int
    width: int
    trials: tuple[IndexTrial, ...] = ()


@shared_threads()
def build(
    good: GoodImages,
    spec: ModelSpec,
    *,
    backbone: Backbone,
    models_dir: Path,
    features_dir: Path,
    device: torch.device,
    card: CardSpec = CardSpec(),
    threads: int = 2,
    embed_weights: bool = True,
    listener: Listener = ignore,
) -> BuildReport:
    """Build a model and make it the category's current generation.

    Args:
        good: the normal images.
        spec: all settings.
        backbone: frozen, with the weights to use.
        models_dir, features_dir: where the generation and the store go.
        device: of the forward pass and of the search.
        card: what the bank may take of a card.
        threads: that decode.
        embed_weights: put the backbone's tensors into the model.
        listener: told of progress.

    Raises:
        DatasetError: no image can be read.
        BankError: more memories are asked for than there are patches, or than a coreset can hold; or FAISS
            cannot make the index, or none keeps within the budgets.
        SpecError: the bank's share of the patches is too small for K, or too large for its method.
        StoreError, OutputError: see `extract`.
    """
    # Before any work: what cannot be made of all images cannot be made of the readable ones.
    if not spec.features.tile_px:  # how many tiles there are is known when the images are read
        check_enough_patches(spec, len(split_held_out(range(len(good.images)), spec.held_out, spec.seed)[0]))
    backbone = backbone.put_on(device)
    path = store_path(features_dir, good.category, store_header(good.source, spec.features, backbone))
    store = extract(
        good.images,
        source=good.source,
        backbone=backbone,
        features=spec.features,
        path=path,
        device=device,
        threads=threads,
        listener=listener,
    )
    fit_rows, held_rows = split_rows(store, store.good_rows, spec)
    fitted = fit(
        backbone,
        store,
        spec,
        fit_rows=fit_rows,
        held_rows=held_rows,
        device=device,
        card=card,
        listener=listener,
    )
    contents, bank = dict(fitted.contents), fitted.start.bank
    if embed_weights or backbone.origin.is_random:  # random weights cannot be had again from a file
        contents[BACKBONE_FILE] = backbone.state_tensors()
    images = len(store.images_in(store.good_rows))
    manifest = Manifest(
        category=good.category,
        generation="",
        parent="",
        action="build",
        created=timestamp(),
        source=store.header.source,
        images=images,
        images_sha256=sha256_of_file(path / "images.parquet"),
        spec=spec,
        weights=backbone.origin,
        channels=backbone.channels,
        radius=0.0,
        index=bank.index.state if bank.index else None,
        held_out=fitted.held_out,
        threshold=threshold_of(fitted.held_out, spec.score.false_alarm_rate),
        versions=versions(),
        files={},
    )
    with stage(listener, "write", None, "files"), category_lock(models_dir / good.category):
        folder, manifest = write_generation(models_dir / good.category, manifest, contents)
    return BuildReport(
        path=folder,
        manifest=manifest,
        store=path,
        images=images,
        rejected=store.rejected,
        memories=len(bank),
        width=fitted.start.phi_0.width,
        trials=fitted.trials,
    )


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """All that is fitted to good images.

    Attributes:
        start: phi_0 and the bank under its index.
        held_out: scores of the held-out images.
        contents: files of the generation, but for the backbone.
        trials: the indexes that were tried; none for plain Flat.
    """

    start: Start
    held_out: HeldOut
    contents: Mapping[str, Content]
    trials: tuple[IndexTrial, ...]


def fit(
    backbone: Backbone,
    store: PatchStore,
    spec: ModelSpec,
    *,
    fit_rows: Sequence[int],
    held_rows: Sequence[int],
    device: torch.device,
    card: CardSpec = CardSpec(),
    listener: Listener = ignore,
) -> Fitted:
    """Fit phi_0, bank, index, baseline and held-out scores to stored features.

    Args:
        backbone: for the scorer; it is not called.
        store: of the images.
        spec: all settings.
        fit_rows, held_rows: the views of the images of the bank, and of those held out.
        device, card: of the bank.
        listener: told of progress.

    Raises:
        BankError, SpecError: see `build`.
    """
    check_enough_patches(spec, len(fit_rows))
    moments = (
        patch_moments(store, fit_rows, seed=spec.seed, listener=listener)
        if needs_moments(spec.descriptor)
        else None
    )
    start = make_start(store, fit_rows, spec, moments=moments, device=device, card=card, listener=listener)
    start, choice = index_bank(start, store, held_rows=held_rows, fit_rows=fit_rows, listener=listener)
    scorer = calibrated_scorer(backbone, start.phi_0, start, store=store, rows=fit_rows, listener=listener)
    held_out = score_held_out(scorer, store, held_rows, listener)
    contents: dict[str, Content] = {
        DESCRIPTOR_FILE: {
            **descriptor_tensors(start.phi_0, "phi"),
            **descriptor_tensors(start.phi_0, "phi_0"),
            "radius": torch.zeros(()),
        },
        **bank_contents(store, start, listener),
    }
    if scorer.baseline is not None:
        contents[BASELINE_FILE] = scorer.baseline.cpu().numpy()
    return Fitted(start=start, held_out=held_out, contents=contents, trials=choice.trials if choice else ())


def timestamp() -> str:
    """Now, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of what a model depends on."""
    return {
        "cfa-index": version("cfa-index"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "faiss": faiss_version(),
        "numpy": np.__version__,
    }


def check_enough_patches(spec: ModelSpec, views: int) -> None:
    """A bank larger than all patches together, or too small or large for the settings, cannot be made."""
    patches = views * spec.features.patches_per_image
    memories = spec.bank.memories(spec.features.patches_per_image, patches)
    spec.check_memories(memories)
    if memories > patches:
        raise BankError(
            expected=f"a bank of at most {patches} memories ({views} {spec.features.view_unit} of {spec.features.patches_per_image} patches)",
            got=str(memories),
            remedy="give a smaller --bank-size, or more good images",
        )

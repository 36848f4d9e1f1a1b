"""Image AUROC under an index and under Flat, on the same bank; for `benchmarks.search`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.elpv import auroc_of
from cfa_index import (
    GoodImages,
    IndexSpec,
    ModelBundle,
    Scorer,
    build,
    load_backbone,
    load_batches,
    make_index,
    preset,
    split_cells,
)
from cfa_index.errors import BankError

_MIN_RECALL = 0.999
_TUNING_PATCHES = 256
"""Of each held-out image."""


@dataclass(frozen=True, kw_only=True)
class AccuracyRow:
    """AUROC of one index on one split, and its difference to Flat's (both as shares of 1)."""

    cells: str
    split: str
    index: str
    made: str
    auroc: float
    difference: float


def measure_accuracy(
    cells: Literal["mono", "poly"],
    names: Sequence[str],
    *,
    folder: Path,
    most_images: int | None,
    seed: int,
) -> list[AccuracyRow]:
    """Build the recommended model once, put indexes on its bank, and score every image under each.

    Args:
        names: of indexes, tuned on the held-out images to recall@1 of 0.999; one that FAISS cannot make is left out.
        folder: for the model and its features.
        most_images: of each part of the split; None for all.
    """
    split = split_cells(cells)
    source = split.train_good[0].parent
    spec = replace(preset("recommended"), seed=seed)
    spec = replace(spec, features=replace(spec.features, backbone="efficientnet_lite0"))
    backbone = load_backbone(spec.features.backbone, spec.features.strides, size_px=spec.features.size_px)
    good = GoodImages(category=cells, source=source, images=split.train_good[:most_images])
    built = build(
        good,
        spec,
        backbone=backbone,
        models_dir=folder / "models",
        features_dir=folder / "features",
        device=torch.device("cpu"),
    )
    bundle = ModelBundle.load(built.path)
    held_out = [source / uri for uri in built.manifest.held_out.uris]
    scorers, made = {"flat": bundle.scorer}, {"flat": "flat"}
    tuning = _patches(bundle, held_out, seed)
    for name in names:
        try:
            choice = make_index(
                bundle.bank.vectors,
                IndexSpec(factory=name, min_recall=_MIN_RECALL),
                tuning,
                k=spec.score.neighbors,
                patches_per_image=spec.features.patches_per_image,
                seed=seed,
            )
        except BankError as error:
            print(f"  {cells}, {name}: {error}", flush=True)
            continue
        bank = bundle.bank if choice.index is None else bundle.bank.with_index(choice.index)
        made[name] = choice.state.describe()
        scorers[name] = Scorer(
            bundle.backbone,
            bundle.descriptor,
            bank,
            features=spec.features,
            score=spec.score,
            baseline=bundle.scorer.baseline,
        )
    rows = []
    for name_of_split, normal, defective in (
        ("dev", held_out, split.uncertain[:most_images]),
        ("test", split.test_good[:most_images], split.test_defect[:most_images]),
    ):
        labels = np.repeat([False, True], [len(normal), len(defective)])
        scores = _scores(bundle, scorers, [*normal, *defective])
        flat = auroc_of(labels, scores["flat"])
        for name, values in scores.items():
            value = auroc_of(labels, values)
            rows.append(
                AccuracyRow(
                    cells=cells,
                    split=name_of_split,
                    index=name,
                    made=made[name],
                    auroc=value,
                    difference=value - flat,
                )
            )
    return rows


def _scores(
    bundle: ModelBundle, scorers: dict[str, Scorer], files: Sequence[Path]
) -> dict[str, NDArray[np.float64]]:
    """Raw scores (n,) under each scorer; the backbone sees every image once."""
    found: dict[str, list[float]] = {name: [] for name in scorers}
    for batch in load_batches(files, bundle.manifest.spec.features, batch_size=8):
        with torch.inference_mode():
            levels = bundle.backbone.pyramid(batch.pixels)
        for name, scorer in scorers.items():
            found[name] += scorer.score_pyramid(levels, batch.frames).scores.tolist()
    return {name: np.array(values) for name, values in found.items()}


def _patches(bundle: ModelBundle, files: Sequence[Path], seed: int) -> NDArray[np.float32]:
    """Some adapted patches (n, D') of every image."""
    draw, phi = np.random.default_rng(seed), bundle.descriptor.folded()
    found = []
    for batch in load_batches(files, bundle.manifest.spec.features, batch_size=8):
        with torch.inference_mode():
            patches = phi(bundle.backbone.pyramid(batch.pixels)).numpy()
        found += [grid[np.sort(draw.permutation(len(grid))[:_TUNING_PATCHES])] for grid in patches]
    return np.concatenate(found)

"""Does the ranking by synthetic defects agree with the real one? On the development cells, a setting a row.

    python -m benchmarks.selection
    python -m benchmarks.selection --cells mono --seeds 1

For each cell type and seed, models of several initialisations, banks and baselines are built without any
training. Each is judged twice: by synthetic defects on half of the held-out good cells (what `train --select
synthetic` sees), and by the doubtful cells (probability 1/3 and 2/3) against the other half. Prints both AUROCs, their rank correlation (Spearman), and what a choice by synthetic
AUROC costs against the best and gains over the default.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.elpv import auroc_of
from benchmarks.machine import describe
from cfa_index import (
    Backbone,
    Frame,
    ModelSpec,
    Scorer,
    calibrated_scorer,
    draw_probes,
    extract,
    load_backbone,
    load_batches,
    make_start,
    patch_moments,
    preset,
    probe_scores,
    score_held_out,
    set_threads,
    split_cells,
    split_held_out,
    split_probes,
    write_json,
)

_CPU = torch.device("cpu")
DEFAULT = "recommended"


def settings(base: ModelSpec) -> Iterator[tuple[str, ModelSpec]]:
    """What is compared, by name; the default comes first."""
    yield DEFAULT, base
    for shrinkage in (0.01, 1.0):
        yield (
            f"shrinkage {shrinkage}",
            replace(base, descriptor=replace(base.descriptor, shrinkage=shrinkage)),
        )
    standardised = replace(base, descriptor=replace(base.descriptor, init="identity"))
    yield "standardised only", standardised
    random_phi = replace(base.descriptor, init="he", standardise=False)
    yield "random phi", replace(base, descriptor=random_phi)
    for size in (196, 784):
        yield f"{size} memories", replace(base, bank=replace(base.bank, size=size))
    for method in ("kmeans", "coreset", "random"):
        yield method, replace(base, bank=replace(base.bank, method=method))
    yield "standardised, k-means", replace(standardised, bank=replace(base.bank, method="kmeans"))
    yield "position means", replace(base, bank=replace(base.bank, method="mean", size=784))
    yield "Eq. 5", replace(base, score=replace(base.score, patch_score="certainty"))
    unscaled = replace(standardised, score=replace(base.score, patch_score="certainty"))
    yield "standardised, Eq. 5", unscaled


def run(
    cell_type: Literal["mono", "poly"], base: ModelSpec, backbone: Backbone, folder: Path
) -> dict[str, tuple[float, float]]:
    """Synthetic and real AUROC of each setting, with and without the baseline; one seed."""
    cells = split_cells(cell_type)
    store = extract(
        cells.train_good,
        source=cells.train_good[0].parent,
        backbone=backbone,
        features=base.features,
        path=folder / f"{cell_type}.zarr",
        device=_CPU,
    )
    rows, held = split_held_out(store.good_rows, base.held_out, base.seed)
    chosen, unseen = split_probes(held, base.seed)
    probes = draw_probes(store, chosen, backbone, seed=base.seed)
    batches = load_batches(cells.uncertain, base.features, batch_size=8)
    doubtful = [(backbone.pyramid(batch.pixels), batch.frames) for batch in batches]
    moments = patch_moments(store, rows, seed=base.seed)
    found = {}
    for name, spec in settings(base):
        start = make_start(store, rows, spec, moments=moments, device=_CPU)
        for baseline in ("position", "none"):
            score = replace(spec.score, baseline=baseline)
            judged = replace(start, spec=replace(spec, score=score))
            scorer = calibrated_scorer(backbone, start.phi_0, judged, store=store, rows=rows)
            good = score_held_out(scorer, store, unseen).scores
            bad = _scores(scorer, doubtful)
            labels = np.arange(len(good) + len(bad)) >= len(good)
            real = auroc_of(labels, np.array([*good, *bad]))
            synthetic = auroc_of(probes.labels, probe_scores(scorer, probes))
            label = name if baseline == "position" else f"{name}, no baseline"
            found[label] = (synthetic, real)
            print(
                f"{cell_type} seed {base.seed} {label:36s} {100 * synthetic:6.2f} {100 * real:6.2f}",
                flush=True,
            )
    return found


def _scores(scorer: Scorer, batches: list[tuple[list[torch.Tensor], list[Frame]]]) -> list[float]:
    scores: list[float] = []
    for levels, frames in batches:
        scores += scorer.score_pyramid(levels, frames).scores.tolist()
    return scores


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", choices=["mono", "poly"], action="append")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    set_threads(given.threads)
    print(describe(0, seeds=given.seeds, backbone=given.backbone))
    print("settings, synthetic AUROC, development AUROC in %")
    base = preset("recommended")
    base = replace(base, features=replace(base.features, backbone=given.backbone))
    backbone = load_backbone(given.backbone, base.features.strides, size_px=base.features.size_px)
    document = {}
    for cell_type in given.cells or ["mono", "poly"]:
        with tempfile.TemporaryDirectory() as name:
            runs = [
                run(cell_type, replace(base, seed=seed), backbone, Path(name)) for seed in range(given.seeds)
            ]
        names = list(runs[0])
        table = np.array([[run[name] for name in names] for run in runs])  # (seeds, settings, 2)
        document[cell_type] = {name: table[:, number].tolist() for number, name in enumerate(names)}
        print(f"\n{cell_type}, mean over {given.seeds} seeds")
        mean = table.mean(axis=0)
        for number, name in enumerate(names):
            print(f"  {name:36s} {100 * mean[number, 0]:6.2f} {100 * mean[number, 1]:6.2f}")
        by_seed = [float(spearmanr(one[:, 0], one[:, 1])[0]) for one in table]
        chosen = table[:, :, 0].argmax(axis=1)
        real = table[np.arange(len(table)), chosen, 1]
        print(f"  rank correlation by seed: {', '.join(f'{value:.2f}' for value in by_seed)}")
        print(
            f"  the highest synthetic AUROC has {100 * real.mean():.2f}, the best {100 * table[:, :, 1].max(axis=1).mean():.2f}, "
            f"the default {100 * table[:, names.index(DEFAULT), 1].mean():.2f}\n"
        )
    if given.json:
        write_json(given.json, document)


if __name__ == "__main__":
    main()

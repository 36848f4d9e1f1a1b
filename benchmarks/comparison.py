"""The solar cells' test split, ours beside peers: image AUROC, 3 seeds, last epoch, paired intervals.

    python -m benchmarks.comparison --output comparison-output
    python -m benchmarks.comparison --output comparison-output --peers patchcore_mono.json cfa_mono.json

Every method sees the same good cells, network (EfficientNet-Lite0), levels (strides 8 and 16) and size;
the two rows that take long with one seed.
Peers' scores come from `benchmarks.anomalib_peers`, which runs in an environment of its own. The scores of
each method, cell type and seed are kept in OUTPUT as JSON, so that a run that was stopped goes on; the
table is made from them. Nothing is chosen here: the rows are fixed before the test split is seen.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.elpv import auroc_of, image_scores
from benchmarks.machine import describe
from cfa_index import (
    Backbone,
    GoodImages,
    ModelBundle,
    ModelSpec,
    build,
    load_backbone,
    paired_auroc_difference,
    preset,
    set_threads,
    split_cells,
    train,
    write_json,
)

OURS = "recommended"
CHOSEN = "chosen by synthetic defects"
PUBLISHED = "published code"
TRAINED = (OURS, CHOSEN, PUBLISHED)
SLOW = (CHOSEN, PUBLISHED)
"""Run with one seed."""
CellType = Literal["mono", "poly"]


def methods(backbone: str) -> dict[str, ModelSpec]:
    """Settings by row; a row named `.., trained` is the model before it after `train`."""
    ours = preset("recommended")
    ours = replace(ours, features=replace(ours.features, backbone=backbone))
    plain = replace(
        ours,
        descriptor=replace(ours.descriptor, init="identity"),
        score=replace(ours.score, baseline="none"),
    )
    published = preset("published-code")
    published = replace(published, features=ours.features)
    return {
        "standardised only, k-means bank": replace(plain, bank=replace(plain.bank, method="kmeans")),
        "standardised only, the same bank": plain,
        OURS: ours,
        "recommended, all good images": replace(ours, held_out=0.0),
        CHOSEN: replace(ours, train=replace(ours.train, select="synthetic")),
        PUBLISHED: published,
    }


def run(
    name: str, spec: ModelSpec, cell_type: CellType, backbone: Backbone, features: Path
) -> dict[str, dict[str, float]]:
    """Scores by file name: of the model as built under `name`, and trained under `name, trained`."""
    cells = split_cells(cell_type)
    files = [*cells.test_good, *cells.test_defect]
    good = GoodImages(category=cell_type, source=cells.train_good[0].parent, images=cells.train_good)
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        built = build(
            good,
            spec,
            backbone=backbone,
            models_dir=models,
            features_dir=features,
            device=torch.device("cpu"),
        )
        found = {}
        if spec.train.select == "none":
            found[name] = _scores(built.path, files)
        if name in TRAINED:
            train(models, cell_type, spec.train, features_dir=features)
            trained = name if spec.train.select != "none" else f"{name}, trained"
            found[trained] = _scores(models / cell_type, files)
    return found


def _scores(model: Path, files: Sequence[Path]) -> dict[str, float]:
    scores = image_scores(ModelBundle.load(model), files)
    return dict(zip((file.name for file in files), scores.tolist(), strict=True))


def read_peer(file: Path) -> dict[tuple[str, str], list[dict[str, float]]]:
    """Scores by file name, of one file of `benchmarks.anomalib_peers`, under (method, cell type)."""
    document = json.loads(file.read_text())
    label = f"anomalib {document['settings']['model']}"
    found = {}
    for cell_type in ("mono", "poly"):
        if cell_type in document:
            entry = document[cell_type]
            names = [name for name, _ in entry["images"]]
            found[label, cell_type] = [dict(zip(names, entry["scores"], strict=True))]
    return found


def table(results: Mapping[tuple[str, str], Sequence[Mapping[str, float]]], cell_type: CellType) -> list[str]:
    """A Markdown row a method: AUROC, mean and deviation over seeds, and ours minus it by seed."""
    cells = split_cells(cell_type)
    names = [file.name for file in (*cells.test_good, *cells.test_defect)]
    labels = np.arange(len(names)) >= len(cells.test_good)
    ours = [_array(one, names) for one in results[OURS, cell_type]]
    lines = []
    for method, kind in results:
        if kind != cell_type:
            continue
        runs = [_array(one, names) for one in results[method, kind]]
        values = [100 * auroc_of(labels, run) for run in runs]
        spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        differences = []
        for seed, one in enumerate(ours):
            if method != OURS:
                gain, low, high = paired_auroc_difference(labels, one, runs[min(seed, len(runs) - 1)])
                differences.append(f"{100 * gain:+.2f} ({100 * low:+.2f} .. {100 * high:+.2f})")
        lines.append(
            f"| {cell_type} | {method} | {len(runs)} | {np.mean(values):.2f}{spread} | {', '.join(differences)} |"
        )
    return lines


def _array(scores: Mapping[str, float], names: Sequence[str]) -> NDArray[np.float64]:
    return np.array([scores[name] for name in names])


def main() -> None:
    """Parse, measure what is missing, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("comparison-output"))
    parser.add_argument("--peers", type=Path, nargs="*", default=[])
    parser.add_argument("--cells", choices=["mono", "poly"], action="append")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    set_threads(given.threads)
    print(describe(0, seeds=given.seeds, backbone=given.backbone))
    strides = preset("recommended").features.strides
    backbone = load_backbone(given.backbone, strides)
    cell_types: list[CellType] = given.cells or ["mono", "poly"]
    results: dict[tuple[str, str], list[Any]] = {}
    for cell_type in cell_types:
        for name, spec in methods(given.backbone).items():
            for seed in range(1 if name in SLOW else given.seeds):
                file = given.output / f"{cell_type}-{name.replace(' ', '-').replace(',', '')}-{seed}.json"
                settings = {"spec": replace(spec, seed=seed).to_dict(), "weights": backbone.origin.sha256}
                if not file.exists() or json.loads(file.read_text())["settings"] != settings:
                    started = time.perf_counter()
                    found = run(
                        name, replace(spec, seed=seed), cell_type, backbone, given.output / "features"
                    )
                    write_json(file, {"settings": settings, "scores": found})
                    print(
                        f"{cell_type} {name} seed {seed}: {time.perf_counter() - started:.0f} s", flush=True
                    )
                for method, scores in json.loads(file.read_text())["scores"].items():
                    results.setdefault((method, cell_type), []).append(scores)
    for file in given.peers:
        for key, runs in read_peer(file).items():
            results.setdefault(key, []).extend(runs)
    print("| cells | method | seeds | image AUROC | recommended minus it, paired 95%, by seed |")
    print("|---|---|---|---|---|")
    for cell_type in cell_types:
        print("\n".join(table(results, cell_type)))


if __name__ == "__main__":
    main()

"""Image AUROC on the ELPV solar cells, before and after training, several seeds.

    python -m benchmarks.elpv --split dev            choose settings here
    python -m benchmarks.elpv --split dev --set score.patch_score=certainty --set train.epochs=0
    python -m benchmarks.elpv --split test           once, for the report

The split is that of `cfa_index.split_cells`. `dev` scores the held-out good training cells against the
cells of probability 1/3 and 2/3; `test` scores test/good against test/defect. A seed draws the hold-out,
k-means' start and the order of training. Scores are raw, the model is that of the last epoch, the
interval of each seed is a paired 95% bootstrap over images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.machine import describe
from cfa_index import (
    GoodImages,
    ModelBundle,
    ModelSpec,
    auroc,
    build,
    load_backbone,
    paired_auroc_difference,
    preset,
    set_threads,
    split_cells,
    train,
)

Split = Literal["dev", "test"]


def image_scores(bundle: ModelBundle, files: Sequence[Path]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Raw scores (n,) of some files, a few at a time: a verdict holds its map."""
    parts = [files[start : start + 32] for start in range(0, len(files), 32)]
    return np.array([verdict.score for part in parts for verdict in bundle.score(part)])


def auroc_of(labels: np.ndarray[Any, Any], scores: np.ndarray[Any, Any]) -> float:
    """The AUROC where both classes are there."""
    value = auroc(labels, scores)
    assert value is not None, "both classes are in every split"
    return value


def run_seed(
    cell_type: Literal["mono", "poly"], spec: ModelSpec, split: Split, weights: Path | None, folder: Path
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Labels (n,), scores before and after training (n,) of one seed. The features are shared by all seeds."""
    cells = split_cells(cell_type)
    source = cells.train_good[0].parent
    backbone = load_backbone(
        spec.features.backbone, spec.features.strides, size_px=spec.features.size_px, weights=weights
    )
    good = GoodImages(category=cell_type, source=source, images=cells.train_good)
    models, features = folder / f"models-{spec.seed}", folder / "features"
    built = build(
        good, spec, backbone=backbone, models_dir=models, features_dir=features, device=torch.device("cpu")
    )
    train(models, cell_type, spec.train, features_dir=features)
    before = ModelBundle.load(built.path)
    after = ModelBundle.load(models / cell_type)
    if split == "dev":
        held_out = [source / uri for uri in built.manifest.held_out.uris]
        files, defects = [*held_out, *cells.uncertain], len(cells.uncertain)
    else:
        files, defects = [*cells.test_good, *cells.test_defect], len(cells.test_defect)
    labels = np.arange(len(files)) >= len(files) - defects
    return labels, image_scores(before, files), image_scores(after, files)


def summarise(runs: Sequence[tuple[Any, Any, Any]]) -> dict[str, Any]:
    """Mean and deviation over seeds, and the paired difference of training."""
    before = [auroc_of(labels, old) for labels, old, _ in runs]
    after = [auroc_of(labels, new) for labels, _, new in runs]
    differences = [paired_auroc_difference(labels, new, old) for labels, old, new in runs]
    return {
        "before": {
            "mean": float(np.mean(before)),
            "std": float(np.std(before, ddof=1)) if len(runs) > 1 else 0.0,
        },
        "after": {
            "mean": float(np.mean(after)),
            "std": float(np.std(after, ddof=1)) if len(runs) > 1 else 0.0,
        },
        "after_minus_before_by_seed": [list(map(float, one)) for one in differences],
    }


def change(spec: ModelSpec, changes: Sequence[str]) -> ModelSpec:
    """A spec with fields given as SECTION.FIELD=VALUE, the value as JSON or a plain word."""
    values = spec.to_dict()
    for one in changes:
        path, text = one.split("=", 1)
        *sections, name = path.split(".")
        target = values
        for section in sections:
            target = target[section]
        try:
            target[name] = json.loads(text)
        except ValueError:
            target[name] = text
    return ModelSpec.from_dict(values)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", choices=["dev", "test"], default="dev")
    parser.add_argument("--cells", choices=["mono", "poly"], action="append")
    parser.add_argument("--preset", default="recommended")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--set", action="append", default=[], help="SECTION.FIELD=VALUE, a field of the settings"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    set_threads(given.threads)
    base = preset(given.preset)
    base = replace(base, features=replace(base.features, backbone=given.backbone))
    base = change(base, given.set)
    print(describe(0, seeds=given.seeds, preset=given.preset, split=given.split, backbone=given.backbone))
    print(json.dumps(base.to_dict()))
    results = {}
    for cell_type in given.cells or ["mono", "poly"]:
        with tempfile.TemporaryDirectory() as name:
            runs = [
                run_seed(cell_type, replace(base, seed=seed), given.split, given.weights, Path(name))
                for seed in range(given.seeds)
            ]
        result = summarise(runs)
        results[cell_type] = result
        print(
            f"{cell_type}: image AUROC {100 * result['before']['mean']:.2f} ± {100 * result['before']['std']:.2f}"
            f" before, {100 * result['after']['mean']:.2f} ± {100 * result['after']['std']:.2f} after training"
        )
        for seed, (difference, low, high) in enumerate(result["after_minus_before_by_seed"]):
            print(
                f"    seed {seed}: after - before {100 * difference:+.2f} (95% {100 * low:+.2f} .. {100 * high:+.2f})"
            )
    if given.json:
        given.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

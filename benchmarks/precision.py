"""What `--precision bf16` does to scores, AUROC and false alarms, on the ELPV solar cells.

    python -m benchmarks.precision [--cells mono --cells poly] [--backbone efficientnet_lite0] [--seeds 3]

A model is built as `cfa-index build` does it, on the good training cells, its fifth held out. The test
cells are scored by that model in fp32 and in bf16. The threshold is the model's own, from held-out scores
in fp32. Intervals are paired 95% bootstraps over images. A backbone that is not EfficientNet-Lite0 has
random weights unless `--weights` names a file.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.elpv import auroc_of, image_scores
from benchmarks.machine import describe
from cfa_index import (
    GoodImages,
    ModelBundle,
    ModelSpec,
    build,
    load_backbone,
    paired_auroc_difference,
    preset,
    set_threads,
    split_cells,
)

PRECISIONS: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")


def measure(
    cell_type: Literal["mono", "poly"],
    spec: ModelSpec,
    weights: Path | Literal["random"] | None,
    folder: Path,
) -> str:
    """A line of the table for one seed."""
    cells = split_cells(cell_type)
    source = cells.train_good[0].parent
    features = spec.features
    backbone = load_backbone(
        features.backbone, features.strides, size_px=features.size_px, weights=weights, seed=spec.seed
    )
    built = build(
        GoodImages(category=cell_type, source=source, images=cells.train_good),
        spec,
        backbone=backbone,
        models_dir=folder / f"models-{spec.seed}",
        features_dir=folder / "features",
        device=torch.device("cpu"),
    )
    files = [*cells.test_good, *cells.test_defect]
    held_out = [source / uri for uri in built.manifest.held_out.uris]
    labels = np.arange(len(files)) >= len(cells.test_good)
    scores: dict[str, Any] = {}
    of_held_out: dict[str, Any] = {}
    for precision in PRECISIONS:
        bundle = ModelBundle.load(built.path, precision=precision)
        scores[precision] = image_scores(bundle, files)
        of_held_out[precision] = image_scores(bundle, held_out)
    assert bundle.threshold is not None, "a fifth of the images is held out"
    moved = scores["bf16"] / scores["fp32"] - 1
    difference = paired_auroc_difference(labels, scores["bf16"], scores["fp32"])
    alarms = {name: 100 * float((value[~labels] > bundle.threshold).mean()) for name, value in scores.items()}
    held = {name: 100 * float((value > bundle.threshold).mean()) for name, value in of_held_out.items()}
    changed = int(((scores["bf16"] > bundle.threshold) != (scores["fp32"] > bundle.threshold)).sum())
    return (
        f"{cell_type} seed {spec.seed}: image AUROC {100 * auroc_of(labels, scores['fp32']):.2f} fp32, "
        f"{100 * auroc_of(labels, scores['bf16']):.2f} bf16, difference {100 * difference[0]:+.3f} "
        f"(95% {100 * difference[1]:+.3f} .. {100 * difference[2]:+.3f})\n"
        f"    score bf16 / fp32 - 1: median {100 * np.median(moved):+.2f}%, "
        f"95% of |.| below {100 * np.quantile(abs(moved), 0.95):.2f}%, largest {100 * abs(moved).max():.2f}%\n"
        f"    above the fp32 threshold: test/good {alarms['fp32']:.2f}% fp32, {alarms['bf16']:.2f}% bf16; "
        f"held out {held['fp32']:.2f}%, {held['bf16']:.2f}%; "
        f"{changed} of {len(files)} verdicts changed"
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", choices=["mono", "poly"], action="append")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    set_threads(given.threads)
    base = preset("recommended")
    base = replace(base, features=replace(base.features, backbone=given.backbone))
    published = given.weights or given.backbone.startswith("efficientnet_lite")
    weights: Path | Literal["random"] | None = given.weights if published else "random"
    print(describe(0, seeds=given.seeds, backbone=given.backbone, weights=weights or "published"))
    for cell_type in given.cells or ["mono", "poly"]:
        with tempfile.TemporaryDirectory() as name:
            for seed in range(given.seeds):
                print(measure(cell_type, replace(base, seed=seed), weights, Path(name)), flush=True)


if __name__ == "__main__":
    main()

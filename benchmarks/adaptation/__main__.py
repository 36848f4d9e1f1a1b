"""Watch trainings epoch by epoch on the development cells, and draw the curves of docs/adaptation.md.

    python -m benchmarks.adaptation --output adaptation-output
    python -m benchmarks.adaptation --cells poly --case whitened --epochs 4

Development cells only: held-out good training cells against cells of defect probability 1/3 and 2/3.
Writes curves-CELLS-BACKBONE.png and curves-CELLS-BACKBONE.json for each cell type and backbone, and
prints what each case began and ended with.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.adaptation.cases import CASES
from benchmarks.adaptation.cells import load_cells
from benchmarks.adaptation.plots import draw_curves
from benchmarks.adaptation.watch import EpochRow, watch
from benchmarks.machine import describe
from cfa_index import FeatureSpec, load_backbone, set_threads, write_json


def main() -> None:
    """Parse, watch, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("adaptation-output"))
    parser.add_argument("--cells", choices=["mono", "poly"], action="append")
    parser.add_argument("--backbone", action="append", help="several are run in turn")
    parser.add_argument("--case", action="append", help="only cases whose name holds this text")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--memories", type=int, default=784)
    parser.add_argument("--images", type=int, default=160, help="fit cells an epoch")
    parser.add_argument("--limit", type=int, help="cells of each part, for a quick look")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    set_threads(given.threads)
    print(describe(given.seed, epochs=given.epochs, memories=given.memories, images=given.images))
    cases = [case for case in CASES if not given.case or any(text in case.name for text in given.case)]
    for name in given.backbone or ["efficientnet_lite0"]:
        features = FeatureSpec(backbone=name)
        backbone = load_backbone(name, features.strides, size_px=features.size_px)
        for cell_type in given.cells or ["mono", "poly"]:
            cells = load_cells(
                cell_type, backbone, features, images=given.limit, drawn=given.images, seed=given.seed
            )
            found: dict[str, list[EpochRow]] = {}
            for case in cases:
                started = time.perf_counter()
                rows = watch(
                    case,
                    cells,
                    memories=given.memories,
                    epochs=given.epochs,
                    images=given.images,
                    seed=given.seed,
                )
                found[case.name] = list(rows)
                print(
                    _line(cell_type, case.name, found[case.name], time.perf_counter() - started), flush=True
                )
            stem = given.output / f"curves-{cell_type}-{name}"
            write_json(
                stem.with_suffix(".json"),
                {case: [row.to_dict() for row in epochs] for case, epochs in found.items()},
            )
            draw_curves(found, f"{cell_type} cells, {name}, M = {given.memories}", stem.with_suffix(".png"))


def _line(cell_type: str, case: str, rows: list[EpochRow], seconds: float) -> str:
    first, last = rows[0], rows[-1]
    best = max(rows, key=lambda row: row.image_auroc)
    return (
        f"{cell_type} {case:42s} AUROC {100 * first.image_auroc:5.2f} -> {100 * last.image_auroc:5.2f} "
        f"(best {100 * best.image_auroc:5.2f} at {best.epoch}), L_rep terms active "
        f"{100 * max(row.repelled for row in rows):4.1f}%, r {first.radius:.3g} -> {last.radius:.3g}, "
        f"distance good {first.distance_normal:.3g} -> {last.distance_normal:.3g}, doubtful "
        f"{first.distance_doubtful:.3g} -> {last.distance_doubtful:.3g}, spread {first.spread:.3g} -> "
        f"{last.spread:.3g}, {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()

"""The epochs of several cases as curves: one picture a cell type and backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.adaptation.watch import EpochRow

_PANELS: tuple[tuple[str, str, bool], ...] = (
    ("image_auroc", "image AUROC, development", False),
    ("attraction", "L_att", True),
    ("repulsion", "L_rep", False),
    ("radius", "radius r", False),
    (
        "distance_normal",
        "mean distance to the nearest memory, good before training = 1\n(solid: good, dashed: doubtful)",
        False,
    ),
    ("spread", "spread of the good patches", True),
)


def draw_curves(rows: Mapping[str, Sequence[EpochRow]], title: str, path: Path) -> None:
    """Write one PNG: a panel a figure, a line a case.

    Args:
        rows: the epochs of each case, by its name.
        title: of the picture.
        path: of the PNG.
    """
    figure = Figure(figsize=(15, 9.5), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).ravel()
    for axis, (field, label, is_log) in zip(axes, _PANELS, strict=True):
        for number, (name, epochs) in enumerate(rows.items()):
            colour, marker = f"C{number % 10}", "o" if number < 10 else "^"
            x = [row.epoch for row in epochs]
            style = {"color": colour, "marker": marker, "markersize": 3.5, "linewidth": 1.3}
            unit = epochs[0].distance_normal if field == "distance_normal" else 1.0
            axis.plot(x, [getattr(row, field) / unit for row in epochs], label=name, **style)
            if field == "distance_normal":
                axis.plot(x, [row.distance_doubtful / unit for row in epochs], linestyle="--", **style)
        if is_log:
            axis.set_yscale("log")
        axis.set_title(label, fontsize=11)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.25)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=10, frameon=False)
    figure.suptitle(title, fontsize=13)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)

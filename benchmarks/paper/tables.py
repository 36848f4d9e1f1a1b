"""From results to numbers: `tables.md` for people, `tables.csv` and `tables.json` for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from benchmarks import complexity
from benchmarks.complexity import ComplexityRow
from benchmarks.paper import published as p
from benchmarks.paper.cells import Cell, Options
from benchmarks.paper.plan import Entry, entries
from benchmarks.paper.run import Result

SCHEMA_VERSION = 1
TITLES = {
    "1": "Table 1: complexity of modelling and size of the bank",
    "2": "Table 2: MVTec AD, WRN50-2",
    "3": "Table 3: RD-MVTec AD",
    "4": "Table 4: image AUROC by class, MVTec AD, WRN50-2",
    "5": "Table 5: what is trained, CFA++, all classes",
    "6": "Table 6: compression, CFA++ with WRN50-2, gamma_d = gamma_c, all classes",
    "7": "Table 7: backbones, CFA++, all classes",
    "A": "Table A, not in the paper: one change at a time, CFA of the crop, ResNet18",
}
_NOTES = {
    "1": "Measured here, from stored features to a bank; the last column is what the paper states. An exponent b says that the quantity grows as images^b; what `python -m benchmarks.complexity --help` says"
    " of `peak` and of the computed row holds here.",
    "2": "`CFA, resize only` is published in the code's README, for all classes only.",
    "3": "The random crop is part of the rotated data, so ours is one model of the whole rotated image, not a"
    " fused pair; the copy is drawn anew for every seed, image and mask together.",
    "4": "`CFA, resize only` is published in the code's README; our reading of it names two classes.",
    "5": "`neither` is phi_0 untrained, bank and Eq. 5 as elsewhere.",
    "6": "Speed as published, on a Quadro RTX 5000. Ours as ratios to the backbone: `python -m benchmarks.stages"
    " --gamma 1 --gamma 1/2 --gamma 1/4 --gamma 1/8`, the line `whole inference`.",
}
_MADE_UP = (
    "**Made-up pictures of 64 px, random weights, two epochs: these numbers show that every cell runs. As"
    " accuracy they mean nothing.**"
)
_LEGEND = (
    "In percent: published / ours / difference; raw scores, pixels at the images' own resolution. `*`: copied by"
    " the paper from other systems, printed as published and not run here."
)
_LEGEND_LAST = (
    "Ours is the mean, with the standard deviation where there are several, over {seeds} seed(s) at the last epoch;"
    " CFA++ is the fused pair of the crop's and the whole frame's model."
)
_LEGEND_PUBLISHED = (
    "`[published protocol]`: the best epoch *on the test set*, each metric by itself, and CFA++ the better of crop"
    " and resize-only *for each class on the test set*, one seed. That is how the published numbers were made. It"
    " overstates what a user will see, who has no labels to choose by."
)


@dataclass(frozen=True, kw_only=True)
class Value:
    """Ours, of one entry, in percent.

    Attributes:
        mean, deviation: over seeds, of the mean over classes; None where a cell failed or is missing, and
            the deviation also with a single seed.
        seeds, classes: how many of each.
        note: why there is no mean.
    """

    mean: float | None = None
    deviation: float | None = None
    seeds: int = 0
    classes: int = 0
    note: str = ""


def value_of(entry: Entry, results: Mapping[Cell, Result]) -> Value:
    """The mean over classes, then over seeds; of several cells for one class the better counts."""
    by_seed: dict[int, list[float]] = {}
    missing, failed, without = 0, 0, 0
    for alternatives in entry.classes:
        found = [results.get(cell) for cell in alternatives]
        done = [one for one in found if one is not None and not one.error]
        values = [value for one in done if (value := one.metrics.get(entry.metric)) is not None]
        missing += any(one is None for one in found)
        failed += any(one is not None and bool(one.error) for one in found)
        without += len(done) == len(alternatives) and not values
        if values:
            by_seed.setdefault(alternatives[0].seed, []).append(100 * max(values))
    classes = len({alternatives[0].category for alternatives in entry.classes})
    seeds = len({alternatives[0].seed for alternatives in entry.classes})
    counts = {"failed": failed, "not run yet": missing, "without this metric": without}
    note = ", ".join(f"{count} of {len(entry.classes)} {what}" for what, count in counts.items() if count)
    if note or not by_seed:
        return Value(seeds=seeds, classes=classes, note=note)
    means = [fmean(values) for values in by_seed.values()]
    deviation = stdev(means) if len(means) > 1 else None
    return Value(mean=fmean(means), deviation=deviation, seeds=seeds, classes=classes)


def difference(entry: Entry, value: Value) -> float | None:
    """Ours less the published, in points.

    None where the two are means over different numbers of classes, and where the published is a misprint.
    """
    if entry.published is None or value.mean is None or value.classes != entry.of or _misprint(entry):
        return None
    return value.mean - entry.published


def _misprint(entry: Entry) -> str:
    return p.MISPRINTS.get((entry.table, entry.row, entry.column), "")


def records(options: Options, results: Mapping[Cell, Result]) -> list[dict[str, Any]]:
    """Every number as a flat record: the rows of the CSV and of the JSON."""
    found = []
    for entry in entries(options):
        value = value_of(entry, results)
        first = entry.classes[0][0] if entry.classes else None
        found.append(
            {
                "table": entry.table,
                "row": entry.row,
                "column": entry.column,
                "metric": entry.metric,
                "published": entry.published,
                "copied_from_another_system": entry.copied,
                "ours": value.mean,
                "deviation": value.deviation,
                "difference": difference(entry, value),
                "seeds": value.seeds,
                "classes": value.classes,
                "classes_published": entry.of,
                "protocol": first.protocol if first else None,
                "settings": _settings(entry),
                "note": value.note or _misprint(entry),
            }
        )
    return found


def _settings(entry: Entry) -> str:
    if not entry.classes:
        return ""
    return " or, if better, ".join(cell.settings_text() for cell in entry.classes[0])


def document(options: Options, results: Mapping[Cell, Result]) -> dict[str, Any]:
    """`tables.json`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "made_up_data": options.quick,
        "categories": list(options.categories),
        "seeds": list(options.seeds),
        "table_1": _complexity(results),
        "numbers": records(options, results),
        "failed": [
            {"cell": str(cell), "error": result.error} for cell, result in results.items() if result.error
        ],
    }


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """`tables.csv`: a row a number."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["table"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown(options: Options, results: Mapping[Cell, Result]) -> str:
    """`tables.md`."""
    parts = ["# The paper's tables, published and ours", *([_MADE_UP] if options.quick else [])]
    if len(options.categories) < len(p.CLASSES):
        parts.append(
            f"Run on {len(options.categories)} of 15 classes ({', '.join(options.categories)}): where the published"
            " number is a mean over more classes than ours, no difference is given."
        )
    parts.append(_LEGEND)
    if "last" in options.protocols:
        parts.append(_LEGEND_LAST.format(seeds=len(options.seeds)))
    if "published" in options.protocols:
        parts.append(_LEGEND_PUBLISHED)
    if 1 in options.tables:
        parts += [f"## {TITLES['1']}", _table_1(results), _NOTES["1"]]
    by_table: dict[str, list[Entry]] = {}
    for entry in entries(options):
        by_table.setdefault(entry.table, []).append(entry)
    for name, several in by_table.items():
        parts += [f"## {TITLES[name]}", _pivot(several, results)]
        notes = [note for place, note in p.MISPRINTS.items() if place[0] == name]
        parts += [
            *([_NOTES[name]] if name in _NOTES else []),
            *dict.fromkeys(f"Misprint: {n}." for n in notes),
        ]
        settings: dict[str, str] = {}
        for entry in several:
            if entry.classes:
                settings.setdefault(_settings(entry), entry.column if name in "234" else entry.row)
        parts.append("Settings:\n\n" + "\n".join(f"- {what}: {text}" for text, what in settings.items()))
    failed = {cell: result.error for cell, result in results.items() if result.error}
    if failed:
        parts.append("## Cells that failed")
        parts.append("\n".join(f"- {cell}: {error}" for cell, error in failed.items()))
    return "\n\n".join(parts) + "\n"


def _pivot(several: Sequence[Entry], results: Mapping[Cell, Result]) -> str:
    columns = list(dict.fromkeys(entry.column for entry in several))
    lines: dict[str, dict[str, str]] = {}
    for entry in several:
        lines.setdefault(entry.row, {})[entry.column] = _text(entry, value_of(entry, results))
    head = "class" if several[0].table == "4" else ""
    return grid(
        [head, *columns], [[row, *(line.get(one, "") for one in columns)] for row, line in lines.items()]
    )


def _text(entry: Entry, value: Value) -> str:
    """One cell of a Markdown table."""
    digits = 2 if entry.table == "6" and entry.metric == "pixel_auroc" else 1
    was = "–" if entry.published is None else f"{entry.published:.{digits}f}"
    if entry.metric == "images_per_second":
        return f"{entry.published:.0f}"
    if _misprint(entry):
        was += " (misprint)"
    if entry.copied:
        return f"{was}*"
    if not entry.classes:
        return f"{was} / – / –"
    if value.mean is None:
        return f"{was} / {value.note} / –"
    ours = f"{value.mean:.2f}" + (f" ± {value.deviation:.2f}" if value.deviation is not None else "")
    points = difference(entry, value)
    return f"{was} / {ours} / " + ("–" if points is None else f"{points:+.2f}")


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _complexity(results: Mapping[Cell, Result]) -> list[dict[str, Any]]:
    return [
        row
        for cell, result in results.items()
        if cell.task == "complexity"
        for row in result.details.get("rows", [])
    ]


def _table_1(results: Mapping[Cell, Result]) -> str:
    rows = [ComplexityRow(**row) for row in _complexity(results)]
    return complexity.table(rows) if rows else "Not measured."

"""What `cfa-index study` prints: the plan, the table with its frontier, and the documents behind `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cfa_index import StudyPlan, StudyReport, ratio_text
from cfa_index_cli.console import Session, percent

_PLAN_HEADER = ("index", "bank", "size", "gamma_d", "seconds")
_HEADER = ("index", "bank", "g_d", "MiB", "ms", "img/s", "recall", "AUROC", "pixel")


def show_plan(out: Session, plan: StudyPlan) -> None:
    """Every cell with the time that it may take, and the sum."""
    rows = []
    for planned in plan.cells:
        left = f"{plan.cell_s(planned):.0f}"
        state = "measured" if planned.done else "cannot be made" if planned.error else left
        cell = planned.cell
        rows.append([cell.index, cell.method, f"{cell.bank_size:,}", ratio_text(cell.gamma_d), state])
    out.table("cells", _PLAN_HEADER, rows)
    for error in dict.fromkeys(planned.error for planned in plan.cells if planned.error):
        out.say(error)
    out.say(plan.describe())


def show_report(out: Session, report: StudyReport) -> None:
    """The cells, frontier marked, why some could not be made, and where the results are."""
    labelled = any(row.image_auroc is not None for row in report.rows)
    columns = len(_HEADER) - (not labelled) - all(row.pixel_auroc is None for row in report.rows)
    made = [row for row in report.rows if not row.error]
    rows = []
    for row in made:
        figures = [
            *(_figure(row.resident_bytes and row.resident_bytes / 2**20), _figure(row.image_ms_p50)),
            *(_figure(row.images_per_s_8), percent(row.recall_at_1)),
            *(percent(row.image_auroc), percent(row.pixel_auroc)),
        ]
        mark = "* " if row.on_frontier else "  "
        bank = f"{row.method} {row.bank_size}"
        rows.append([mark + row.index, bank, ratio_text(row.gamma_d), *figures][:columns])
    out.table(report.category, _HEADER[:columns], rows)
    out.say("\n".join(report.facts))
    out.say("MiB: in memory for a search; ms: an image alone, median; img/s: in batches of 8; both from the")
    out.say("backbone's features on; recall: at 1, against Flat; g_d: gamma_d")
    accuracy = "AUROC" if labelled else "recall@1"
    out.say(f"* on the frontier: no other cell is better in memory, latency and {accuracy} at once")
    for row in report.rows:
        if row.error:
            out.say(f"not made: {row.index} on {row.method} {row.bank_size}: {row.error}")
    for file in report.files:
        out.say(str(file))


def _figure(value: float | None) -> str:
    """Three digits, and no exponent."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plan_document(category: str, plan: StudyPlan) -> Mapping[str, Any]:
    """The document of a dry run."""
    return {
        "schema_version": 1,
        "category": category,
        "dry_run": True,
        "features_s": plan.features_s,
        "left_s": plan.left_s,
        "cells": [
            {
                **asdict(planned.cell),
                "measured": planned.done is not None,
                "expected_s": plan.cell_s(planned),
                "error": planned.error or None,
            }
            for planned in plan.cells
        ],
    }


def report_document(report: StudyReport) -> Mapping[str, Any]:
    """The document of a study."""
    return {
        "schema_version": 1,
        "category": report.category,
        "dry_run": False,
        "facts": list(report.facts),
        "files": [str(file) for file in report.files],
        "cells_measured": report.measured,
        "images_rejected": report.rejected,
        "rows": [{**asdict(row), "error": row.error or None} for row in report.rows],
    }

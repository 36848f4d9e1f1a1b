"""The table of indexes that were tried."""

from __future__ import annotations

from collections.abc import Sequence

from cfa_index import IndexTrial
from cfa_index_cli.console import Session

_HEADER = ("index", "FAISS factory, settings", "recall@1", "resident", "an image", "verdict")


def show_trials(out: Session, category: str, trials: Sequence[IndexTrial]) -> None:
    """Print every candidate and why it fell out."""
    rows = []
    for trial in trials:
        state = trial.state
        settings = state.describe_parameters() if state else ""
        rows.append(
            [
                trial.name,
                ", ".join(filter(None, [trial.factory, settings])),
                f"{state.recall_at_1:.4f}" if state else "-",
                f"{state.resident_bytes / 2**20:.4g} MiB" if state else "-",
                f"{state.latency_ms:.3g} ms" if state else "-",
                trial.verdict,
            ]
        )
    out.table(f"{category}: indexes tried", _HEADER, rows)

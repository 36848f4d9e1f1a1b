"""One interactive page of a study that needs nothing else: plotly's one home, an optional library."""

from __future__ import annotations

import html
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from string import Template
from typing import Any

from cfa_index.errors import OutputError
from cfa_index.files import printable, write_bytes
from cfa_index.report.pages import in_script, page_part
from cfa_index.report.study_row import AXES, PALETTE, StudyRow, accuracy_of, index_names, views

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
_LARGEST_DIVISOR = 64


def require_plotly() -> None:
    """Raise OutputError, with what to install, where plotly is missing."""
    if importlib.util.find_spec("plotly") is None:
        raise OutputError(
            expected="the Python package plotly, which draws the page",
            got="no such package",
            remedy="run: pip install 'cfa-index[study]'",
        )


def ratio_text(ratio: float) -> str:
    """A ratio as a person writes it, `1/4` for 0.25; it reads back as the same number."""
    fraction = Fraction(ratio).limit_denominator(_LARGEST_DIVISOR)
    return str(fraction) if fraction and float(fraction) == ratio else repr(ratio)


def write_study_page(path: Path, rows: Sequence[StudyRow], *, title: str, facts: Sequence[str]) -> None:
    """Write the page, whole; plotly's JavaScript is in it, and it asks no one for anything.

    A point shows its settings under the pointer, and its command when it is clicked, which is copied where
    the browser allows it. Axes are chosen, and logarithmic or not; indexes are filtered.

    Args:
        path: of the page.
        rows: cells, those that could not be made among them.
        title: a line; facts: more of it, in small. Neither is taken for HTML.

    Raises:
        OutputError: plotly is not installed, or the page cannot be written.
    """
    require_plotly()
    from plotly.offline import get_plotlyjs

    listed = list(rows)
    text = Template(page_part("study_page.html")).substitute(
        title=html.escape(printable(title)),
        facts=html.escape(printable(" · ".join(facts))),
        objectives=html.escape(f"memory, latency and {accuracy_of(listed).label}"),
        document=in_script(_document(listed)),
        plotly=get_plotlyjs(),
    )
    write_bytes(path, text.encode())


def _document(rows: list[StudyRow]) -> dict[str, Any]:
    names = index_names(rows)
    return {
        "axes": [asdict(one) for one in AXES if any(one.of(row) is not None for row in rows)],
        "views": [{"title": title, "x": x.name, "y": y.name} for title, x, y in views(rows)],
        "indexes": [
            {"name": name, "colour": PALETTE[at % len(PALETTE)], "symbol": _SYMBOLS[at % len(_SYMBOLS)]}
            for at, name in enumerate(names)
        ],
        "rows": [
            {
                **asdict(row),
                "disk_bytes": row.disk_bytes,
                "number": number,
                "gamma_d_text": ratio_text(row.gamma_d),
            }
            for number, row in enumerate(rows)
        ],
    }

"""The page of a scored folder: one file that needs no network, and pictures beside it."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfa_index.errors import SpecError
from cfa_index.files import printable, write_bytes
from cfa_index.report.pages import csp_hash, in_script, packed, page_part


@dataclass(frozen=True, kw_only=True)
class ScoredRow:
    """An image that the page names, with its raw score.

    Attributes:
        uri: its name, as text; any characters.
        folder: its place in `ScorePage.folders`.
        thumbnail, panel: files of its pictures, relative to the page and in safe characters only; empty
            when there are none.
    """

    uri: str
    folder: int
    score: float
    thumbnail: str = ""
    panel: str = ""


@dataclass(frozen=True, kw_only=True)
class RejectedRow:
    """An image without a score, and why; `folder` and `reason` are places in the page's lists."""

    uri: str
    folder: int
    reason: int
    error: str


@dataclass(frozen=True, kw_only=True)
class FolderScores:
    """The scores of one folder, or of several that are shown as one.

    Attributes:
        name: as text; any characters.
        values: without `ScorePage.edges` its scores, float32 (n,), ascending; with them how many scores lie
            in each bin, uint32 (bins,).
        rejected: images without a score, by reason.
    """

    name: str
    values: NDArray[np.float32] | NDArray[np.uint32]
    rejected: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ScorePage:
    """All that the page says.

    Attributes:
        title: a line.
        facts: (label, value) each, such as the model and the folder.
        threshold: of the run; scores above it are anomalous. None: there is none.
        folders: every image is in exactly one of them.
        edges: float64 (bins + 1,), ascending: bin i counts scores in (edges[i], edges[i + 1]]. The page moves
            a threshold to the nearest edge, where counts are exact. None: `folders` hold all scores, and
            counts are exact at every threshold.
        reasons: why images were rejected, a line each.
        top, bottom: images of the highest scores, highest first, and of the lowest, lowest first.
        rejected: some of the images without a score.
        links: (file relative to the page, label) of what else is there.
        credit: whom the images are from; empty for nobody.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    threshold: float | None
    folders: tuple[FolderScores, ...]
    reasons: tuple[str, ...]
    top: tuple[ScoredRow, ...]
    bottom: tuple[ScoredRow, ...]
    rejected: tuple[RejectedRow, ...]
    edges: NDArray[np.float64] | None = None
    links: tuple[tuple[str, str], ...] = ()
    credit: str = ""

    def __post_init__(self) -> None:
        bins = None if self.edges is None else len(self.edges) - 1
        wanted = np.float32 if bins is None else np.uint32
        for folder in self.folders:
            if folder.values.dtype != wanted or bins not in (None, len(folder.values)):
                raise SpecError(
                    expected="ascending float32 scores in each folder"
                    if bins is None
                    else f"{bins} uint32 counts",
                    got=f"{folder.values.dtype} {folder.values.shape} in {folder.name!r}",
                    remedy="make the page from one survey",
                )


def score_page_text(page: ScorePage) -> str:
    """The page as HTML: pure, and as long as what `page` holds.

    Nothing in it is taken for HTML or script, and the page's Content-Security-Policy lets no other script
    than its own run.
    """
    style, script = page_part("score_page.css"), page_part("score_page.js")
    return Template(page_part("score_page.html")).substitute(
        title=html.escape(printable(page.title)),
        style=style,
        style_hash=csp_hash(style),
        script=script,
        script_hash=csp_hash(script),
        document=in_script(_document(page)),
    )


def write_score_page(path: Path, page: ScorePage) -> None:
    """Write the page, whole. Raises OutputError."""
    write_bytes(path, score_page_text(page).encode())


def _document(page: ScorePage) -> dict[str, Any]:
    """What the script reads; the folders' values follow each other in one packed array."""
    empty = np.empty(0, dtype=np.float32)
    return {
        "facts": page.facts,
        "threshold": page.threshold,
        "edges": None if page.edges is None else packed(page.edges.astype(np.float64)),
        "values": packed(np.concatenate([folder.values for folder in page.folders] or [empty])),
        "folders": [
            {"name": folder.name, "values": len(folder.values), "rejected": folder.rejected}
            for folder in page.folders
        ],
        "reasons": page.reasons,
        "top": [asdict(row) for row in page.top],
        "bottom": [asdict(row) for row in page.bottom],
        "rejected": [asdict(row) for row in page.rejected],
        "links": page.links,
        "credit": page.credit,
    }

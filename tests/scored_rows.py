"""Made-up rows of a scored folder, and the page of them, as if it had been scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cfa_index.report import ScoredRow, ScorePage, ScoreRows, Survey, Tally

HOSTILE_NAME = "<img src=x onerror=alert(1)>.png"
HOSTILE_FOLDER = "</script><script>alert(2)</script>"
THRESHOLD = 0.75
PART = 256


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Rows as arrays: (n,) scores with NaN where there is an error."""

    uris: list[str]
    scores: NDArray[np.float32]
    errors: list[str]

    def parts(self, size: int = PART) -> Iterator[ScoreRows]:
        """Some rows at a time."""
        for start in range(0, len(self.uris), size):
            part = slice(start, min(start + size, len(self.uris)))
            yield ScoreRows(
                image_ids=np.arange(part.start, part.stop),
                uris=self.uris[part],
                scores=self.scores[part],
                errors=self.errors[part],
            )

    def above(self, limit: float, folder: str = "") -> int:
        """How many scores are above a threshold, counted one by one."""
        return sum(
            float(score) > limit
            for uri, score in zip(self.uris, self.scores, strict=True)
            if uri.startswith(folder) and np.isfinite(score)
        )


def scored_rows(count: int, folders: tuple[str, ...] = ("left", "right")) -> Scored:
    """Scores of two humps in turn over the folders; every 50th image has an error, of one of three kinds."""
    rng = np.random.default_rng(0)
    scores = np.where(rng.random(count) < 0.1, rng.normal(1.2, 0.2, count), rng.gamma(20, 0.02, count))
    scores = scores.astype(np.float32)
    uris = [f"{folders[number % len(folders)]}/{number:06d}.png" for number in range(count)]
    errors = [""] * count
    for number in range(7, count, 50):
        scores[number] = np.nan
        errors[number] = (
            f"expected an image in /data/{uris[number]}, got 0 bytes; export it again or remove it",
            f"expected to read {uris[number]}, got No such file or directory; check the path",
            f"expected at most 64 megapixels, got {number}x10000 = 100.5 megapixels in the given bytes; scale it",
        )[number // 50 % 3]
    return Scored(uris=uris, scores=scores, errors=errors)


def page_of(rows: Scored, folder: Path | None = None, *, gallery: int = 12, bottom: int = 5) -> ScorePage:
    """The page of rows; its pictures, all grey, are written into a folder if it is given."""
    survey = Survey()
    for part in rows.parts():
        survey.add(part)
    tally = Tally(survey, THRESHOLD, top=gallery, bottom=bottom)
    for part in rows.parts():
        tally.add(part)

    def named(score: float, image_id: int, uri: str, pictured: bool = False) -> ScoredRow:
        place = int(tally.folders.places([uri])[0])
        files = (f"report/{image_id:08d}_thumb.jpg", f"report/{image_id:08d}_panel.png")
        return ScoredRow(
            uri=uri,
            folder=place,
            score=score,
            **dict(zip(("thumbnail", "panel"), files if pictured else ("", ""), strict=True)),
        )

    top = tuple(named(*row, pictured=folder is not None) for row in tally.top)
    if folder is not None:
        (folder / "report").mkdir(parents=True, exist_ok=True)
        for row in top:
            Image.new("RGB", (32, 24), (90, 90, 90)).save(folder / row.thumbnail)
            Image.new("RGB", (600, 300), (200, 200, 200)).save(folder / row.panel)
    return ScorePage(
        title=f"cable: {HOSTILE_NAME}",
        facts=(("model", f"cable {HOSTILE_FOLDER}"), ("folder", HOSTILE_FOLDER)),
        threshold=THRESHOLD,
        folders=tally.folder_scores(),
        edges=tally.edges,
        reasons=tally.reasons,
        top=top,
        bottom=tuple(named(*row) for row in tally.bottom),
        rejected=tally.rejected,
        links=(("scores.csv", "all scores: scores.csv"), ("parts/", "Parquet parts")),
        credit=f"credit {HOSTILE_NAME}",
    )

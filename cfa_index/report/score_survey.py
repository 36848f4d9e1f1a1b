"""From the rows of a scored folder, a part at a time, to what its page holds: memory does not grow with them.

Two passes. `Survey` finds what has to be known first: the range of the scores and the folders' names.
`Tally` then counts, and keeps the highest and the lowest scores.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cfa_index.report.score_page import FolderScores, RejectedRow

EXACT_ROWS = 200_000
"""Up to so many scores a page holds them all; beyond that it counts them in bins."""
BINS = 4096
_FOLDERS, _FOLDERS_BINNED = 100, 24
"""Most folders that a page tells apart: each costs it 22 kB where scores are counted in bins."""
_DEEPEST = 8
_REASONS, _ROWS_A_REASON = 20, 25
_LONGEST_ERROR, _LONGEST_REASON = 300, 120
_OTHERS, _TOP, _OTHER_REASONS = "(other folders)", "(not in a subfolder)", "other reasons"


@dataclass(frozen=True, kw_only=True)
class ScoreRows:
    """Some rows: (n,) each; a score is NaN where there is none, an error then not empty."""

    image_ids: NDArray[np.int64]
    uris: Sequence[str]
    scores: NDArray[np.float32]
    errors: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Folders as a page tells them apart: those up to `depth`, what is deeper counted in the one above.

    Attributes:
        names: in the order of the page; if `others`, the last stands for all that is not named.
    """

    depth: int
    names: tuple[str, ...]
    others: bool

    def places(self, uris: Sequence[str]) -> NDArray[np.int64]:
        """The place in `names` of each image's folder, (n,)."""
        known = {name: place for place, name in enumerate(self.names)}
        last = len(self.names) - 1
        return np.array([known.get(_cut(uri, self.depth), last) for uri in uris], dtype=np.int64)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names as a person reads them."""
        named = self.names[:-1] if self.others else self.names
        return (*(name or _TOP for name in named), *((_OTHERS,) if self.others else ()))


def _cut(uri: str, depth: int) -> str:
    return "/".join(uri.split("/")[:-1][:depth])


@dataclass(kw_only=True)
class Survey:
    """The first pass.

    Attributes:
        images, scored: all of them, and those with a score.
        low, high: the least and the largest score; inf and -inf before the first.
    """

    images: int = 0
    scored: int = 0
    low: float = np.inf
    high: float = -np.inf
    _seen: dict[int, dict[str, None]] = field(
        default_factory=lambda: {depth: {} for depth in range(1, _DEEPEST + 1)}
    )
    _last_folder: str | None = None

    def add(self, rows: ScoreRows) -> None:
        """Look at some rows."""
        self.images += len(rows.uris)
        scores = rows.scores[np.isfinite(rows.scores)]
        if scores.size:
            self.scored += scores.size
            self.low, self.high = min(self.low, float(scores.min())), max(self.high, float(scores.max()))
        for uri in rows.uris:
            folder = uri.rpartition("/")[0]
            if folder != self._last_folder:
                self._last_folder = folder
                for depth, seen in self._seen.items():
                    if len(seen) <= _FOLDERS:  # one more than may be: it is known that there are too many
                        seen[_cut(uri, depth)] = None

    def folders(self, most: int) -> Folders:
        """The deepest level that has at most `most` folders; else the first of the highest, and all others."""
        for depth in range(_DEEPEST, 0, -1):
            if len(self._seen[depth]) <= most:
                return Folders(depth=depth, names=tuple(sorted(self._seen[depth])), others=False)
        return Folders(depth=1, names=(*list(self._seen[1])[: most - 1], "/"), others=True)

    def edges(self, threshold: float | None) -> NDArray[np.float64] | None:
        """(BINS + 1,) edges over all scores, the threshold one of them where it lies among the scores.

        None where the scores are few enough to be kept.
        """
        if self.scored <= EXACT_ROWS:
            return None
        below = float(np.nextafter(np.float32(self.low), np.float32(-np.inf)))
        edges = np.linspace(below, self.high, BINS + 1)
        if threshold is not None and below < threshold < self.high:
            inner = 1 + int(np.abs(edges[1:-1] - threshold).argmin())
            edges[inner] = threshold
        return edges


class Tally:
    """The second pass: counts, and the rows that the page names."""

    def __init__(self, survey: Survey, threshold: float | None, *, top: int, bottom: int) -> None:
        self.edges = survey.edges(threshold)
        self.folders = survey.folders(_FOLDERS if self.edges is None else _FOLDERS_BINNED)
        self._top, self._bottom = Extremes(top), Extremes(bottom)
        self._scores: list[NDArray[np.float32]] = []
        self._places: list[NDArray[np.uint8]] = []
        self._counts = np.zeros((len(self.folders.names), BINS), dtype=np.uint32)
        self._reasons: dict[str, int] = {}
        self._rejected = np.zeros((len(self.folders.names), _REASONS + 1), dtype=np.int64)
        self._examples: list[RejectedRow] = []
        self._examples_by_reason = [0] * (_REASONS + 1)

    def add(self, rows: ScoreRows) -> None:
        """Count some rows; each is given once."""
        places = self.folders.places(rows.uris)
        good = np.isfinite(rows.scores)
        scores = rows.scores[good]
        if self.edges is None:
            self._scores.append(scores)
            self._places.append(places[good].astype(np.uint8))
        else:
            bins = np.searchsorted(self.edges, scores.astype(np.float64), side="left") - 1
            np.add.at(self._counts, (places[good], bins.clip(0, BINS - 1)), 1)
        for row in np.flatnonzero(good).tolist():
            score, image_id = float(rows.scores[row]), int(rows.image_ids[row])
            self._top.add(score, image_id, rows.uris[row])
            self._bottom.add(-score, image_id, rows.uris[row])
        for row in np.flatnonzero(~good).tolist():
            self._reject(rows.uris[row], int(places[row]), rows.errors[row] or "no finite score")

    def _reject(self, uri: str, folder: int, error: str) -> None:
        reason = reason_of(error, uri)
        number = self._reasons.get(reason, _REASONS)
        if number == _REASONS and len(self._reasons) < _REASONS:
            number = self._reasons.setdefault(reason, len(self._reasons))
        self._rejected[folder, number] += 1
        if self._examples_by_reason[number] < _ROWS_A_REASON:
            self._examples_by_reason[number] += 1
            shown = error if len(error) <= _LONGEST_ERROR else error[: _LONGEST_ERROR - 1] + "…"
            self._examples.append(RejectedRow(uri=uri, folder=folder, reason=number, error=shown))

    @property
    def top(self) -> list[tuple[float, int, str]]:
        """(score, image_id, uri) of the highest scores, highest first; of equal ones the first image."""
        return self._top.ordered()

    @property
    def bottom(self) -> list[tuple[float, int, str]]:
        """(score, image_id, uri) of the lowest scores, lowest first, but for those in `top`."""
        above = {image_id for _, image_id, _ in self.top}
        lowest = ((-score, image_id, uri) for score, image_id, uri in self._bottom.ordered())
        return [row for row in lowest if row[1] not in above]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why images have no score, in the order of their first one."""
        others = (_OTHER_REASONS,) if self._rejected[:, _REASONS].any() else ()
        return (*self._reasons, *others)

    @property
    def rejected(self) -> tuple[RejectedRow, ...]:
        """Some of the images without a score: the first of each reason."""
        return tuple(self._examples)

    def folder_scores(self) -> tuple[FolderScores, ...]:
        """Each folder's scores or counts."""
        reasons = [*range(len(self._reasons)), *([_REASONS] if self._rejected[:, _REASONS].any() else [])]
        scores = np.concatenate(self._scores or [np.empty(0, dtype=np.float32)])
        places = np.concatenate(self._places or [np.empty(0, dtype=np.uint8)])
        return tuple(
            FolderScores(
                name=label,
                values=np.sort(scores[places == place]) if self.edges is None else self._counts[place],
                rejected=tuple(self._rejected[place, reasons].tolist()),
            )
            for place, label in enumerate(self.folders.labels)
        )


class Extremes:
    """The `count` largest keys of a stream; of equal ones those of the lowest ids. O(count) memory."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._heap: list[tuple[float, int, str]] = []

    def add(self, key: float, image_id: int, uri: str) -> None:
        """Offer one."""
        item = (key, -image_id, uri)
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, item)
        elif self._heap and item > self._heap[0]:
            heapq.heapreplace(self._heap, item)

    def ordered(self) -> list[tuple[float, int, str]]:
        """(key, image_id, uri), the largest first."""
        return [(key, -negative, uri) for key, negative, uri in sorted(self._heap, reverse=True)]


def reason_of(error: str, uri: str) -> str:
    """An error without what belongs to one image only: its name, what was measured, and the remedy."""
    text = re.sub(r"\bb'.*'|\bb\".*\"", "other bytes", error)
    text = text.partition("; ")[0].removeprefix("expected ")
    for name in (uri, uri.rpartition("/")[2]):
        text = re.sub(r" (?:in|at) (?:/[^;]*/)?" + re.escape(name), "", text).replace(name, "FILE")
    text = text.replace(" in the given bytes", "")
    wanted, got, found = text.partition(", got ")
    found = re.sub(r"(?<![\d.])(?!0(?![\d.]))\d[\d.]*", "N", found)
    return " ".join(f"{wanted}{got}{found}".split())[:_LONGEST_REASON] or "unknown"

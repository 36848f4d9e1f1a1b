"""The pictures of an evaluation: its worst misses, its best hits, and its features in two dimensions."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfa_index.bundle import ModelBundle
from cfa_index.errors import ImageError
from cfa_index.events import Listener, Notice, ignore, stage
from cfa_index.files import printable, writing
from cfa_index.images import TestImage, decode
from cfa_index.report import Outcome, VerdictPicture, require_matplotlib, verdict_panel
from cfa_index.workflows.ensemble import FusedMap, one_category, score_images
from cfa_index.workflows.evaluate import GOOD
from cfa_index.workflows.evaluation import Evaluation, TestRow
from cfa_index.workflows.feature_sample import draw_features
from cfa_index.workflows.labelled import mask_of

_PANEL = re.compile(r"(miss|hit)_[0-9]{2,}_.*\.png")


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """Where the figures draw the line: scores above `value` are anomalous."""

    value: float
    said: str


def prepare_figures(folder: Path) -> None:
    """See that figures can be drawn and written, before an evaluation takes its time.

    Raises:
        OutputError: matplotlib is not installed, or the folder cannot be made or written to.
    """
    require_matplotlib()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def draw_figures(
    models: ModelBundle | Sequence[ModelBundle],
    images: Sequence[TestImage],
    evaluation: Evaluation,
    folder: Path,
    *,
    count: int = 4,
    batch_size: int = 8,
    threads: int = 2,
    credit: str = "",
    listener: Listener = ignore,
) -> list[Path]:
    """Draw the panels of the worst misses and the best hits (Figure 4), and the features (Figure 3).

    A miss is a defect image at or below the threshold, or a good one above it; the worst is farthest on
    the wrong side. The threshold is the model's, or else that of the best image F1. Only the images shown
    are scored again. Panels of an earlier evaluation in the folder go.

    Args:
        models, images: as they were given to `evaluate`.
        evaluation: what it found.
        folder: for `miss_01_<defect>_<stem>.png`, `hit_01_...`, and `features.png` (`features_1.png`, ...
            for each of several models).
        count: most panels of each kind.
        batch_size, threads, listener: as for `evaluate`.
        credit: of the images, for the foot of each figure and the text `Copyright` of its PNG.

    Returns:
        The files, in that order.

    Raises:
        OutputError: see `prepare_figures`, or the disk is full.
    """
    bundles = one_category(models)
    prepare_figures(folder)
    for old in folder.iterdir():
        if _PANEL.fullmatch(old.name):
            with writing(old):
                old.unlink()
    cut = _cut(evaluation)
    chosen = worst_and_best(evaluation.rows, cut.value, count) if cut else []
    drawn: list[Path] = []
    with stage(listener, "figures", len(chosen) + len(bundles), "figures") as advance:
        paths = [images[at].path for _, at in chosen]
        scored_images = score_images(bundles, paths, batch_size=batch_size, threads=threads)
        for scored, (name, at) in zip(scored_images, chosen, strict=True):
            image, row = images[at], evaluation.rows[at]
            file = folder / f"{name}_{_tame(row.defect)}_{_tame(image.path.stem)}.png"
            for found in scored.states:
                assert cut is not None, "without a cut nothing is chosen"
                try:
                    picture = _picture(image, row, found, evaluation, cut)
                except ImageError as error:  # it was readable a moment ago
                    listener(Notice(message=f"no panel: {error}"))
                    continue
                verdict_panel(picture, footer=credit).save(file, credit)
                drawn.append(file)
            advance(1)
        for number, bundle in enumerate(bundles, start=1):
            file = folder / ("features.png" if len(bundles) == 1 else f"features_{number}.png")
            draw_features(bundle, images, evaluation.rows, file, threads=threads, credit=credit)
            drawn.append(file)
            advance(1)
    return drawn


def worst_and_best(rows: Sequence[TestRow], cut: float, count: int) -> list[tuple[str, int]]:
    """`miss_01`, `miss_02`, ..., `hit_01`, ... with their rows, at most `count` of each, worst and best first.

    Args:
        rows: of the test split; those that could not be read are passed over.
        cut: scores above it are anomalous.
        count: most of each kind.
    """
    right = {
        at: row.score - cut if row.defect != GOOD else cut - row.score
        for at, row in enumerate(rows)
        if not row.error
    }
    wrong = [at for at in right if (rows[at].defect != GOOD) != (rows[at].score > cut)]
    misses = sorted(wrong, key=lambda at: right[at])
    hits = sorted(
        (at for at in right if at not in wrong and rows[at].defect != GOOD), key=lambda at: -right[at]
    )
    return [
        (f"{kind}_{rank:02d}", at)
        for kind, found in (("miss", misses), ("hit", hits))
        for rank, at in enumerate(found[:count], start=1)
    ]


def _cut(evaluation: Evaluation) -> _Cut | None:
    if evaluation.threshold is not None:
        return _Cut(value=evaluation.threshold, said="the model's threshold")
    best = evaluation.whole.image.f1_threshold
    if best is None:
        return None
    # Its rule is score >= threshold; ours is score > cut.
    return _Cut(value=float(np.nextafter(best.value, -np.inf)), said="best F1 over the images")


def _picture(
    image: TestImage, row: TestRow, found: FusedMap, evaluation: Evaluation, cut: _Cut
) -> VerdictPicture:
    pixel = evaluation.whole.pixel
    segment = _Cut(value=pixel.f1.threshold, said="best F1 over all pixels") if pixel and pixel.f1 else cut
    return VerdictPicture(
        image=decode(image.path),
        anomaly_map=found.in_source,
        mask=mask_of(image, found.in_source.shape) if image.mask else None,
        defect=printable(row.defect),
        name=row.uri,
        score=row.score,
        outcome=_outcome(row, cut),
        threshold=cut.value,
        threshold_by=cut.said,
        segment_from=segment.value,
        segment_by=segment.said,
    )


def _outcome(row: TestRow, cut: _Cut) -> Outcome:
    if row.defect == GOOD:
        return "false alarm" if row.score > cut.value else "passed"
    return "found" if row.score > cut.value else "missed"


def _tame(name: str) -> str:
    """A name as a part of a file name."""
    return re.sub(r"[^\w.-]", "_", name)[:40]

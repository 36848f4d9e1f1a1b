"""What a person sees of a scored folder: report.html, and the pictures of its highest scores beside it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from cfa_index.bundle import ModelBundle
from cfa_index.errors import ImageError
from cfa_index.events import Listener, Notice, ignore, stage
from cfa_index.images import MAX_PIXELS
from cfa_index.places import Place
from cfa_index.report import (
    ScoredRow,
    ScorePage,
    ScoreRows,
    Survey,
    Tally,
    overlay,
    png_bytes,
    score_page_text,
)
from cfa_index.workflows.query import QueryResult, query, query_picture
from cfa_index.workflows.score_listing import Listing
from cfa_index.workflows.score_parts import PARTS, REPORT_FILE, Parts
from cfa_index.workflows.score_target import CSV_FILE

_PICTURES = "report"
_PICTURE = re.compile(r"\d+_(?:thumb\.jpg|panel\.png)")
_THUMBNAIL_PX = 320
_QUALITY = 85
_BOTTOM_ROWS = 20
_COPYRIGHT_TAG = 0x8298


def write_report(
    bundle: ModelBundle,
    source: Place,
    target: Place,
    *,
    shard_images: int,
    threshold: float | None,
    max_pixels: int = MAX_PIXELS,
    gallery: int = 60,
    credit: str = "",
    facts: Sequence[tuple[str, str]] = (),
    listener: Listener = ignore,
) -> None:
    """Write report.html and report/ into a target whose parts and list are whole; those of before are replaced.

    The parts are read twice, one at a time. The images of the gallery are scored once more, for their maps and
    the normal patches that they matched; one that is gone, or cannot be read any more, has no picture.

    Args:
        bundle: the model that made the scores.
        source: of the images.
        target: with the parts; held by the caller.
        shard_images: images a part, as when they were made.
        threshold: that was applied.
        max_pixels: as in `decode`.
        gallery: images of the highest scores that are shown, with 0.2 MB of pictures each.
        credit: whom the images are from; on the page and in the pictures.
        facts: (label, value) each, for the head of the page beside the model, the folder and the versions.
        listener: told of progress.

    Raises:
        OutputError: the target cannot be written, or its list was changed.
    """
    survey = Survey()
    for rows in _rows(target):
        survey.add(rows)
    tally = Tally(survey, threshold, top=gallery, bottom=_BOTTOM_ROWS)
    for rows in _rows(target):
        tally.add(rows)
    show = partial(query, bundle, threshold=threshold, max_pixels=max_pixels)
    top = tuple(_pictured(show, source, target, tally, shard_images, credit, listener))
    page = ScorePage(
        title=f"{bundle.manifest.category}: {survey.images:,} images",
        facts=(*_facts(bundle, source), *facts),
        threshold=threshold,
        folders=tally.folder_scores(),
        edges=tally.edges,
        reasons=tally.reasons,
        top=top,
        bottom=tuple(_row(tally, score, uri) for score, _, uri in tally.bottom),
        rejected=tally.rejected,
        links=((CSV_FILE, "all scores: scores.csv"), (f"{PARTS}/", "Parquet parts")),
        credit=credit,
    )
    target.write(REPORT_FILE, score_page_text(page).encode())
    shown = {name for row in top for name in (row.thumbnail, row.panel)}
    for name in target.names(_PICTURES):
        if _PICTURE.fullmatch(name) and f"{_PICTURES}/{name}" not in shown:
            target.remove(f"{_PICTURES}/{name}")


def _rows(target: Place) -> Iterator[ScoreRows]:
    """The parts in order, one at a time."""
    for table in Parts(target).tables():
        yield ScoreRows(
            image_ids=table["image_id"].to_numpy(),
            uris=[uri or "" for uri in table["uri"].to_pylist()],
            scores=table["score"].to_numpy().astype(np.float32),
            errors=[error or "" for error in table["error"].to_pylist()],
        )


def _pictured(
    show: Callable[[Path | bytes], QueryResult],
    source: Place,
    target: Place,
    tally: Tally,
    shard_images: int,
    credit: str,
    listener: Listener,
) -> Iterator[ScoredRow]:
    """The rows of the highest scores, their pictures written."""
    listing = Listing(source, target, shard_images)
    with stage(listener, "report", len(tally.top), "images") as advance:
        for score, image_id, uri in tally.top:
            # Names of our own: an image's may hold anything.
            thumbnail, panel = (f"{_PICTURES}/{image_id:08d}_{kind}" for kind in ("thumb.jpg", "panel.png"))
            try:
                result = show(source.source(listing.entry(image_id).path))
            except ImageError as error:
                listener(Notice(message=f"no picture: {error}"))
                yield _row(tally, score, uri)
            else:
                heat = overlay(
                    result.image, result.verdict.anomaly_map, result.verdict.frame, result.threshold
                )
                target.write(thumbnail, _thumbnail(heat, credit))
                target.write(panel, png_bytes(query_picture(result, footer=credit), credit))
                yield _row(tally, score, uri, thumbnail, panel)
            advance()


def _row(tally: Tally, score: float, uri: str, thumbnail: str = "", panel: str = "") -> ScoredRow:
    folder = int(tally.folders.places([uri])[0])
    return ScoredRow(uri=uri, folder=folder, score=score, thumbnail=thumbnail, panel=panel)


def _thumbnail(picture: Image.Image, credit: str) -> bytes:
    """A small JPEG; a credit becomes its EXIF tag `Copyright`."""
    small = picture.copy()
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    exif = Image.Exif()
    if credit:
        exif[_COPYRIGHT_TAG] = credit
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY, exif=exif)
    return buffer.getvalue()


def _facts(bundle: ModelBundle, source: Place) -> list[tuple[str, str]]:
    manifest = bundle.manifest
    return [
        ("model", f"{manifest.category}, generation {int(manifest.generation)}, {bundle.sha256[:12]}"),
        ("backbone", manifest.spec.features.backbone),
        ("folder", source.uri),
        ("made", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("versions", f"cfa-index {version('cfa-index')}, torch {version('torch')}"),
    ]

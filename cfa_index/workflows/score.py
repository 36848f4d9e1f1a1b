"""Score a folder: Parquet parts and a CSV, a row an image, broken images too."""

from __future__ import annotations

import csv
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cfa_index.bank import shared_threads
from cfa_index.bundle import ModelBundle
from cfa_index.engines import run_shards
from cfa_index.errors import DatasetError, ImageError, OutputError
from cfa_index.events import Listener, Notice, ignore, stage
from cfa_index.files import atomic_path, printable, sha256_of_json, write_json, writing
from cfa_index.images import Frame, decode, list_images, load_batches
from cfa_index.report import overlay, save_picture

SCHEMA_VERSION = 1
_SHARD_IMAGES = 512
_FINGERPRINT = "files"
_FIELDS: list[tuple[str, pa.DataType]] = [
    ("image_id", pa.int64()),
    ("uri", pa.string()),
    ("score", pa.float32()),
    ("is_anomalous", pa.bool_()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("error", pa.string()),
    ("model_sha", pa.string()),
]
_SCHEMA = pa.schema(_FIELDS)


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """What a run left in its target.

    Attributes:
        output: the target folder, with parts/, scores.csv, run.json and heatmaps/ if asked.
        images, anomalous, rejected: rows, those above the threshold, those with an error.
        resumed: rows that an earlier run had left.
    """

    output: Path
    images: int
    anomalous: int
    rejected: int
    resumed: int
    threshold: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"schema_version": SCHEMA_VERSION, **self.__dict__, "output": str(self.output)}


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """Up to `_SHARD_IMAGES` images; `fingerprint` changes with any name, size or time of change."""

    number: int
    images: tuple[Path, ...]
    uris: tuple[str, ...]
    fingerprint: str

    @property
    def first_id(self) -> int:
        return self.number * _SHARD_IMAGES


@dataclass(frozen=True, kw_only=True)
class _Heatmaps:
    """Where the heatmaps of a run go: <image_id>_<name>.png."""

    folder: Path
    threshold: float | None
    credit: str

    def write(self, image_id: int, image: Path, anomaly_map: NDArray[np.float32], frame: Frame) -> None:
        """The heatmap of one image. Raises ImageError, OutputError."""
        name = re.sub(r"[^\w.-]", "_", image.stem)[:40]
        picture = overlay(decode(image), anomaly_map, frame, self.threshold)
        save_picture(picture, self.folder / f"{image_id:08d}_{name}.png", self.credit)

    def ids(self) -> Iterator[tuple[int, Path]]:
        """Those that are there, in no order."""
        for file in self.folder.glob("*_*.png"):
            number = file.name.partition("_")[0]
            if number.isascii() and number.isdigit():
                yield int(number), file

    def remove(self, ids: range) -> None:
        """Delete those of some images, under whichever name. Raises OutputError."""
        for image_id, file in self.ids():
            if image_id in ids:
                with writing(file):
                    file.unlink(missing_ok=True)


@shared_threads()
def score_folder(
    bundle: ModelBundle,
    folder: Path,
    output: Path,
    *,
    threshold: float | None = None,
    heatmaps: bool = False,
    batch_size: int = 8,
    threads: int = 2,
    credit: str = "",
    listener: Listener = ignore,
) -> ScoreReport:
    """Score every image below a folder; memory does not grow with their number.

    A rerun skips the parts whose files have not changed (name, size, time), and what the target holds
    of images that are gone is deleted. It refuses if the model, the threshold, the options or the
    folder are not those of the first run.

    Args:
        bundle: the model.
        folder: searched for images, its subfolders too.
        output: target folder, outside `folder`.
        threshold: in place of the model's own.
        heatmaps: also write a PNG an image.
        batch_size: images a forward pass.
        threads: that decode.
        credit: whom the images are from, for the heatmaps' text chunk `Copyright`.
        listener: told of progress.

    Raises:
        DatasetError: the folder is missing or holds no image.
        SpecError: the threshold is not finite.
        OutputError: the target belongs to another run, lies inside the folder, or cannot be written.
    """
    limit = bundle.threshold_or(threshold)
    images = list_images(folder)
    first = next(images, None)
    if first is None:
        raise DatasetError(
            expected=f"images in {folder}",
            got="none",
            remedy="give a folder with png, jpg, bmp, tif or webp files",
        )
    settings = {
        "schema_version": SCHEMA_VERSION,
        "model_sha": bundle.manifest.to_dict()["sha256"],
        "folder": str(folder.resolve()),
        "threshold": limit,
        "heatmaps": heatmaps,
    }
    _claim(output, folder, settings)
    pictures = _Heatmaps(folder=output / "heatmaps", threshold=limit, credit=credit) if heatmaps else None
    drawn = {image_id // _SHARD_IMAGES for image_id, _ in pictures.ids()} if pictures else set()
    parts: list[Path] = []
    counts = {"images": 0, "anomalous": 0, "rejected": 0, "resumed": 0}

    with stage(listener, "score", None, "images") as advance:

        def scored(images: int, errors: int) -> None:
            counts["images"] += images
            counts["rejected"] += errors
            advance(images, errors=counts["rejected"])

        def finished(shard: _Shard) -> pa.Table | None:
            parts.append(_part(output, shard))
            table = _read_part(output, shard)
            if table is not None:
                counts["resumed"] += len(table)
                scored(len(table), len(table) - table["error"].null_count)
            return table

        def work(shard: _Shard) -> pa.Table:
            if pictures and shard.number in drawn:
                pictures.remove(range(shard.first_id, shard.first_id + _SHARD_IMAGES))
            table = _score_shard(bundle, shard, limit, pictures, batch_size, threads, scored, listener)
            with atomic_path(_part(output, shard)) as temporary:
                pq.write_table(table.replace_schema_metadata({_FINGERPRINT: shard.fingerprint}), temporary)
            return table

        def collect(table: pa.Table) -> None:
            counts["anomalous"] += sum(1 for value in table["is_anomalous"].to_pylist() if value)

        run_shards(
            _shards(itertools.chain([first], images), folder), finished=finished, work=work, collect=collect
        )
    _remove_others(output / "parts", parts)
    if pictures:
        pictures.remove(range(counts["images"], sys.maxsize))
    _write_csv(output, parts)
    return ScoreReport(output=output, threshold=limit, **counts)


def _shards(images: Iterator[Path], folder: Path) -> Iterator[_Shard]:
    for number in itertools.count():
        part = tuple(itertools.islice(images, _SHARD_IMAGES))
        if not part:
            return
        uris = tuple(printable(path.relative_to(folder).as_posix()) for path in part)
        # Before the images are read: one that changes meanwhile is scored again by the next run.
        files = [[uri, *_size_and_time(path)] for uri, path in zip(uris, part, strict=True)]
        yield _Shard(number=number, images=part, uris=uris, fingerprint=sha256_of_json(files))


def _size_and_time(path: Path) -> tuple[int, int]:
    """Bytes and nanoseconds; -1 for a file that cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _claim(output: Path, folder: Path, settings: dict[str, Any]) -> None:
    """Take a target folder, new or left by a run with the same settings."""
    inside = output.resolve().is_relative_to(folder.resolve())
    if inside:
        raise OutputError(
            expected=f"an output folder outside {folder}",
            got=str(output),
            remedy="choose another -o, or its pictures would be scored too",
        )
    file = output / "run.json"
    if file.exists():
        try:
            before = json.loads(file.read_bytes())
        except ValueError:
            before = {}
        changed = [name for name in settings if before.get(name) != settings[name]]
        if changed:
            raise OutputError(
                expected=f"{output} to be from a run with the same {', '.join(changed)}",
                got="; ".join(
                    f"{name} {before.get(name)!r} then, {settings[name]!r} now" for name in changed
                ),
                remedy="give another -o, or delete this folder",
            )
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(
            expected=f"{output} to be new, empty, or from an earlier run",
            got="something else there",
            remedy="give another -o",
        )
    write_json(file, settings)  # first of all, or a run that fails here could not be given again


def _part(output: Path, shard: _Shard) -> Path:
    return output / "parts" / f"part-{shard.number:05d}.parquet"


def _read_part(output: Path, shard: _Shard) -> pa.Table | None:
    """The part that an earlier run wrote for the same, unchanged images, if any."""
    file = _part(output, shard)
    if not file.exists():
        return None
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid):
        return None
    found = (table.schema.metadata or {}).get(_FINGERPRINT.encode(), b"")
    return table if found == shard.fingerprint.encode() else None


def _remove_others(folder: Path, parts: Sequence[Path]) -> None:
    """Delete the parts of a longer run before this one. Raises OutputError."""
    for file in set(folder.glob("part-*.parquet")).difference(parts):
        with writing(file):
            file.unlink(missing_ok=True)


def _score_shard(
    bundle: ModelBundle,
    shard: _Shard,
    limit: float | None,
    heatmaps: _Heatmaps | None,
    batch_size: int,
    threads: int,
    scored: Callable[[int, int], None],
    listener: Listener,
) -> pa.Table:
    rows: dict[int, dict[str, Any]] = {}
    model_sha = str(bundle.manifest.to_dict()["sha256"])
    for batch in load_batches(
        shard.images, bundle.manifest.spec.features, batch_size=batch_size, threads=threads
    ):
        for position, error in batch.errors:
            listener(Notice(message=f"left out: {error}"))
            rows[position] = {"error": str(error)}
        verdict = bundle.scorer.score_pixels(batch.pixels, batch.frames)
        for slot, (position, frame) in enumerate(zip(batch.positions, batch.frames, strict=True)):
            score = float(verdict.scores[slot])
            rows[position] = {
                "score": score,
                "is_anomalous": None if limit is None else score > limit,
                "width": frame.source_width,
                "height": frame.source_height,
            }
            if heatmaps is not None:
                anomaly_map = verdict.maps[slot].cpu().numpy()
                try:
                    heatmaps.write(shard.first_id + position, shard.images[position], anomaly_map, frame)
                except ImageError as error:  # it was readable a moment ago; its score stands
                    listener(Notice(message=f"no heatmap: {error}"))
        scored(len(batch.positions) + len(batch.errors), len(batch.errors))
    table = [
        {"image_id": shard.first_id + number, "uri": uri, "model_sha": model_sha, **rows[number]}
        for number, uri in enumerate(shard.uris)
    ]
    return pa.Table.from_pylist(table, schema=_SCHEMA)


def _write_csv(output: Path, parts: Sequence[Path]) -> None:
    """scores.csv from the parts of this run, one at a time."""
    with atomic_path(output / "scores.csv") as temporary, temporary.open("w", newline="") as handle:
        # Lines end with CR LF (RFC 4180): with LF alone, Python below 3.13 leaves a CR in a name unquoted.
        writer = csv.writer(handle)
        writer.writerow(_SCHEMA.names)
        for part in parts:
            for row in pq.read_table(part).to_pylist():
                writer.writerow("" if row[name] is None else row[name] for name in _SCHEMA.names)

"""Score a folder: Parquet parts and a CSV, a row an image, broken images too."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cfa_index.bundle import ModelBundle
from cfa_index.engines import run_shards
from cfa_index.errors import DatasetError, OutputError
from cfa_index.events import Listener, Notice, ignore, stage
from cfa_index.files import atomic_path, printable, sha256_of_json, write_json
from cfa_index.images import decode, list_images, load_batches
from cfa_index.report import overlay, save_picture

SCHEMA_VERSION = 1
_SHARD_IMAGES = 512
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
    number: int
    images: tuple[Path, ...]
    uris: tuple[str, ...]

    @property
    def first_id(self) -> int:
        return self.number * _SHARD_IMAGES


def score_folder(
    bundle: ModelBundle,
    folder: Path,
    output: Path,
    *,
    threshold: float | None = None,
    heatmaps: bool = False,
    batch_size: int = 8,
    threads: int = 2,
    listener: Listener = ignore,
) -> ScoreReport:
    """Score every image below a folder; memory does not grow with their number.

    A rerun skips the parts that are there and refuses if the model, the threshold, the options or
    the folder are not those of the first run.

    Args:
        bundle: the model.
        folder: searched for images, its subfolders too.
        output: target folder, outside `folder`.
        threshold: in place of the model's own.
        heatmaps: also write a PNG an image.
        batch_size: images a forward pass.
        threads: that decode.
        listener: told of progress.

    Raises:
        DatasetError: the folder is missing or holds no image.
        OutputError: the target belongs to another run, lies inside the folder, or cannot be written.
    """
    limit = bundle.threshold if threshold is None else threshold
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
    parts: list[Path] = []
    counts = {"images": 0, "anomalous": 0, "rejected": 0, "resumed": 0}

    with stage(listener, "score", None, "images") as advance:

        def finished(shard: _Shard) -> pa.Table | None:
            parts.append(_part(output, shard))
            table = _read_part(output, shard)
            if table is not None:
                counts["resumed"] += len(table)
            return table

        def work(shard: _Shard) -> pa.Table:
            table = _score_shard(
                bundle, shard, limit, output if heatmaps else None, batch_size, threads, listener
            )
            with atomic_path(_part(output, shard)) as temporary:
                pq.write_table(table.replace_schema_metadata({"uris": sha256_of_json(shard.uris)}), temporary)
            return table

        def collect(table: pa.Table) -> None:
            rejected = len(table) - table["error"].null_count
            counts["images"] += len(table)
            counts["anomalous"] += sum(1 for value in table["is_anomalous"].to_pylist() if value)
            counts["rejected"] += rejected
            advance(len(table), errors=counts["rejected"])

        run_shards(
            _shards(itertools.chain([first], images), folder), finished=finished, work=work, collect=collect
        )
    _write_csv(output, parts)
    return ScoreReport(output=output, threshold=limit, **counts)


def _shards(images: Iterator[Path], folder: Path) -> Iterator[_Shard]:
    for number in itertools.count():
        part = tuple(itertools.islice(images, _SHARD_IMAGES))
        if not part:
            return
        yield _Shard(
            number=number,
            images=part,
            uris=tuple(printable(path.relative_to(folder).as_posix()) for path in part),
        )


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
    """The part that an earlier run wrote for the same images, if any."""
    file = _part(output, shard)
    if not file.exists():
        return None
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid):
        return None
    same = (table.schema.metadata or {}).get(b"uris", b"").decode() == sha256_of_json(shard.uris)
    return table if same else None


def _score_shard(
    bundle: ModelBundle,
    shard: _Shard,
    limit: float | None,
    heatmaps: Path | None,
    batch_size: int,
    threads: int,
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
        if not batch.positions:
            continue
        scored = bundle.scorer.score_pixels(batch.pixels, batch.frames)
        for slot, (position, frame) in enumerate(zip(batch.positions, batch.frames, strict=True)):
            score = float(scored.scores[slot])
            rows[position] = {
                "score": score,
                "is_anomalous": None if limit is None else score > limit,
                "width": frame.source_width,
                "height": frame.source_height,
            }
            if heatmaps is not None:
                name = re.sub(r"[^\w.-]", "_", shard.images[position].stem)[:40]
                file = heatmaps / "heatmaps" / f"{shard.first_id + position:08d}_{name}.png"
                picture = overlay(
                    decode(shard.images[position]), scored.maps[slot].cpu().numpy(), frame, limit
                )
                save_picture(picture, file)
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

"""Which images a run scores: a list on disk that grows while they are scored, cut into fixed shards.

A part of the list is a shard. A resumed run reads the parts that are there and goes on behind the last path of
them. A scan is one walk over the source; its parts are ascending by path. `rescan` walks again and merges that
walk with the scans before: new images become new shards, an image whose size or time has changed is corrected in
its shard and scored again, and one that is gone keeps its row.
"""

from __future__ import annotations

import heapq
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice, takewhile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cfa_index.errors import DatasetError, OutputError
from cfa_index.files import printable, sha256_of_json
from cfa_index.images import SUFFIXES
from cfa_index.places import Entry, Place

LISTING = "listing"
_ENDED = f"{LISTING}/ended.json"
_SCAN = b"scan"
_FINGERPRINT = 16
"""Hexadecimal digits."""
_FIELDS: list[tuple[str, pa.DataType]] = [
    ("image_id", pa.int64()),
    ("path", pa.binary()),
    ("uri", pa.string()),
    ("size", pa.int64()),
    ("mtime_ns", pa.int64()),
    ("error", pa.string()),
]
_SCHEMA = pa.schema(_FIELDS)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Some images of the list.

    Attributes:
        number: of the shard.
        first_id: image_id of its first image; the others follow.
        scan: of the walk that found them, from 0.
        entries: the images, ascending by path.
    """

    number: int
    first_id: int
    scan: int
    entries: tuple[Entry, ...]

    @property
    def end_id(self) -> int:
        """One more than its last image_id."""
        return self.first_id + len(self.entries)

    @property
    def fingerprints(self) -> list[str]:
        """Of each image: changes with its name, size or time of change."""
        return [
            sha256_of_json([uri_of(entry.path), entry.size, entry.mtime_ns, entry.error])[:_FINGERPRINT]
            for entry in self.entries
        ]


def uri_of(path: bytes) -> str:
    """A path below its place as text; stray bytes of a name that is not UTF-8 are escaped."""
    return printable(os.fsdecode(path))


def require_images(source: Place) -> None:
    """Raise DatasetError when a source is missing or holds no image."""
    if next(source.walk(SUFFIXES), None) is None:
        raise DatasetError(
            expected=f"images in {source.uri}",
            got="none",
            remedy="give a folder with png, jpg, bmp, tif or webp files",
        )


class Listing:
    """The list of a run, written by one thread (`write`) and read by another (`shards`).

    Args:
        source: of the images.
        target: of the list.
        shard_images: images a shard.
    """

    def __init__(self, source: Place, target: Place, shard_images: int) -> None:
        self._source = source
        self._target = target
        self._shard_images = shard_images
        self._parts = sum(name.endswith(".parquet") for name in target.names(LISTING))
        self._known = threading.Condition()
        self._failure: Exception | None = None
        self._stopped = False
        self.total: int | None = None
        """Images of the list, once the walk has ended."""

    @property
    def parts(self) -> int:
        """Shards so far."""
        return self._parts

    @property
    def is_whole(self) -> bool:
        """Whether an earlier run has come to the end of the walk."""
        return bool(self._ended())

    @property
    def is_interrupted(self) -> bool:
        """Whether an earlier rescan was: it has to be done again before anything is scored."""
        return bool(self._ended().get("rescanning"))

    @property
    def end_id(self) -> int:
        """One more than the last image_id so far."""
        return self._read(self._parts - 1).end_id if self._parts else 0

    def write(self) -> None:
        """Walk the source to its end and write what is new; `shards` gives what is written meanwhile.

        Does nothing where an earlier run has come to the end. A failure ends the list; `shards` raises it there.
        """
        try:
            ended = self._ended()
            if ended:
                self.total = int(ended["images"])
            else:
                after = self._read(self._parts - 1).entries[-1].path if self._parts else b""
                images = sum(len(self._read(number).entries) for number in range(self._parts))
                self._extend(self._source.walk(SUFFIXES, after), scan=0, images=images)
        except Exception as error:
            self._failure = error
        finally:
            with self._known:
                self._stopped = True
                self._known.notify_all()

    def rescan(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Walk the source again and merge the walk with the list; before `write`, and before `shards`.

        Args:
            stop: asked for each image; True ends the walk, which then counts as interrupted.

        Raises:
            DatasetError: the source cannot be walked.
            OutputError: the list cannot be written or read.
        """
        ended = self._ended()
        if not ended:
            return
        scans, images = [], 0
        for number in range(self._parts):
            shard = self._read(number)
            scans.append(shard.scan)
            images += len(shard.entries)
        scan = max([int(ended["scans"]) - 1, *scans]) + 1
        self._target.write(_ENDED, json.dumps({**ended, "rescanning": True}).encode())
        found = takewhile(lambda _: not self._is_stopped(stop), self._source.walk(SUFFIXES))
        self._extend(self._new(found, scans), scan=scan, images=images)

    def entry(self, image_id: int) -> Entry:
        """The file behind a row of the scores. Raises OutputError."""
        shard = self._read(image_id // self._shard_images)
        return shard.entries[image_id - shard.first_id]

    def stop(self) -> None:
        """Let `write` end soon; the parts that are written stay."""
        self._stopped = True

    def shards(self) -> Iterator[Shard]:
        """Every shard in order, each as soon as it is known; waits for the walk.

        Raises:
            DatasetError: the source cannot be walked.
            OutputError: the list cannot be written or read.
        """
        number = 0
        while self._is_there(number):
            yield self._read(number)
            number += 1
        self.check()

    def check(self) -> None:
        """Raise what has ended the walk, if it failed."""
        if self._failure is not None:
            raise self._failure

    def _is_there(self, number: int) -> bool:
        """Wait until a shard is written, or the walk has ended."""
        with self._known:
            self._known.wait_for(lambda: number < self._parts or self._stopped)
            return number < self._parts

    def _is_stopped(self, stop: Callable[[], bool]) -> bool:
        self._stopped = self._stopped or stop()
        return self._stopped

    def _extend(self, new: Iterator[Entry], *, scan: int, images: int) -> None:
        """Append entries to the `images` so far, as shards of a scan, and note that it has come to its end."""
        while some := list(islice(new, self._shard_images)):
            self._put(self._parts, some, scan)
            with self._known:
                self._parts += 1
                self._known.notify_all()
            images += len(some)
            if self._stopped:
                break
        if self._stopped:
            return
        self._target.write(_ENDED, json.dumps({"images": images, "scans": scan + 1}).encode())
        self.total = images

    def _new(self, found: Iterator[Entry], scans: list[int]) -> Iterator[Entry]:
        """Entries that no earlier scan has; those that it has otherwise are corrected in their shard."""
        by_scan = [list(group) for _, group in groupby(range(self._parts), key=lambda number: scans[number])]
        known = heapq.merge(*map(self._known_of, by_scan), key=lambda one: one[0].path)
        changed: dict[int, dict[int, Entry]] = {}
        before = next(known, None)
        for entry in found:
            while before is not None and before[0].path < entry.path:
                before = next(known, None)
            if before is None or before[0].path != entry.path:
                yield entry
            elif before[0] != entry:
                # Shards of a scan come one after the other, so that one is held for each scan.
                self._correct(changed, but=before[1])
                changed.setdefault(before[1], {})[before[2]] = entry
        self._correct(changed)

    def _known_of(self, parts: list[int]) -> Iterator[tuple[Entry, int, int]]:
        for number in parts:
            for position, entry in enumerate(self._read(number).entries):
                yield entry, number, position

    def _correct(self, changed: dict[int, dict[int, Entry]], but: int | None = None) -> None:
        for number in [number for number in changed if number != but]:
            shard, entries = self._read(number), changed.pop(number)
            now = [entries.get(position, entry) for position, entry in enumerate(shard.entries)]
            self._put(number, now, shard.scan)

    def _put(self, number: int, entries: list[Entry], scan: int) -> None:
        first = number * self._shard_images
        rows: list[dict[str, Any]] = [
            {
                "image_id": first + position,
                "path": entry.path,
                "uri": uri_of(entry.path),
                "size": entry.size,
                "mtime_ns": entry.mtime_ns,
                "error": entry.error,
            }
            for position, entry in enumerate(entries)
        ]
        table = pa.Table.from_pylist(rows, schema=_SCHEMA).replace_schema_metadata({_SCAN: str(scan)})
        self._target.write(_part(number), parquet_bytes(table))

    def _ended(self) -> dict[str, Any]:
        """What was noted at the end of the last walk; empty before the end of the first."""
        content = self._target.read(_ENDED)
        try:
            return dict(json.loads(content)) if content else {}
        except (ValueError, TypeError) as error:
            raise self._damaged(_ENDED, content) from error

    def _read(self, number: int) -> Shard:
        return read_shard(self._target, number, self._shard_images)

    def _damaged(self, name: str, content: bytes | None) -> OutputError:
        return _damaged(self._target, name, content)


def read_shard(target: Place, number: int, shard_images: int) -> Shard:
    """A shard of the list in a target, which may be read by another process than the one that writes it.

    Raises:
        OutputError: it is not there, or was changed.
    """
    content = target.read(_part(number))
    try:
        return shard_of(content or b"", number, shard_images)
    except ValueError as error:
        raise _damaged(target, _part(number), content) from error


def shard_of(content: bytes, number: int, shard_images: int) -> Shard:
    """A shard from its file. Raises ValueError when it is not one."""
    try:
        table = parquet_table(content)
        scan = int((table.schema.metadata or {})[_SCAN])
        rows = table.select(["path", "size", "mtime_ns", "error"]).to_pylist()
    except KeyError as error:
        raise ValueError(str(error)) from error
    return Shard(
        number=number,
        first_id=number * shard_images,
        scan=scan,
        entries=tuple(Entry(**row) for row in rows),
    )


def _damaged(target: Place, name: str, content: bytes | None) -> OutputError:
    return OutputError(
        expected=f"{name} as it was written in {target.uri}",
        got="no such file" if content is None else "a file that was changed",
        remedy="give another -o, or delete this one",
    )


def shard_file(number: int) -> str:
    """Name of a shard's file, of its list and of its rows."""
    return f"part-{number:08d}.parquet"


def _part(number: int) -> str:
    return f"{LISTING}/{shard_file(number)}"


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as the content of a Parquet file, with a checksum of every page."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, write_page_checksum=True)
    return buffer.getvalue()


def parquet_table(content: bytes) -> pa.Table:
    """The table of `parquet_bytes`. Raises ValueError when the content is not as it was written."""
    try:
        # Not `read_table`: its threads may let go of the buffer when the interpreter has ended, and abort.
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        return file.read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise ValueError("no Parquet file, or one that was changed") from error

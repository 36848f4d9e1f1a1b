"""The target of a run: whose it is, the maps that are there, and the table that is made at the end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfa_index.errors import OutputError
from cfa_index.files import json_text
from cfa_index.places import LocalPlace, Place
from cfa_index.store import METADATA_FILE, maps_file, maps_metadata, maps_shard, read_maps_shard
from cfa_index.workflows.score_listing import Shard
from cfa_index.workflows.score_parts import ROWS, Parts

RUN_FILE = "run.json"
LOCK_FILE = "lock"
CSV_FILE = "scores.csv"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A cell that begins so is a formula to a spreadsheet."""


def require_apart(source: Place, target: Place) -> None:
    """A target inside the source would be scored, too.

    Raises:
        OutputError: it is inside.
    """
    if not (isinstance(source, LocalPlace) and isinstance(target, LocalPlace)):
        return
    if target.root.resolve().is_relative_to(source.root.resolve()):
        raise OutputError(
            expected=f"an output folder outside {source.root}",
            got=str(target.root),
            remedy="choose another -o, or its pictures would be scored too",
        )


def claim(target: Place, settings: Mapping[str, Any]) -> None:
    """Take a target that is new, or was left by a run with the same settings; it is held by the caller.

    Raises:
        OutputError: it is another run's, or holds something else; or it cannot be written.
    """
    content = target.read(RUN_FILE)
    if content is None:
        if target.names("") not in ([], [LOCK_FILE]):
            raise OutputError(
                expected=f"{target.uri} to be new, empty, or from an earlier run",
                got="something else there",
                remedy="give another -o",
            )
        target.write(RUN_FILE, json_text(dict(settings)).encode())
        return
    try:
        before = dict(json.loads(content))
    except ValueError:
        before = {}
    changed = [name for name in settings if before.get(name) != settings[name]]
    if changed:
        raise OutputError(
            expected=f"{target.uri} to be from a run with the same {', '.join(changed)}",
            got="; ".join(f"{name} {before.get(name)!r} then, {settings[name]!r} now" for name in changed),
            remedy="give another -o, or delete this folder",
        )


@dataclass(frozen=True, kw_only=True)
class MapShards:
    """The maps in a target: a Zarr array with a shard for each part.

    Attributes:
        target: where they are.
        shard_images: images a shard.
        size_px: S.
    """

    target: Place
    shard_images: int
    size_px: int

    def read(self, shard: Shard) -> NDArray[np.float32]:
        """Those of a shard that an earlier run left, (shard_images, S, S) float32; NaN where there is none."""
        content = self.target.read(f"maps/{maps_file(shard.number)}")
        if content is None:
            return self.new()
        return read_maps_shard(content, shard_images=self.shard_images, size_px=self.size_px)

    def new(self) -> NDArray[np.float32]:
        """Room for those of a shard: (shard_images, S, S) float32, all NaN."""
        return np.full((self.shard_images, self.size_px, self.size_px), np.nan, dtype=np.float32)

    def write(self, shard: Shard, maps: NDArray[np.float32]) -> None:
        """The maps of a shard, whole. Raises OutputError."""
        self.target.write(f"maps/{maps_file(shard.number)}", maps_shard(maps))

    def finish(self, images: int) -> None:
        """Let the array end behind the last id. Raises OutputError."""
        content = maps_metadata(images, shard_images=self.shard_images, size_px=self.size_px)
        self.target.write(f"maps/{METADATA_FILE}", content)


def write_csv(parts: Parts) -> None:
    """scores.csv from the parts, one at a time; no cell is a formula. Raises OutputError."""
    with parts.target.create(CSV_FILE) as handle:
        # Lines end with CR LF (RFC 4180): with LF alone, Python below 3.13 leaves a CR in a name unquoted.
        text = io.TextIOWrapper(handle, encoding="utf-8", newline="")
        writer = csv.writer(text)
        writer.writerow(ROWS.names)
        for table in parts.tables():
            for row in table.to_pylist():
                writer.writerow(_cell(row[name]) for name in ROWS.names)
        text.detach()  # flushes, and leaves the handle to its owner


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return "" if value is None else value

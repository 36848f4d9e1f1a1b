"""Where each memory came from: the tables of sources and of exemplar crops."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cfa_index.bundle.manifest import damaged

SOURCES_FILE = "sources.parquet"
EXEMPLARS_FILE = "exemplars.parquet"


@dataclass(frozen=True, kw_only=True)
class MemorySource:
    """The real patch that a memory is nearest to: image, cell of the grid, box in source pixels."""

    uri: str
    row: int
    column: int
    box: tuple[int, int, int, int]


def sources_table(sources: Sequence[MemorySource]) -> bytes:
    """`sources.parquet` as bytes."""
    rows = [
        {
            "uri": s.uri,
            "row": s.row,
            "column": s.column,
            **dict(zip(("left", "top", "right", "bottom"), s.box, strict=True)),
        }
        for s in sources
    ]
    return _parquet(pa.Table.from_pylist(rows))


def exemplars_table(crops: Sequence[bytes]) -> bytes:
    """`exemplars.parquet` as bytes."""
    return _parquet(pa.table({"jpeg": pa.array(crops, type=pa.binary())}))


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def read_sources(path: Path) -> list[MemorySource]:
    """Read `sources.parquet`. Raises BundleError when it is no such table."""
    return [
        MemorySource(
            uri=row["uri"],
            row=row["row"],
            column=row["column"],
            box=(row["left"], row["top"], row["right"], row["bottom"]),
        )
        for row in _rows(path)
    ]


def read_exemplars(path: Path) -> list[bytes]:
    """Read `exemplars.parquet`: a JPEG a memory. Raises BundleError when it is no such table."""
    return [row["jpeg"] for row in _rows(path)]


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except pa.ArrowInvalid as error:
        raise damaged(path, "a file that is no Parquet table") from error
    return rows

"""The scores in a target, a part a shard; what a process imports of it has no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa

from cfa_index.places import Place
from cfa_index.workflows.score_listing import Shard, parquet_bytes, parquet_table, shard_file

PARTS = "parts"
REPORT_FILE = "report.html"
"""The page of all parts."""
_LISTED = b"listed"
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
ROWS = pa.schema(_FIELDS)
"""A row an image; score, width and height are null where there is an error."""
Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """The scores in a target.

    Attributes:
        target: where they are.
    """

    target: Place

    def read(self, shard: Shard) -> list[Row | None]:
        """The row of each image of a shard; None where there is none, or it was made of another file."""
        table = self._table(f"{PARTS}/{shard_file(shard.number)}")
        if table is None:
            return [None] * len(shard.entries)
        listed = (table.schema.metadata or {}).get(_LISTED, b"").split(b",")
        if len(listed) != len(table) or len(table) != len(shard.entries):
            return [None] * len(shard.entries)
        return [
            row if then == now.encode() else None
            for row, then, now in zip(table.to_pylist(), listed, shard.fingerprints, strict=True)
        ]

    def write(self, shard: Shard, rows: Sequence[Row]) -> None:
        """The rows of a shard, whole. Raises OutputError."""
        self.put(shard.number, rows_bytes(shard, rows))

    def put(self, number: int, content: bytes) -> None:
        """The file of a shard's rows; a page of other rows is deleted first. Raises OutputError."""
        self.target.remove(REPORT_FILE)
        self.target.write(f"{PARTS}/{shard_file(number)}", content)

    def tables(self) -> Iterator[pa.Table]:
        """All parts in order, one at a time."""
        for name in self.target.names(PARTS):
            table = self._table(f"{PARTS}/{name}")
            if table is not None:
                yield table

    def _table(self, name: str) -> pa.Table | None:
        content = self.target.read(name)
        if content is None:
            return None
        try:
            table = parquet_table(content)
        except ValueError:  # not what we wrote: made again
            return None
        return table if table.schema.names == ROWS.names else None


def rows_bytes(shard: Shard, rows: Sequence[Row]) -> bytes:
    """The file of a shard's rows; it says what files they are of."""
    table = pa.Table.from_pylist(list(rows), schema=ROWS)
    return parquet_bytes(table.replace_schema_metadata({_LISTED: ",".join(shard.fingerprints)}))


def to_score(rows: Sequence[Row | None], *, retry_errors: bool) -> list[int]:
    """Positions in a shard of the images without a row, or with an error that is to be tried again."""
    return [
        position
        for position, row in enumerate(rows)
        if row is None or (retry_errors and row["error"] is not None)
    ]


def standing(rows: Sequence[Row | None], again: Sequence[int]) -> list[Row]:
    """The rows that stay when those at the positions of `again` are made anew."""
    left = set(again)
    return [row for position, row in enumerate(rows) if row is not None and position not in left]

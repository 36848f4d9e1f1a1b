"""Sources by column: the file's schema stays, and no memory is an object before it is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cfa_index.bundle import MemorySource, Sources, read_sources, sources_table
from cfa_index.errors import BundleError

PLACES = [
    MemorySource(uri=f"good/{number % 3}é.png", row=number, column=2 * number, box=(number, 1, number + 8, 9))
    for number in range(10)
]
NUMBERS = ("row", "column", "left", "top", "right", "bottom")
COLUMNS: list[tuple[str, pa.DataType]] = [("uri", pa.string()), *((name, pa.int64()) for name in NUMBERS)]
SCHEMA = pa.schema(COLUMNS)


def test_they_are_a_sequence() -> None:
    sources = Sources.of(PLACES)
    assert len(sources) == 10
    assert list(sources) == [*sources] == PLACES
    assert sources[3] == PLACES[3]
    assert sources[-1] == PLACES[-1]
    assert sources[2:9:3] == PLACES[2:9:3]
    assert Sources.of(sources) is sources
    for outside in (10, -11):
        with pytest.raises(IndexError):
            sources[outside]


@pytest.mark.parametrize("count", [0, 1, 10])
def test_the_file_is_read_as_it_was_written(count: int, tmp_path: Path) -> None:
    (tmp_path / "sources.parquet").write_bytes(sources_table(PLACES[:count]))
    assert pq.read_schema(tmp_path / "sources.parquet").remove_metadata() == SCHEMA
    assert list(read_sources(tmp_path / "sources.parquet")) == PLACES[:count]


def test_a_file_of_before_is_read(tmp_path: Path) -> None:
    rows = [
        {"uri": p.uri, "row": p.row, "column": p.column}
        | dict(zip(("left", "top", "right", "bottom"), p.box, strict=True))
        for p in PLACES
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "sources.parquet", row_group_size=3)
    sources = read_sources(tmp_path / "sources.parquet")
    assert list(sources) == PLACES
    number_of = {f"good/{number}é.png": 7 - number for number in range(5)}
    np.testing.assert_array_equal(sources.looked_up(number_of), [number_of[p.uri] for p in PLACES])
    with pytest.raises(KeyError):
        sources.looked_up({})


@pytest.mark.parametrize("content", [b"no table", b""])
def test_a_file_that_is_no_table_is_a_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "sources.parquet").write_bytes(content)
    with pytest.raises(BundleError, match="no table of sources"):
        read_sources(tmp_path / "sources.parquet")


def test_a_table_of_something_else_is_a_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpeg": [b""]}), tmp_path / "sources.parquet")
    with pytest.raises(BundleError, match="no table of sources"):
        read_sources(tmp_path / "sources.parquet")

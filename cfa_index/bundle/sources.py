"""Where each memory came from: the tables of sources and of exemplar crops."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cfa_index.bundle.manifest import damaged

SOURCES_FILE = "sources.parquet"
EXEMPLARS_FILE = "exemplars.parquet"
_NUMBERS = ("row", "column", "left", "top", "right", "bottom")


def _schema(uri: pa.DataType, number: pa.DataType) -> pa.Schema:
    return pa.schema([("uri", uri), *((name, number) for name in _NUMBERS)])


_WRITTEN = _schema(pa.string(), pa.int64())
_HELD = _schema(pa.dictionary(pa.int32(), pa.string()), pa.int32())
"""In memory an image's uri is there once, and a memory takes 28 bytes."""
_CHUNK_ROWS = 65_536
_GROUP_ROWS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class MemorySource:
    """The real patch that a memory is nearest to: image, cell of the grid, box in source pixels."""

    uri: str
    row: int
    column: int
    box: tuple[int, int, int, int]


class Sources(Sequence[MemorySource]):
    """The source of each of M memories, held by column; a `MemorySource` is made when it is asked for."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table.unify_dictionaries().combine_chunks()

    @classmethod
    def of(cls, places: Sequence[MemorySource]) -> Sources:
        """The same sources by column."""
        if isinstance(places, Sources):
            return places
        return cls(pa.Table.from_batches(list(_batches(places)), schema=_HELD))

    @classmethod
    def of_columns(
        cls, uris: Sequence[str], images: NDArray[np.int64], numbers: Mapping[str, NDArray[np.int64]]
    ) -> Sources:
        """From arrays.

        Args:
            uris: of all images.
            images: (M,) int64, which of them.
            numbers: (M,) int64 each: row and column of the grid; left, top, right, bottom in source pixels.
        """
        names = pa.DictionaryArray.from_arrays(images.astype(np.int32), pa.array(uris, pa.string()))
        columns = [names, *(pa.array(numbers[name].astype(np.int32)) for name in _NUMBERS)]
        return cls(pa.Table.from_arrays(columns, schema=_HELD))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> MemorySource: ...
    @overload
    def __getitem__(self, index: slice) -> list[MemorySource]: ...
    def __getitem__(self, index: int | slice) -> MemorySource | list[MemorySource]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"memory {index} of {len(self)}")
        return next(_places(self._table.slice(number, 1)))

    def __iter__(self) -> Iterator[MemorySource]:
        for start in range(0, len(self), _CHUNK_ROWS):
            yield from _places(self._table.slice(start, _CHUNK_ROWS))

    def looked_up(self, number_of: Mapping[str, int]) -> NDArray[np.int64]:
        """(M,) int64: the number that each memory's uri has in a table. Raises KeyError for one it lacks."""
        if not len(self):
            return np.empty(0, dtype=np.int64)
        names = self._table.to_batches()[0].column(0)
        assert isinstance(names, pa.DictionaryArray), "the held schema's type"
        indices = names.indices.to_numpy()
        used, inverse = np.unique(indices, return_inverse=True)
        numbers = [number_of[names.dictionary[index].as_py()] for index in used.tolist()]
        return np.array(numbers, dtype=np.int64)[inverse]

    def to_parquet(self) -> bytes:
        """The table as it is written, a group of rows at a time."""
        buffer = io.BytesIO()
        with pq.ParquetWriter(buffer, _WRITTEN) as writer:
            for start in range(0, len(self), _GROUP_ROWS):
                writer.write_table(self._table.slice(start, _GROUP_ROWS).cast(_WRITTEN))
        return buffer.getvalue()


def _places(table: pa.Table) -> Iterator[MemorySource]:
    for uri, row, column, *box in zip(*(column.to_pylist() for column in table.columns), strict=True):
        left, top, right, bottom = box
        yield MemorySource(uri=uri, row=row, column=column, box=(left, top, right, bottom))


def _batches(places: Sequence[MemorySource]) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(places), _CHUNK_ROWS):
        part = places[start : start + _CHUNK_ROWS]
        numbers = np.array([(place.row, place.column, *place.box) for place in part], dtype=np.int32)
        uris = pa.array([place.uri for place in part], pa.string()).dictionary_encode()
        yield pa.RecordBatch.from_arrays([uris, *map(pa.array, numbers.T.copy())], schema=_HELD)


def sources_table(sources: Sequence[MemorySource]) -> bytes:
    """`sources.parquet` as bytes."""
    return Sources.of(sources).to_parquet()


def exemplars_table(crops: Sequence[bytes]) -> bytes:
    """`exemplars.parquet` as bytes."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"jpeg": pa.array(crops, type=pa.binary())}), buffer)
    return buffer.getvalue()


def read_sources(path: Path) -> Sources:
    """Read `sources.parquet`. Raises BundleError when it is no such table."""
    try:
        with pq.ParquetFile(path, read_dictionary=["uri"]) as file:
            parts = [
                pa.Table.from_batches([batch]).select(_HELD.names).cast(_HELD)
                for batch in file.iter_batches(_CHUNK_ROWS)
            ]
        return Sources(pa.concat_tables([_HELD.empty_table(), *parts]))
    except (pa.ArrowInvalid, KeyError) as error:
        raise damaged(path, "a file that is no table of sources") from error


def read_exemplars(path: Path) -> list[bytes]:
    """Read `exemplars.parquet`: a JPEG a memory. Raises BundleError when it is no such table."""
    try:
        crops = pq.read_table(path).column("jpeg").to_pylist()
    except (pa.ArrowInvalid, KeyError) as error:
        raise damaged(path, "a file that is no Parquet table") from error
    return [crop or b"" for crop in crops]

"""The folder of a study: a file a measured cell, so that a study that was killed goes on; then the results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cfa_index.errors import OutputError
from cfa_index.events import Listener, Notice
from cfa_index.files import atomic_path, is_sealed, printable, seal, take_lock, write_json, writing
from cfa_index.report import PLOT_FILES, StudyRow, study_plots, write_study_page

STUDY_SCHEMA_VERSION = 1
PARQUET_FILE, PAGE_FILE = "study.parquet", "study.html"
_HEADER_FILE, _CELLS, _LOCK = "study.json", "cells", ".lock"
_COLUMNS: Mapping[str, pa.DataType] = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
}


class StudyFolder:
    """Where a study of one category keeps its cells and its results."""

    def __init__(self, path: Path, category: str) -> None:
        self.path = path
        self._category = category

    def check(self) -> None:
        """Whether a study of this category may use the folder; nothing is written.

        Raises:
            OutputError: it is a file, or holds the study of another category or one that cannot be read.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(
                expected=f"a folder for the study at {printable(str(self.path))}",
                got="a file",
                remedy="give -o another path",
            )
        header = self.path / _HEADER_FILE
        if not header.exists():
            return
        document = _read_json(header)
        readable = is_sealed(document) and document.get("schema_version") == STUDY_SCHEMA_VERSION
        if not readable or document["category"] != printable(self._category):
            got = f"one of {document['category']!r}" if readable else "a damaged study.json, or a newer one"
            raise OutputError(
                expected=f"a study of {printable(self._category)!r} in {printable(str(self.path))}",
                got=got,
                remedy="give -o another folder",
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder for this process alone, made where it is missing.

        Raises:
            OutputError: as `check`; another process is at it; or it cannot be written.
        """
        self.check()
        with writing(self.path):
            (self.path / _CELLS).mkdir(parents=True, exist_ok=True)
            lock = take_lock(self.path / _LOCK)
        if lock is None:
            raise OutputError(
                expected=f"to be alone in {printable(str(self.path))}",
                got="another study that runs there",
                remedy="wait for it, or give -o another folder",
            )
        with lock:
            document = {"schema_version": STUDY_SCHEMA_VERSION, "category": printable(self._category)}
            write_json(self.path / _HEADER_FILE, seal(document))
            yield

    def row(self, key: str, listener: Listener) -> StudyRow | None:
        """The cell of that key as it was measured; None where it was not, or its file is damaged."""
        file = self._cell(key)
        if not file.exists():
            return None
        document = _read_json(file)
        names = {field.name for field in fields(StudyRow)}
        if is_sealed(document) and set(document.get("row", ())) == names and document["row"]["key"] == key:
            return StudyRow(**document["row"])
        listener(Notice(message=f"{printable(str(file))} is damaged: that cell is measured again"))
        return None

    def keep(self, row: StudyRow) -> None:
        """Keep a measured cell. Raises OutputError."""
        write_json(self._cell(row.key), seal({"schema_version": STUDY_SCHEMA_VERSION, "row": asdict(row)}))

    def write_results(self, rows: Sequence[StudyRow], *, title: str, facts: Sequence[str]) -> list[Path]:
        """Parquet, plots and page, each whole; gives their paths. Raises OutputError."""
        table = self.path / PARQUET_FILE
        schema = pa.schema(
            [(field.name, _COLUMNS[str(field.type).split(" ")[0]]) for field in fields(StudyRow)],
            metadata={
                "cfa_index_study": str(STUDY_SCHEMA_VERSION),
                "category": printable(self._category),
                "facts": "\n".join(facts),
            },
        )
        with atomic_path(table) as temporary:
            pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=schema), temporary)
        write_study_page(self.path / PAGE_FILE, rows, title=title, facts=facts)
        plots = [self.path / name for name in PLOT_FILES]
        for plot, page in zip(plots, study_plots(rows, title=title, facts=facts), strict=True):
            page.save(plot)
        return [table, self.path / PAGE_FILE, *plots]

    def _cell(self, key: str) -> Path:
        return self.path / _CELLS / f"{key}.json"


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None

"""What a place is: where images are read from and results are written to.

A path below a place is bytes, as the file system has it, with forward slashes. Images are listed in ascending
order of these bytes, which is the order of an object store, too: so a listing goes on after any path, and two
listings can be merged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file that is named like an image, or a folder that cannot be read.

    Attributes:
        path: below the place; ends with a slash for a folder.
        size: in bytes; -1 where it cannot be looked at.
        mtime_ns: time of the last change, nanoseconds since 1970; -1 where it is not known.
        error: why a folder cannot be read; empty for a file.
    """

    path: bytes
    size: int
    mtime_ns: int
    error: str = ""


class Place(Protocol):
    """What a source of images and a target of results can do. It can be sent to another process."""

    @property
    def uri(self) -> str:
        """How settings and messages call it."""

    def require(self) -> None:
        """Raise DatasetError when the place is not there; images were listed in it before."""

    def walk(self, suffixes: frozenset[str], after: bytes = b"") -> Iterator[Entry]:
        """Files with one of the suffixes, at any depth, ascending by path, those beyond `after`.

        Memory does not depend on their number. Hidden entries are left out.

        Raises:
            DatasetError: the place is missing or cannot be read.
        """

    def source(self, path: bytes) -> Path | bytes:
        """What `decode` takes for a file: its path, or its content."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all. Raises OutputError."""

    def create(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """A file to write in the body: there when the body ends, and not there when it fails. Raises OutputError."""

    def read(self, name: str) -> bytes | None:
        """Content of a file, None where there is none. Raises OutputError."""

    def names(self, folder: str) -> list[str]:
        """Sorted names of the visible files in a folder below the place; none where it is missing."""

    def remove(self, name: str) -> None:
        """Delete a file if it is there. Raises OutputError."""

    def sweep(self) -> None:
        """Delete what processes that were killed left half-written. Raises OutputError."""

    def held(self, name: str) -> AbstractContextManager[None]:
        """A context in which this process alone works here; `name` is the lock's. Raises OutputError."""


def has_suffix(path: bytes, suffixes: frozenset[str]) -> bool:
    """Whether a file is named like one of the suffixes, in any case."""
    name = os.fsdecode(path)
    return name[name.rfind(".") :].lower() in suffixes

"""A folder, where images lie and results go."""

from __future__ import annotations

import heapq
import json
import os
import socket
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from cfa_index.errors import DatasetError, OutputError
from cfa_index.files import atomic_path, is_temporary, printable, take_lock, write_bytes, writing
from cfa_index.places.place import Entry, has_suffix

_HELD = 65_536
"""Names of one folder that are sorted in memory; of a larger one, sorted runs of so many lie in a file."""


@dataclass(frozen=True)
class LocalPlace:
    """A folder.

    Attributes:
        root: of it.
    """

    root: Path

    @property
    def uri(self) -> str:
        """The absolute path."""
        return printable(str(self.root.resolve()))

    def require(self) -> None:
        """See `Place.require`. A folder that is empty counts as missing: so a share looks that is not mounted."""
        try:
            with os.scandir(self.root) as entries:
                is_empty = next(entries, None) is None
        except OSError as error:
            raise self._missing(error) from error
        if is_empty:
            raise DatasetError(
                expected=f"images in {printable(str(self.root))}",
                got="an empty folder",
                remedy="check that its disk or share is mounted",
            )

    def walk(self, suffixes: frozenset[str], after: bytes = b"") -> Iterator[Entry]:
        """See `Place.walk`. Folders behind links are not entered; one named x.png is given like a file."""
        root = os.fsencode(self.root)
        try:
            first = _keys(root, suffixes)
        except OutputError:  # no room to sort its names
            raise
        except OSError as error:
            raise self._missing(error) from error
        return _walk(root, first, suffixes, after)

    def source(self, path: bytes) -> Path:
        """The file's path."""
        return self.root / os.fsdecode(path)

    def write(self, name: str, content: bytes) -> None:
        """See `Place.write`."""
        write_bytes(self.root / name, content)

    @contextmanager
    def create(self, name: str) -> Generator[IO[bytes], None, None]:
        """See `Place.create`."""
        with atomic_path(self.root / name) as temporary, temporary.open("wb") as handle:
            yield handle

    def read(self, name: str) -> bytes | None:
        """See `Place.read`."""
        with writing(self.root / name):
            try:
                return (self.root / name).read_bytes()
            except FileNotFoundError:
                return None

    def names(self, folder: str) -> list[str]:
        """See `Place.names`."""
        try:
            return sorted(name for name in os.listdir(self.root / folder) if not name.startswith("."))  # noqa: PTH208
        except FileNotFoundError:
            return []

    def remove(self, name: str) -> None:
        """See `Place.remove`."""
        with writing(self.root / name):
            (self.root / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """See `Place.sweep`."""
        folders = [self.root]
        while folders:
            with writing(self.root), os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    elif is_temporary(entry.name):
                        Path(entry.path).unlink(missing_ok=True)

    @contextmanager
    def held(self, name: str) -> Generator[None, None, None]:
        """See `Place.held`: a file lock, which ends with the process, however it ends."""
        file = self.root / name
        with writing(file):
            self.root.mkdir(parents=True, exist_ok=True)
            lock = take_lock(file)
        if lock is None:
            raise OutputError(
                expected=f"to be the only run on {printable(str(self.root))}",
                got=_holder(file),
                remedy="wait for it or end it, or give another -o",
            )
        with lock:
            with writing(file):
                _sign(lock)
            try:
                yield
            finally:
                os.ftruncate(lock.fileno(), 0)

    def _missing(self, error: OSError) -> DatasetError:
        return DatasetError(
            expected=f"a folder at {printable(str(self.root))}",
            got=error.strerror or str(error),
            remedy="check the path and its permissions",
        )


def _walk(root: bytes, first: Iterator[bytes], suffixes: frozenset[str], after: bytes) -> Iterator[Entry]:
    # A stack of its own: a tree may be deeper than Python's recursion.
    levels = [(b"", first)]
    while levels:
        parent, keys = levels[-1]
        key = next(keys, None)
        if key is None:
            levels.pop()
            continue
        path = parent + key
        if key.endswith(b"/"):
            if path < after and not after.startswith(path):
                continue
            try:
                levels.append((path, _keys(os.path.join(root, path), suffixes)))  # noqa: PTH118 - bytes
            except OutputError:  # no room to sort its names
                raise
            except OSError as error:
                if path > after:
                    reason = f"expected a folder that can be read, got {error.strerror or error}"
                    yield Entry(path=path, size=-1, mtime_ns=-1, error=reason)
        elif path > after and has_suffix(path, suffixes):
            try:
                found = os.stat(os.path.join(root, path))  # noqa: PTH116, PTH118
                yield Entry(path=path, size=found.st_size, mtime_ns=found.st_mtime_ns)
            except OSError:
                yield Entry(path=path, size=-1, mtime_ns=-1)


def _keys(folder: bytes, suffixes: frozenset[str]) -> Iterator[bytes]:
    """Visible names of a folder in order; those of folders to enter end with a slash, and are ordered with it."""
    with os.scandir(folder) as entries:
        some: list[bytes] = []
        runs: list[IO[bytes]] = []
        for entry in entries:
            if not entry.name.startswith(b"."):
                enter = entry.is_dir(follow_symlinks=False) and not has_suffix(entry.name, suffixes)
                some.append(entry.name + b"/" if enter else entry.name)
            if len(some) >= _HELD:
                runs.append(_run(some))
                some = []
    some.sort()
    return heapq.merge(iter(some), *map(_read_run, runs)) if runs else iter(some)


def _run(names: list[bytes]) -> IO[bytes]:
    """A file without a name that holds the names in order, each with its length before it. Raises OutputError."""
    with writing(Path(tempfile.gettempdir())):
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by who reads it
        for name in sorted(names):
            file.write(len(name).to_bytes(4, "little") + name)
        file.seek(0)
    return file


def _read_run(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while head := file.read(4):
            yield file.read(int.from_bytes(head, "little"))


def _sign(lock: IO[str]) -> None:
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": datetime.now(UTC).isoformat()}
    os.ftruncate(lock.fileno(), 0)
    os.write(lock.fileno(), json.dumps(holder).encode())  # unbuffered: a full disk is noticed here


def _holder(file: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        holder = json.loads(file.read_text())
        return f"process {holder['pid']} on {holder['host']} at work there since {holder['started'][:19]}"
    return "another process at work there"

"""Files written whole or not at all, and checksums."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cfa_index.errors import OutputError

_CHUNK_BYTES = 1 << 20
_TEMPORARY = ".tmp"


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn any `OSError` of the body into an `OutputError` that names `target`.

    Raises:
        OutputError: the disk is full or read-only, or the path cannot be written.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            expected=f"to write {target}",
            got=error.strerror or str(error),
            remedy="free some space or choose another place, then run the same command again",
        ) from error


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target`; on success it is synced and renamed over `target`.

    On any failure the temporary file is removed and `target` is as it was before.

    Raises:
        OutputError: see `writing`.
    """
    # Cut, or a long name would be too long with what is added to it.
    temporary = target.with_name(f".{target.name[:40]}.{uuid.uuid4().hex[:8]}{_TEMPORARY}")
    with writing(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(target)
            sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a file's name is one that `atomic_path` gave, for a file that was never finished."""
    return name.startswith(".") and name.endswith(_TEMPORARY)


def take_lock(file: Path) -> IO[str] | None:
    """Hold a lock until the result is closed, or this process dies; None when another one holds it.

    Raises:
        OSError: the file cannot be opened, or is a link: what it leads to is not for us to write; or its file
            system has no locks.
    """
    # Appending, so that what its holder wrote stays.
    handle = open(file, "a", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))  # noqa: SIM115
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        if isinstance(error, BlockingIOError):
            return None
        raise
    return handle


def sync_folder(folder: Path) -> None:
    """Flush a directory's entries to disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(target: Path, content: bytes) -> None:
    """Write `content` to `target` atomically. Raises OutputError."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_json(target: Path, document: Any) -> None:
    """Write a document as indented UTF-8 JSON, atomically. Raises OutputError."""
    write_bytes(target, json_text(document).encode())


def json_text(document: Any) -> str:
    """A document as indented JSON, its other scripts as they are.

    A file name that is not UTF-8 keeps its stray bytes: escaped by `printable` they are JSON's own escapes.
    """
    return printable(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def printable(text: str) -> str:
    """Text that any file and terminal takes: the stray bytes of a name that is not UTF-8 become \\udcXX."""
    return text.encode("utf-8", "backslashreplace").decode()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits; memory does not depend on its size."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_npy(array: NDArray[Any]) -> str:
    """SHA-256 of the .npy file that an array would be written to."""
    digest = hashlib.sha256()

    class _Sink:
        def write(self, part: bytes) -> int:
            digest.update(part)
            return len(part)

    np.lib.format.write_array(_Sink(), np.ascontiguousarray(array), allow_pickle=False)
    return digest.hexdigest()


def sha256_of_json(document: Any) -> str:
    """SHA-256 of a document's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seal(document: dict[str, Any]) -> dict[str, Any]:
    """The document with its own checksum under `sha256`, so that a changed byte is noticed."""
    return {**document, "sha256": sha256_of_json(document)}


def is_sealed(document: Any) -> bool:
    """Whether a document still matches the checksum that `seal` gave it."""
    if not isinstance(document, dict) or "sha256" not in document:
        return False
    return bool(document["sha256"] == sha256_of_json({k: v for k, v in document.items() if k != "sha256"}))

"""The files that a FAISS index names inside itself, read off its bytes before FAISS opens anything."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_MARK = b"ilod"
"""What FAISS writes before inverted lists that are in a file of their own."""
_LENGTH = struct.Struct("<Q")
_LIST_BYTES, _SLOT_BYTES = 24, 16


def named_files(path: Path) -> list[str]:
    """Names of the files that inverted lists anywhere inside an index are in, as they are stored.

    FAISS maps an index's own lists only when told to, but reads what is nested in it, such as the quantizer
    of an IVF, without the caller's flags: it would open whatever that names, to be written. So the names have
    to be known before. After the mark stand nlist, the size of a code, then list, slots and name, each with
    its length before it (FAISS 1.15, `OnDiskInvertedListsIOHook`); FAISS opens no file of a record that does
    not end within the index, and codes that look like the mark by chance are followed by no such record.
    """
    if not path.stat().st_size:
        return []
    names = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(_MARK)
        while at >= 0:
            name = _name(content, at + len(_MARK))
            if name is not None:
                names.append(name)
            at = content.find(_MARK, at + 1)
    return names


def _name(content: mmap.mmap, at: int) -> str | None:
    """The name in a record whose nlist stands at `at`; None where there is no whole record."""
    end = len(content)
    at += 2 * _LENGTH.size  # nlist, size of a code
    for width in (_LIST_BYTES, _SLOT_BYTES, 1):
        if at + _LENGTH.size > end:
            return None
        (count,) = _LENGTH.unpack_from(content, at)
        first = at + _LENGTH.size
        at = first + count * width
        if at > end:
            return None
    # The bytes of the whole file follow; a record that ends before them is not read, either.
    return content[first:at].decode("utf-8", "replace") if at + _LENGTH.size <= end else None

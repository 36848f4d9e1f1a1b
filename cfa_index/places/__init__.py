"""Where images are read from and results are written to: a folder, or a prefix of an object store."""

from __future__ import annotations

from pathlib import Path

from cfa_index.places.local import LocalPlace
from cfa_index.places.objects import SCHEME, ObjectPlace
from cfa_index.places.place import Entry, Place

__all__ = ["Entry", "LocalPlace", "ObjectPlace", "Place", "open_place"]


def open_place(where: Path | str) -> Place:
    """The place of a folder's path, or of s3://BUCKET/PREFIX.

    Raises:
        SpecError: see `ObjectPlace`.
    """
    if isinstance(where, str) and where.startswith(SCHEME):
        return ObjectPlace(where)
    return LocalPlace(Path(where))

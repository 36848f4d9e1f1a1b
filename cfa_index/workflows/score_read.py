"""What a worker runs to read an image: without torch and FAISS, which would take it seconds and 700 MB to load."""

from __future__ import annotations

from cfa_index.errors import ImageError
from cfa_index.images import Views, read_views
from cfa_index.places import Entry, Place
from cfa_index.specs import FeatureSpec


def read_entry(
    source: Place, entry: Entry, features: FeatureSpec, max_pixels: int
) -> Views | ImageError | str:
    """Read an image of the list, in whichever process; what is wrong with it is returned."""
    return entry.error or read_views(source, entry.path, features, max_pixels)

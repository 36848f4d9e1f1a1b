"""Several stores of one model, read as one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cfa_index.errors import StoreError
from cfa_index.store.layout import REBUILD
from cfa_index.store.reader import Allocate, PatchStore, plain_memory


class JoinedStore(PatchStore):
    """The store of a build, then those of images that were added later, less what was removed.

    It reads like one store whose rows are those of its parts, one part after the other. Images of the first
    part keep their uris; those of the others have absolute ones, so that `Path(source) / uri` is the file.

    Args:
        parts: at least one, all of the same settings and weights.
        removed: for each part, uris of images that are no longer to be used; their rows stay, but are not
            good ones. None for none.

    Raises:
        StoreError: the parts differ in their settings.
    """

    def __init__(self, parts: Sequence[PatchStore], removed: Sequence[Collection[str]] | None = None) -> None:
        first = parts[0]
        for part in parts[1:]:
            if replace(part.header, source=first.header.source) != first.header:
                raise StoreError(
                    expected="stores of the same settings and weights",
                    got=f"{first.path} and {part.path}",
                    remedy=REBUILD,
                )
        self.path = first.path
        self.header = first.header
        self.images = list(first.images)
        for part in parts[1:]:
            folder = Path(part.header.source)
            self.images += [replace(image, uri=str(folder / image.uri)) for image in part.images]
        self._parts = list(parts)
        self._removed: set[int] = set()
        start = 0
        for part, uris in zip(parts, removed or [()] * len(parts), strict=True):
            gone = frozenset(uris)
            rows = range(start, start + len(part))
            self._removed.update(row for row in rows if self.images[row].uri in gone)
            start += len(part)

    @property
    def groups(self) -> list[list[int]]:
        """Rows of each part's readable images, with those that were removed."""
        groups, first = [], 0
        for part in self._parts:
            groups.append([first + row for row in part.good_rows])
            first += len(part)
        return groups

    @property
    def good_rows(self) -> list[int]:
        """Rows of the images that could be read and were not removed, all of their tiles."""
        return [row for group in self.groups for row in group if self.is_kept(row)]

    def is_kept(self, row: int) -> bool:
        """Whether an image was not removed."""
        return row not in self._removed

    def read(self, rows: Sequence[int], empty: Allocate = plain_memory) -> list[Tensor]:
        """As `PatchStore.read`, each row from its own part; those of several are put together in plain memory."""
        first, slots, found = 0, [], []
        for part in self._parts:
            inside = [slot for slot, row in enumerate(rows) if first <= row < first + len(part)]
            if len(inside) == len(rows):
                return part.read([row - first for row in rows], empty)
            if inside:
                slots += inside
                found.append(part.read([rows[slot] - first for slot in inside]))
            first += len(part)
        back = torch.tensor(slots).argsort()
        return [
            torch.cat(level)[back].contiguous(memory_format=torch.channels_last)
            for level in zip(*found, strict=True)
        ]

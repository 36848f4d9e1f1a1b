"""Reading a finished store; nothing is believed before its size and checksum were compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.errors import StoreError
from cfa_index.files import is_sealed, sha256_of_file
from cfa_index.moments import Moments, RunningMoments
from cfa_index.pyramid import patches_at
from cfa_index.specs import FeatureSpec
from cfa_index.store.layout import (
    REBUILD,
    SCHEMA_VERSION,
    SHARD_IMAGES,
    StoredImage,
    StoreHeader,
    damaged,
    shard_file,
)

Allocate: TypeAlias = Callable[[Sequence[int], torch.dtype], Tensor]
"""Makes a tensor on the host of a shape and a dtype, not initialised."""


def plain_memory(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """As `Allocate` says, in pageable memory."""
    return torch.empty(tuple(shape), dtype=dtype)


class PatchStore:
    """A finished store, read only. Make one with `open`.

    Attributes:
        header: what all rows have in common.
        images: a row a view: an image, or a tile of one. An image is known by the number of its first row.
    """

    def __init__(
        self, path: Path, header: StoreHeader, images: list[StoredImage], shards: list[dict[str, Any]]
    ) -> None:
        self.path = path
        self.header = header
        self.images = images
        self._shards = shards
        self._checked: dict[int, list[tuple[int, int]]] = {}
        self._arrays = [zarr.open_array(path / name, mode="r", zarr_format=3) for name, _ in header.shapes(0)]

    @classmethod
    def open(cls, path: Path) -> PatchStore:
        """Open a store that was written to the end.

        Raises:
            StoreError: it is missing, unfinished, of a newer version, or a file of it is missing,
                cut short or not the one that was written.
        """
        try:
            document = json.loads((path / "store.json").read_bytes())
        except FileNotFoundError as error:
            raise StoreError(
                expected=f"a finished PatchStore at {path}",
                got="no store.json there",
                remedy="run build again; it resumes where it stopped",
            ) from error
        except ValueError as error:
            raise damaged(path / "store.json", "text that is not JSON") from error
        if document.get("schema_version") not in range(1, SCHEMA_VERSION + 1):
            raise StoreError(
                expected=f"a PatchStore of schema version {SCHEMA_VERSION} or older",
                got=f"{document.get('schema_version')!r} at {path}",
                remedy="use the version of cfa-index that wrote it, or " + REBUILD,
            )
        if not is_sealed(document):
            raise damaged(path / "store.json", "a document that does not match its own checksum")
        for name, checksum in document["arrays"].items():
            file = path / name / "zarr.json"
            if not file.exists() or sha256_of_file(file) != checksum:
                raise damaged(file, "a file that is missing or was changed")
        table = path / "images.parquet"
        if not table.exists() or sha256_of_file(table) != document["images_sha256"]:
            raise damaged(table, "a file that is missing or was changed")
        images = [StoredImage(**row) for row in pq.read_table(table).to_pylist()]
        header = StoreHeader(
            source=document["header"]["source"],
            features=FeatureSpec.from_dict(document["header"]["features"]),
            weights_sha256=document["header"]["weights_sha256"],
            channels=tuple(document["header"]["channels"]),
        )
        for number, files in enumerate(document["shards"]):
            for name, entry in files.items():
                file = shard_file(path, name, number)
                got = file.stat().st_size if file.exists() else None
                if got != entry["bytes"]:
                    raise damaged(
                        file, "no file" if got is None else f"{got} instead of {entry['bytes']} bytes"
                    )
        return cls(path, header, images, document["shards"])

    def __len__(self) -> int:
        return len(self.images)

    @property
    def good_rows(self) -> list[int]:
        """Rows of the images that could be read, all of their tiles."""
        broken = self._broken()
        return [row for row, image in enumerate(self.images) if row - image.tile not in broken]

    def _broken(self) -> set[int]:
        return {row - image.tile for row, image in enumerate(self.images) if image.error}

    @property
    def rejected(self) -> int:
        """How many images could not be read."""
        return len(self._broken())

    def images_in(self, rows: Iterable[int]) -> list[int]:
        """The images that some rows are views of, each by its first row, in the order of the rows."""
        return list(dict.fromkeys(row - self.images[row].tile for row in rows))

    def views_of(self, images: Iterable[int]) -> list[int]:
        """All rows of some images, each given by its first row."""
        rows = []
        for row in images:
            rows.append(row)
            while rows[-1] + 1 < len(self.images) and self.images[rows[-1] + 1].tile:
                rows.append(rows[-1] + 1)
        return rows

    def read(self, rows: Sequence[int], empty: Allocate = plain_memory) -> list[Tensor]:
        """Pyramids of some views.

        Args:
            rows: of the table, in any order.
            empty: makes the memory that they are read into; for a card it is pinned.

        Returns:
            A tensor a level, float16 (len(rows), C_l, h_l, w_l), channels_last in memory.

        Raises:
            StoreError: a shard does not match its checksum.
        """
        for shard in sorted({row // SHARD_IMAGES for row in rows}):
            self._check(shard)
        levels = []
        for array, (height, width) in zip(self._arrays, self.header.grids, strict=True):
            cells = empty((len(rows), *array.shape[1:]), torch.float16)
            block = cells.numpy()
            for start, stop, row in _runs(rows):
                block[start:stop] = array[row : row + stop - start]
            levels.append(cells.view(len(rows), height, width, -1).permute(0, 3, 1, 2))
        return levels

    def moments(
        self,
        rows: Sequence[int],
        *,
        cells_of: Callable[[int], NDArray[np.int64]],
        patches_per_image: int = 64,
        seed: int = 0,
        on_image: Callable[[], None] | None = None,
    ) -> Moments:
        """Mean and covariance of the patches of some views, streamed in float64.

        Args:
            rows: of the table.
            cells_of: a row to the cells of its grid that show the image (not padding).
            patches_per_image: cells drawn from each view; all of them would cost as much as the backbone.
            seed: of that draw.
            on_image: called after each view.
        """
        running = RunningMoments(sum(self.header.channels))
        for row in rows:
            draw = np.random.default_rng([seed, row])
            shown = cells_of(row)
            cells = draw.choice(shown, size=min(patches_per_image, len(shown)), replace=False)
            levels = [level[0] for level in self.read([row])]
            running.update(patches_at(levels, torch.from_numpy(cells)).numpy())
            if on_image is not None:
                on_image()
        return running.result()

    def _check(self, shard: int) -> None:
        """Compare a shard with its checksum, again when its files have changed since: a build may run."""
        files = [shard_file(self.path, name, shard) for name in self._shards[shard]]
        try:
            states = [(status.st_ino, status.st_mtime_ns) for status in map(Path.stat, files)]
        except FileNotFoundError as error:
            raise damaged(files[0].parent, "a missing shard") from error
        if self._checked.get(shard) == states:
            return
        for file, entry in zip(files, self._shards[shard].values(), strict=True):
            if sha256_of_file(file) != entry["sha256"]:
                raise damaged(file, "bytes that differ from what was written when this store was opened")
        self._checked[shard] = states


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Cut `rows` into consecutive stretches: (start, stop) in `rows`, first row."""
    start = 0
    for stop in range(1, len(rows) + 1):
        if stop == len(rows) or rows[stop] != rows[stop - 1] + 1:
            yield start, stop, rows[start]
            start = stop

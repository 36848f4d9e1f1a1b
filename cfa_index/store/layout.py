"""What a store holds and where: a row a view, the header, file names, and which shards have to be written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cfa_index.errors import StoreError
from cfa_index.specs import FeatureSpec

SCHEMA_VERSION = 2
"""1: a row an image. 2: a row a view, `tile` its number within the image; the same bytes without tiles."""
SHARD_IMAGES = 16
"""Rows a shard."""
REBUILD = "delete this store and run build again"


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """A row of the store's table: an image, or where images are cut into tiles one of these.

    The rows of an image stand together, in the order of its tiles. So `row - tile` is its first row, and that
    number is what the image is known by in the store.

    Attributes:
        uri: path below the store's source folder, with forward slashes.
        size, mtime_ns, sha256: of the file, to notice a change.
        width, height: of the decoded image in pixels; 0 when it could not be read.
        error: why it could not be read; empty for a good image. Its features are zeros, never used.
        tile: number of the view within its image; 0 without tiles.
    """

    uri: str
    size: int
    mtime_ns: int
    sha256: str
    width: int = 0
    height: int = 0
    error: str = ""
    tile: int = 0

    def is_same_view(self, other: StoredImage) -> bool:
        """Whether both rows speak of the same part of the same content under the same name."""
        mine, theirs = ((one.uri, one.size, one.sha256, one.tile) for one in (self, other))
        return mine == theirs

    def to_dict(self, features: FeatureSpec) -> dict[str, Any]:
        """Plain values; without tiles as version 1 had them, so that the table keeps its checksum."""
        values = asdict(self)
        if not features.tile_px:
            del values["tile"]
        return values


@dataclass(frozen=True, kw_only=True)
class StoreHeader:
    """What every pyramid in a store has in common; two stores with equal headers are interchangeable.

    Attributes:
        source: the folder that the uris are relative to.
        features: backbone, levels, geometry.
        weights_sha256: of the backbone's tensors.
        channels: C_l of each level.
    """

    source: str
    features: FeatureSpec
    weights_sha256: str
    channels: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "source": self.source,
            "features": self.features.to_dict(),
            "weights_sha256": self.weights_sha256,
            "channels": list(self.channels),
        }

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """(h_l, w_l) of each level."""
        sides = [self.features.size_px // stride for stride in self.features.strides]
        return tuple((side, side) for side in sides)

    def shapes(self, rows: int) -> list[tuple[str, tuple[int, int, int]]]:
        """Name and shape (rows, cells, channels) of each level's array."""
        return [
            (f"level{stride}", (rows, h * w, c))
            for stride, (h, w), c in zip(self.features.strides, self.grids, self.channels, strict=True)
        ]


def plan_shards(images: Sequence[StoredImage], recorded: Sequence[Sequence[StoredImage] | None]) -> list[int]:
    """Which shards have to be written; pure.

    Args:
        images: the rows that the store is to hold, in order.
        recorded: the images of each shard on disk that is whole; None where there is none.
    """
    shards = -(-len(images) // SHARD_IMAGES)
    todo = []
    for shard in range(shards):
        wanted = images[shard * SHARD_IMAGES : (shard + 1) * SHARD_IMAGES]
        have = recorded[shard] if shard < len(recorded) else None
        same = have is not None and len(have) == len(wanted)
        if not (same and all(a.is_same_view(b) for a, b in zip(have or (), wanted, strict=True))):
            todo.append(shard)
    return todo


def shard_file(path: Path, name: str, shard: int) -> Path:
    """Zarr v3's own key of a shard in an array cut along its first axis only."""
    return path / name / "c" / str(shard) / "0" / "0"


def record_file(path: Path, shard: int) -> Path:
    """The record of a shard."""
    return path / "records" / f"{shard:05d}.json"


def damaged(file: Path, got: str) -> StoreError:
    """The error for a file that is missing or not as it was written."""
    return StoreError(expected=f"{file} as it was written", got=got, remedy=REBUILD)

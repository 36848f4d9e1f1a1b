"""The anomaly maps that a run keeps: one Zarr array of all images, or one of each where images have tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cfa_index.places import Place
from cfa_index.store import METADATA_FILE, map_of_tiles, maps_file, maps_metadata, maps_shard, read_maps_shard
from cfa_index.workflows.score_listing import Shard

FOLDER = "maps"


class ShardMaps(Protocol):
    """The maps of one shard on their way to the target."""

    def add(self, position: int, anomaly_map: NDArray[np.float32] | None) -> None:
        """Take the map of an image, None for an image without one. Raises OutputError."""

    def write(self) -> None:
        """All that is scored of the shard was added. Raises OutputError."""


class Maps(Protocol):
    """Where maps go."""

    def of(self, shard: Shard, *, again: bool) -> ShardMaps:
        """Those of a shard; `again` where an earlier run has left some that stay. Raises OutputError."""

    def finish(self, end_id: int) -> None:
        """All images are scored; ids end before `end_id`. Raises OutputError."""


@dataclass(frozen=True, kw_only=True)
class OneArray:
    """maps/, an array (images, S, S) float32 by image_id, NaN where there is no map.

    Attributes:
        target: where it is.
        shard_images: images a shard, of the list and of the array.
        size_px: S.
    """

    target: Place
    shard_images: int
    size_px: int

    def of(self, shard: Shard, *, again: bool) -> ShardMaps:
        """See `Maps.of`; they are held until the shard is whole, since a shard is one file."""
        name = f"{FOLDER}/{maps_file(shard.number)}"
        content = self.target.read(name) if again else None
        if content is None:
            maps = np.full((self.shard_images, self.size_px, self.size_px), np.nan, dtype=np.float32)
        else:
            maps = read_maps_shard(content, shard_images=self.shard_images, size_px=self.size_px)
        return _HeldMaps(self.target, name, maps)

    def finish(self, end_id: int) -> None:
        """See `Maps.finish`."""
        content = maps_metadata(end_id, shard_images=self.shard_images, size_px=self.size_px)
        self.target.write(f"{FOLDER}/{METADATA_FILE}", content)


@dataclass(frozen=True)
class _HeldMaps:
    target: Place
    name: str
    maps: NDArray[np.float32]

    def add(self, position: int, anomaly_map: NDArray[np.float32] | None) -> None:
        self.maps[position] = np.nan if anomaly_map is None else anomaly_map

    def write(self) -> None:
        self.target.write(self.name, maps_shard(self.maps))


@dataclass(frozen=True, kw_only=True)
class ArrayAnImage:
    """maps/<image_id>/, an array (H', W') float32 for each image: tiles give maps of any size.

    Attributes:
        target: where they are.
        size_px: S, the side of a chunk.
    """

    target: Place
    size_px: int

    def of(self, shard: Shard, *, again: bool) -> ShardMaps:
        """See `Maps.of`; each is written at once, since it may be large."""
        del again
        return _WrittenMaps(self.target, shard, self.size_px)

    def finish(self, end_id: int) -> None:
        """See `Maps.finish`."""
        del end_id


@dataclass(frozen=True)
class _WrittenMaps:
    target: Place
    shard: Shard
    size_px: int

    def add(self, position: int, anomaly_map: NDArray[np.float32] | None) -> None:
        folder = f"{FOLDER}/{self.shard.first_id + position:08d}"
        if anomaly_map is None:
            self.target.remove(f"{folder}/{METADATA_FILE}")  # without it there is no array
            return
        files = map_of_tiles(anomaly_map, size_px=self.size_px)
        for name in sorted(files, key=lambda name: name == METADATA_FILE):  # last
            self.target.write(f"{folder}/{name}", files[name])

    def write(self) -> None:
        """Nothing is left to write."""

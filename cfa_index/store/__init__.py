"""PatchStore: the pooled pyramids of a folder of images, on disk. The only package that imports zarr.

A row is an image, or a tile of one.

    <store>.zarr/
      level4, level8, ...       Zarr v3 arrays (rows, cells, channels) float16, one row a chunk,
                                SHARD_IMAGES a shard, zstd
      records/00000.json        a record a shard: its rows and the checksum of each level's file
      images.parquet, store.json   written last: a store without store.json is unfinished

A shard counts as done when its record names the very rows that are planned for it and its files
have the recorded sizes. So an interrupted run resumes, and a changed, new or removed image makes
just the shards that it touches again. Zarr reads a missing shard as zeros without a word; here a
shard is compared with its checksum when it is first read.
"""

from cfa_index.store.joined import JoinedStore
from cfa_index.store.layout import SHARD_IMAGES, StoredImage, StoreHeader, plan_shards
from cfa_index.store.maps import (
    METADATA_FILE,
    map_of_tiles,
    maps_file,
    maps_metadata,
    maps_shard,
    read_maps_shard,
)
from cfa_index.store.reader import PatchStore
from cfa_index.store.writer import StoreWriter, recorded_images

__all__ = [
    "METADATA_FILE",
    "SHARD_IMAGES",
    "JoinedStore",
    "PatchStore",
    "StoreHeader",
    "StoreWriter",
    "StoredImage",
    "map_of_tiles",
    "maps_file",
    "maps_metadata",
    "maps_shard",
    "plan_shards",
    "read_maps_shard",
    "recorded_images",
]

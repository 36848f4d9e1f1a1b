"""Anomaly maps as one Zarr array (images, S, S) float32, or an array an image, made as the content of the files.

Whoever writes the files does it whole and where he likes: a shard of the array is one file, as a shard of the
images is one part of their scores. An image without a map is NaN, and so is one whose shard is missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

METADATA_FILE = "zarr.json"
_ONLY_SHARD = "c/0/0/0"
_COMPRESSOR = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")


def maps_metadata(images: int, *, shard_images: int, size_px: int) -> bytes:
    """The array's `zarr.json`, for ids 0 to `images` - 1; it lies beside the folder of the shards."""
    files, _ = _array(images, shard_images, size_px)
    return files[METADATA_FILE].to_bytes()


def maps_file(shard: int) -> str:
    """Where a shard lies below the array: Zarr v3's own key."""
    return f"c/{shard}/0/0"


def maps_shard(maps: NDArray[np.float32]) -> bytes:
    """The file of a whole shard: (shard_images, S, S) float32, NaN where there is no map."""
    files, array = _array(len(maps), len(maps), maps.shape[1])
    array[:] = maps
    return files[_ONLY_SHARD].to_bytes()


def read_maps_shard(content: bytes, *, shard_images: int, size_px: int) -> NDArray[np.float32]:
    """What `maps_shard` took."""
    files, array = _array(shard_images, shard_images, size_px)
    files[_ONLY_SHARD] = default_buffer_prototype().buffer.from_bytes(content)
    return np.asarray(array[:], dtype=np.float32)


def map_of_tiles(anomaly_map: NDArray[np.float32], *, size_px: int) -> dict[str, bytes]:
    """The files of an array (H', W') float32 of its own, in chunks of `size_px`, all in one shard."""
    height, width = (-(-px // size_px) * size_px for px in anomaly_map.shape)
    files: dict[str, Buffer] = {}
    array = zarr.create_array(
        store=MemoryStore(files),
        shape=anomaly_map.shape,
        dtype="float32",
        chunks=(size_px, size_px),
        shards=(height, width),
        compressors=_COMPRESSOR,
        fill_value=np.nan,
        config={"write_empty_chunks": True},
    )
    array[:] = anomaly_map
    return {name: content.to_bytes() for name, content in files.items()}


def _array(images: int, shard_images: int, size_px: int) -> tuple[dict[str, Buffer], zarr.Array[Any]]:
    """An array in memory, and its files."""
    files: dict[str, Buffer] = {}
    array = zarr.create_array(
        store=MemoryStore(files),
        shape=(images, size_px, size_px),
        dtype="float32",
        chunks=(1, size_px, size_px),
        shards=(shard_images, size_px, size_px),
        compressors=_COMPRESSOR,
        fill_value=np.nan,
        config={"write_empty_chunks": True},
    )
    return files, array

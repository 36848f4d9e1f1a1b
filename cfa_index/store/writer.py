"""Filling a store, shard by shard, in one process at a time."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zarr
from torch import Tensor
from zarr.codecs import ZstdCodec

from cfa_index.errors import StoreError
from cfa_index.files import seal, sha256_of_file, take_lock, write_bytes, write_json, writing
from cfa_index.store.layout import (
    SCHEMA_VERSION,
    SHARD_IMAGES,
    StoredImage,
    StoreHeader,
    plan_shards,
    record_file,
    shard_file,
)
from cfa_index.store.reader import PatchStore


class StoreWriter:
    """Writes the shards of a store that are missing; use as a context manager (it holds a lock).

    Raises:
        StoreError: another process is writing this store.
        OutputError: the disk is full or read-only.
    """

    def __init__(self, path: Path, header: StoreHeader, images: Sequence[StoredImage]) -> None:
        self.path = path
        self.header = header
        self._images = list(images)
        with writing(path):
            (path / "records").mkdir(parents=True, exist_ok=True)
            lock = take_lock(path / ".lock")
        if lock is None:
            raise StoreError(
                expected=f"to be the only writer of {path}",
                got="another process that is writing it",
                remedy="wait for it to end, or give another --features-dir",
            )
        self._lock = lock
        try:
            self._recorded = self._read_records()
            self.todo = plan_shards(self._images, self._recorded)
            if self.todo or not _is_finished(path, header, len(images)):
                with writing(path):
                    (path / "store.json").unlink(missing_ok=True)
            self._arrays = self._open_arrays()
        except BaseException:  # nobody gets this object, so nobody else can give the lock back
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def shard_rows(self, shard: int) -> range:
        """The rows of a shard."""
        return range(shard * SHARD_IMAGES, min((shard + 1) * SHARD_IMAGES, len(self._images)))

    def write_shard(self, shard: int, levels: Sequence[Tensor], images: Sequence[StoredImage]) -> None:
        """Write one whole shard and its record.

        Args:
            shard: its number.
            levels: (n, C_l, h_l, w_l) each, n = len(shard_rows(shard)); zeros for broken images.
            images: the rows, with size and error filled in.

        Raises:
            StoreError: a feature is not finite in float16.
            OutputError: the disk is full or read-only.
        """
        rows = self.shard_rows(shard)
        files = {}
        for array, (name, _), level in zip(self._arrays, self.header.shapes(0), levels, strict=True):
            block = level.permute(0, 2, 3, 1).flatten(1, 2).to(torch.float16).numpy()
            if not np.isfinite(block).all():
                raise StoreError(
                    expected="features that are finite in float16",
                    got=f"an overflow or NaN at {name} in {images[0].uri} or one of the {len(rows)} rows after it",
                    remedy="check the weights file, or use another backbone",
                )
            file = shard_file(self.path, name, shard)
            with writing(file):
                array[rows.start : rows.stop] = block
                files[name] = {"sha256": sha256_of_file(file), "bytes": file.stat().st_size}
        rows_said = [image.to_dict(self.header.features) for image in images]
        record = {"images": rows_said, "files": files}
        write_bytes(record_file(self.path, shard), json.dumps(record, ensure_ascii=False).encode())
        self._images[rows.start : rows.stop] = images

    def finish(self) -> PatchStore:
        """Write the image table and the header; after this the store can be opened."""
        self._remove_stale()
        shards = []
        images: list[StoredImage] = []
        for shard in range(-(-len(self._images) // SHARD_IMAGES)):
            record = json.loads(record_file(self.path, shard).read_bytes())
            shards.append(record["files"])
            images += [StoredImage(**row) for row in record["images"]]
        table = pa.Table.from_pylist([image.to_dict(self.header.features) for image in images])
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_bytes(self.path / "images.parquet", buffer.getvalue())
        document = {
            "schema_version": SCHEMA_VERSION,
            "header": self.header.to_dict(),
            "images": len(images),
            "images_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
            "arrays": {
                name: sha256_of_file(self.path / name / "zarr.json") for name, _ in self.header.shapes(0)
            },
            "shards": shards,
        }
        write_json(self.path / "store.json", seal(document))
        return PatchStore.open(self.path)

    def _read_records(self) -> list[list[StoredImage] | None]:
        """Images of each recorded shard whose files are there in full; a bad record is as none."""
        found: list[list[StoredImage] | None] = []
        shard = 0
        while (file := record_file(self.path, shard)).exists():
            try:
                record = json.loads(file.read_bytes())
                whole = all(
                    shard_file(self.path, name, shard).stat().st_size == entry["bytes"]
                    for name, entry in record["files"].items()
                )
                found.append([StoredImage(**row) for row in record["images"]] if whole else None)
            except (OSError, ValueError, KeyError, TypeError):
                found.append(None)
            shard += 1
        return found

    def _open_arrays(self) -> list[zarr.Array[Any]]:
        """Each level's array, its metadata written anew: it follows from the header and the images."""
        arrays = []
        for name, shape in self.header.shapes(len(self._images)):
            with writing(self.path / name):
                (self.path / name / "zarr.json").unlink(missing_ok=True)
                array = zarr.create_array(
                    store=self.path / name,
                    shape=shape,
                    dtype="float16",
                    chunks=(1, *shape[1:]),
                    shards=(SHARD_IMAGES, *shape[1:]),
                    compressors=ZstdCodec(level=1),
                    config={"write_empty_chunks": True},
                )
            arrays.append(array)
        return arrays

    def _remove_stale(self) -> None:
        """Shards beyond the last image, of a time when there were more."""
        shard = -(-len(self._images) // SHARD_IMAGES)
        with writing(self.path):
            while record_file(self.path, shard).exists():
                record_file(self.path, shard).unlink()
                for name, _ in self.header.shapes(0):
                    shard_file(self.path, name, shard).unlink(missing_ok=True)
                shard += 1


def _is_finished(path: Path, header: StoreHeader, images: int) -> bool:
    try:
        document = json.loads((path / "store.json").read_bytes())
        return bool(document["header"] == header.to_dict() and document["images"] == images)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def recorded_images(path: Path) -> dict[str, StoredImage]:
    """A row of each image, by uri, that an earlier run recorded in a store, finished or not."""
    found: dict[str, StoredImage] = {}
    for file in sorted((path / "records").glob("*.json")):
        try:
            rows = json.loads(file.read_bytes())["images"]
            found.update({row["uri"]: StoredImage(**row) for row in rows})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found

"""PatchStore: the pooled pyramids of a folder of images, on disk. The only file that imports zarr.

    <store>.zarr/
      level4, level8, ...       Zarr v3 arrays (images, cells, channels) float16, one image a chunk,
                                SHARD_IMAGES a shard, zstd
      records/00000.json        a record a shard: its images and the checksum of each level's file
      images.parquet, store.json   written last: a store without store.json is unfinished

A shard counts as done when its record names the very images that are planned for it and its files
have the recorded sizes. So an interrupted run resumes, and a changed, new or removed image makes
just the shards that it touches again. Zarr reads a missing shard as zeros without a word; here a
shard is compared with its checksum when it is first read.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
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
from cfa_index.files import is_sealed, seal, sha256_of_file, write_bytes, write_json, writing
from cfa_index.moments import Moments, RunningMoments
from cfa_index.pyramid import patches_at
from cfa_index.specs import FeatureSpec

SCHEMA_VERSION = 1
SHARD_IMAGES = 16
_REBUILD = "delete this store and run build again"


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """A row of the store's image table.

    Attributes:
        uri: path below the store's source folder, with forward slashes.
        size, mtime_ns, sha256: of the file, to notice a change.
        width, height: of the decoded image in pixels; 0 when it could not be read.
        error: why it could not be read; empty for a good image. Its features are zeros, never used.
    """

    uri: str
    size: int
    mtime_ns: int
    sha256: str
    width: int = 0
    height: int = 0
    error: str = ""

    def is_same_file(self, other: StoredImage) -> bool:
        """Whether both rows speak of the same content under the same name."""
        return (self.uri, self.size, self.sha256) == (other.uri, other.size, other.sha256)


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

    @property
    def bytes_per_image(self) -> int:
        """Uncompressed bytes of one pyramid in float16."""
        return sum(2 * c * h * w for c, (h, w) in zip(self.channels, self.grids, strict=True))

    def _shapes(self, images: int) -> list[tuple[str, tuple[int, int, int]]]:
        """Name and shape (images, cells, channels) of each level's array."""
        return [
            (f"level{stride}", (images, h * w, c))
            for stride, (h, w), c in zip(self.features.strides, self.grids, self.channels, strict=True)
        ]


def plan_shards(images: Sequence[StoredImage], recorded: Sequence[Sequence[StoredImage] | None]) -> list[int]:
    """Which shards have to be written; pure.

    Args:
        images: what the store is to hold, in order.
        recorded: the images of each shard on disk that is whole; None where there is none.
    """
    shards = -(-len(images) // SHARD_IMAGES)
    todo = []
    for shard in range(shards):
        wanted = images[shard * SHARD_IMAGES : (shard + 1) * SHARD_IMAGES]
        have = recorded[shard] if shard < len(recorded) else None
        same = have is not None and len(have) == len(wanted)
        if not (same and all(a.is_same_file(b) for a, b in zip(have or (), wanted, strict=True))):
            todo.append(shard)
    return todo


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
            self._lock = (path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StoreError(
                expected=f"to be the only writer of {path}",
                got="another process that is writing it",
                remedy="wait for it to end, or give another --features-dir",
            ) from error
        self._recorded = self._read_records()
        self.todo = plan_shards(self._images, self._recorded)
        if self.todo or not _is_finished(path, header, len(images)):
            (path / "store.json").unlink(missing_ok=True)
        self._arrays = self._open_arrays() if self.todo else []

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
        for array, (name, _), level in zip(self._arrays, self.header._shapes(0), levels, strict=True):
            block = level.permute(0, 2, 3, 1).flatten(1, 2).to(torch.float16).numpy()
            if not np.isfinite(block).all():
                raise StoreError(
                    expected="features that are finite in float16",
                    got=f"an overflow or NaN at {name} in {images[0].uri} or one of the {len(rows)} images after it",
                    remedy="check the weights file, or use another backbone",
                )
            file = _shard_file(self.path, name, shard)
            with writing(file):
                array[rows.start : rows.stop] = block
                files[name] = {"sha256": sha256_of_file(file), "bytes": file.stat().st_size}
        record = {"images": [asdict(image) for image in images], "files": files}
        write_bytes(_record_file(self.path, shard), json.dumps(record, ensure_ascii=False).encode())
        self._images[rows.start : rows.stop] = images

    def finish(self) -> PatchStore:
        """Write the image table and the header; after this the store can be opened."""
        shards = []
        images: list[StoredImage] = []
        for shard in range(-(-len(self._images) // SHARD_IMAGES)):
            record = json.loads(_record_file(self.path, shard).read_bytes())
            shards.append(record["files"])
            images += [StoredImage(**row) for row in record["images"]]
        table = pa.Table.from_pylist([asdict(image) for image in images])
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_bytes(self.path / "images.parquet", buffer.getvalue())
        document = {
            "schema_version": SCHEMA_VERSION,
            "header": self.header.to_dict(),
            "images": len(images),
            "images_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
            "arrays": {
                name: sha256_of_file(self.path / name / "zarr.json") for name, _ in self.header._shapes(0)
            },
            "shards": shards,
        }
        write_json(self.path / "store.json", seal(document))
        return PatchStore.open(self.path)

    def _read_records(self) -> list[list[StoredImage] | None]:
        """Images of each recorded shard whose files are there in full; a bad record is as none."""
        found: list[list[StoredImage] | None] = []
        shard = 0
        while (file := _record_file(self.path, shard)).exists():
            try:
                record = json.loads(file.read_bytes())
                whole = all(
                    _shard_file(self.path, name, shard).stat().st_size == entry["bytes"]
                    for name, entry in record["files"].items()
                )
                found.append([StoredImage(**row) for row in record["images"]] if whole else None)
            except (OSError, ValueError, KeyError, TypeError):
                found.append(None)
            shard += 1
        return found

    def _open_arrays(self) -> list[zarr.Array[Any]]:
        arrays = []
        for name, shape in self.header._shapes(len(self._images)):
            with writing(self.path / name):
                if (self.path / name / "zarr.json").exists():
                    array = zarr.open_array(self.path / name, mode="r+", zarr_format=3)
                    array.resize(shape)
                else:
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


class PatchStore:
    """A finished store, read only. Make one with `open`."""

    def __init__(
        self, path: Path, header: StoreHeader, images: list[StoredImage], shards: list[dict[str, Any]]
    ) -> None:
        self.path = path
        self.header = header
        self.images = images
        self._shards = shards
        self._checked: set[int] = set()
        self._arrays = [
            zarr.open_array(path / name, mode="r", zarr_format=3) for name, _ in header._shapes(0)
        ]

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
            raise _damaged(path / "store.json", "text that is not JSON") from error
        if document.get("schema_version") != SCHEMA_VERSION:
            raise StoreError(
                expected=f"a PatchStore of schema version {SCHEMA_VERSION}",
                got=f"{document.get('schema_version')!r} at {path}",
                remedy="use the version of cfa-index that wrote it, or " + _REBUILD,
            )
        if not is_sealed(document):
            raise _damaged(path / "store.json", "a document that does not match its own checksum")
        for name, checksum in document["arrays"].items():
            file = path / name / "zarr.json"
            if not file.exists() or sha256_of_file(file) != checksum:
                raise _damaged(file, "a file that is missing or was changed")
        table = path / "images.parquet"
        if not table.exists() or sha256_of_file(table) != document["images_sha256"]:
            raise _damaged(table, "a file that is missing or was changed")
        images = [StoredImage(**row) for row in pq.read_table(table).to_pylist()]
        header = StoreHeader(
            source=document["header"]["source"],
            features=FeatureSpec.from_dict(document["header"]["features"]),
            weights_sha256=document["header"]["weights_sha256"],
            channels=tuple(document["header"]["channels"]),
        )
        for number, files in enumerate(document["shards"]):
            for name, entry in files.items():
                file = _shard_file(path, name, number)
                got = file.stat().st_size if file.exists() else None
                if got != entry["bytes"]:
                    raise _damaged(
                        file, "no file" if got is None else f"{got} instead of {entry['bytes']} bytes"
                    )
        return cls(path, header, images, document["shards"])

    def __len__(self) -> int:
        return len(self.images)

    @property
    def good_rows(self) -> list[int]:
        """Rows of the images that could be read."""
        return [row for row, image in enumerate(self.images) if not image.error]

    def read(self, rows: Sequence[int]) -> list[Tensor]:
        """Pyramids of some images.

        Args:
            rows: of the image table, in any order.

        Returns:
            A tensor a level, float16 (len(rows), C_l, h_l, w_l), channels_last in memory.

        Raises:
            StoreError: a shard does not match its checksum.
        """
        for shard in sorted({row // SHARD_IMAGES for row in rows} - self._checked):
            self._check(shard)
        levels = []
        for array, (height, width) in zip(self._arrays, self.header.grids, strict=True):
            block = np.empty((len(rows), *array.shape[1:]), dtype=np.float16)
            for start, stop, row in _runs(rows):
                block[start:stop] = array[row : row + stop - start]
            cells = torch.from_numpy(block).view(len(rows), height, width, -1)
            levels.append(cells.permute(0, 3, 1, 2))
        return levels

    def moments(
        self,
        rows: Sequence[int],
        *,
        patches_per_image: int = 64,
        seed: int = 0,
        on_image: Callable[[], None] | None = None,
    ) -> Moments:
        """Mean and covariance of the patches of some images, streamed in float64.

        Args:
            rows: of the image table.
            patches_per_image: cells drawn from each image; all of them would cost as much as the backbone.
            seed: of that draw.
            on_image: called after each image.
        """
        running = RunningMoments(sum(self.header.channels))
        height, width = self.header.grids[0]
        for row in rows:
            draw = np.random.default_rng([seed, row])
            cells = draw.choice(height * width, size=min(patches_per_image, height * width), replace=False)
            levels = [level[0] for level in self.read([row])]
            running.update(patches_at(levels, torch.from_numpy(cells)).numpy())
            if on_image is not None:
                on_image()
        return running.result()

    def _check(self, shard: int) -> None:
        for name, entry in self._shards[shard].items():
            file = _shard_file(self.path, name, shard)
            if not file.exists() or sha256_of_file(file) != entry["sha256"]:
                raise _damaged(file, "bytes that differ from what was written")
        self._checked.add(shard)


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Cut `rows` into consecutive stretches: (start, stop) in `rows`, first row."""
    start = 0
    for stop in range(1, len(rows) + 1):
        if stop == len(rows) or rows[stop] != rows[stop - 1] + 1:
            yield start, stop, rows[start]
            start = stop


def _shard_file(path: Path, name: str, shard: int) -> Path:
    """Zarr v3's own key of a shard in an array cut along its first axis only."""
    return path / name / "c" / str(shard) / "0" / "0"


def _record_file(path: Path, shard: int) -> Path:
    return path / "records" / f"{shard:05d}.json"


def _is_finished(path: Path, header: StoreHeader, images: int) -> bool:
    try:
        document = json.loads((path / "store.json").read_bytes())
        return bool(document["header"] == header.to_dict() and document["images"] == images)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _damaged(file: Path, got: str) -> StoreError:
    return StoreError(expected=f"{file} as it was written", got=got, remedy=_REBUILD)


def recorded_images(path: Path) -> dict[str, StoredImage]:
    """Images by uri that an earlier run recorded in a store, finished or not; empty where there is none."""
    found: dict[str, StoredImage] = {}
    for file in sorted((path / "records").glob("*.json")):
        try:
            rows = json.loads(file.read_bytes())["images"]
            found.update({row["uri"]: StoredImage(**row) for row in rows})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found

"""Images to PatchStore: the only place where the backbone sees a training image, and it sees it once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.backbones import Backbone, forward_bytes
from cfa_index.bank import shared_threads
from cfa_index.card_memory import make_room, memory_of
from cfa_index.errors import DatasetError, ImageError
from cfa_index.events import Listener, Notice, ignore, stage
from cfa_index.files import printable, sha256_of_file, sha256_of_json
from cfa_index.footprint import SMALLER_NETWORK, Footprint
from cfa_index.images import (
    Frame,
    ImageBatch,
    count_views,
    frame_at,
    load_batches,
    valid_mask,
    view_count,
)
from cfa_index.specs import FeatureSpec
from cfa_index.store import (
    SHARD_IMAGES,
    PatchStore,
    StoredImage,
    StoreHeader,
    StoreWriter,
    recorded_images,
)
from cfa_index.transfers import Downloads, Pending, Uploads

READ_IMAGES = 8
"""Images read from a store at once, where nothing else decides."""
_FORWARD_IMAGES = 8
"""Images a forward pass: larger batches need more memory and are no faster on a CPU."""

_ReadRow = tuple[StoredImage, Tensor | None]
"""A row of the store as it was read, and its pixels (3, S, S); None where it has an error."""


def store_path(features_dir: Path, category: str, header: StoreHeader) -> Path:
    """features/<category>/<digest>.zarr; the digest covers the source folder, the settings and the weights."""
    return features_dir / category / f"{sha256_of_json(header.to_dict())[:16]}.zarr"


def store_header(source: Path, features: FeatureSpec, backbone: Backbone) -> StoreHeader:
    """The header of a store of `source` under a backbone."""
    return StoreHeader(
        source=str(source.resolve()),
        features=features,
        weights_sha256=backbone.origin.sha256,
        channels=backbone.channels,
    )


@shared_threads()
def extract(
    images: Sequence[Path],
    *,
    source: Path,
    backbone: Backbone,
    features: FeatureSpec,
    path: Path,
    device: torch.device,
    threads: int = 2,
    listener: Listener = ignore,
) -> PatchStore:
    """Fill a PatchStore with the pyramids of some images; what it already holds is not computed again.

    Args:
        images: below `source`, in the order of the rows.
        source: folder that the uris are relative to.
        backbone: frozen, on `device`.
        features: geometry and levels.
        path: the store's folder.
        device: of the forward pass.
        threads: that decode.
        listener: told of progress and of images that could not be read.

    Raises:
        DatasetError: not one image could be read.
        StoreError: another process writes this store, or a feature overflows.
        OutputError: the disk is full or read-only.
        CardMemoryError: a card has no room for a forward pass.
    """
    if not images:
        raise DatasetError(expected=f"good images in {source}", got="none", remedy="give at least one")
    if memory_of(device) is not None:
        forward = forward_bytes(backbone, _FORWARD_IMAGES, features.size_px)
        make_room(Footprint.of(SMALLER_NETWORK, network=forward), device)
    header = store_header(source, features, backbone)
    planned = _plan_rows(images, source, features, path, listener)
    uploads, downloads = Uploads(device), Downloads(device)
    with StoreWriter(path, header, planned) as writer:
        todo = sum(len(writer.shard_rows(shard)) for shard in writer.todo)
        with stage(listener, "features", todo, features.view_unit) as advance:
            read = _read_rows(writer, planned, images, features, threads)
            queued = (
                (shard, _queue([next(read) for _ in writer.shard_rows(shard)], backbone, uploads, downloads))
                for shard in writer.todo
            )
            for shard, part in downloads.behind(queued):
                writer.write_shard(shard, _pyramids(part, header), part.stored)
                advance(len(part.stored))
        store = writer.finish()
    for error in dict.fromkeys(
        image.error for image in store.images if image.error
    ):  # its tiles say the same
        listener(Notice(message=f"left out: {error}"))
    if not store.good_rows:
        raise DatasetError(
            expected=f"at least one readable image among {len(images)} in {source}",
            got=f"none; the first says: {store.images[0].error}",
            remedy="look at the files, or point --data-root at another folder",
        )
    return store


def _plan_rows(
    images: Sequence[Path], source: Path, features: FeatureSpec, path: Path, listener: Listener
) -> list[StoredImage]:
    """The rows of a store: size, time and checksum of every file, and with tiles a row each.

    A file whose size and time are on record is not read again. One whose tiles cannot be counted has one row.
    """
    known = recorded_images(path)
    planned = []
    with stage(listener, "checksums", len(images), "images") as advance:
        for image in images:
            uri = printable(image.relative_to(source).as_posix())
            stamped = _stamp(image, uri, known.get(uri))
            planned += [replace(stamped, tile=tile) for tile in range(_count(image, stamped, features))]
            advance(1)
    return planned


def _count(image: Path, stamped: StoredImage, features: FeatureSpec) -> int:
    if stamped.width:
        return view_count(stamped.width, stamped.height, features)
    try:
        return count_views(image, features)
    except ImageError:  # which is said when it is decoded
        return 1


def _stamp(image: Path, uri: str, known: StoredImage | None) -> StoredImage:
    try:
        status = image.stat()
        if known and not known.error and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
            return known
        checksum = sha256_of_file(image) if image.is_file() else ""
        return StoredImage(uri=uri, size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=checksum)
    except OSError:
        return StoredImage(uri=uri, size=0, mtime_ns=0, sha256="")


def _read_rows(
    writer: StoreWriter,
    planned: Sequence[StoredImage],
    images: Sequence[Path],
    features: FeatureSpec,
    threads: int,
) -> Iterator[_ReadRow]:
    """The rows of the shards to do, in order: each with its size or its error, and its pixels (3, S, S).

    Args:
        writer: of the store; a batch is as large as one of its shards.
        planned: all rows.
        images: the files, in the order of the rows.
        features, threads: see `load_batches`.
    """
    firsts = [row for row, stored in enumerate(planned) if stored.tile == 0]
    rows_of = [range(*ends) for ends in itertools.pairwise([*firsts, len(planned)])]
    todo = dict.fromkeys(row for shard in writer.todo for row in writer.shard_rows(shard))
    numbers = [number for number, rows in enumerate(rows_of) if any(row in todo for row in rows)]
    batches = load_batches(
        (images[number] for number in numbers), features, batch_size=SHARD_IMAGES, threads=threads
    )
    theirs = [rows_of[number] for number in numbers]
    found: dict[int, _ReadRow] = {}
    for row in list(todo):
        while row not in found:
            read = _rows_of_batch(next(batches), theirs, planned, features)
            found |= {at: one for at, one in read if at in todo}
        del todo[row]
        yield found.pop(row)


def _rows_of_batch(
    batch: ImageBatch, rows_of: Sequence[range], planned: Sequence[StoredImage], features: FeatureSpec
) -> Iterator[tuple[int, _ReadRow]]:
    """Rows and what was read of them; `rows_of` are those of each image in the sequence."""
    errors = [(position, str(error)) for position, error in batch.errors]
    for slot, (position, tile, frame) in enumerate(
        zip(batch.positions, batch.tiles, batch.frames, strict=True)
    ):
        rows, width, height = rows_of[position], frame.source_width, frame.source_height
        if view_count(width, height, features) != len(rows):
            errors.append((position, f"{planned[rows[0]].uri} has changed while it was read"))
            continue
        stored = replace(planned[rows[tile]], width=width, height=height)
        yield rows[tile], (stored, batch.pixels[slot])
    for position, error in errors:
        for row in rows_of[position]:
            yield row, (replace(planned[row], error=error), None)


@dataclass(frozen=True, kw_only=True)
class _Queued:
    """A shard that the device is at work on.

    Attributes:
        stored: its rows.
        pending: slots of some rows, and their pyramids in float16, a forward pass each.
    """

    stored: list[StoredImage]
    pending: list[tuple[list[int], Pending]]


@torch.inference_mode()
def _queue(part: Sequence[_ReadRow], backbone: Backbone, uploads: Uploads, downloads: Downloads) -> _Queued:
    """Tell the device to make the pyramids of a shard's rows, and their copies in half precision."""
    seen = [(slot, pixels) for slot, (_, pixels) in enumerate(part) if pixels is not None]
    pending = []
    for start in range(0, len(seen), _FORWARD_IMAGES):
        slots, squares = zip(*seen[start : start + _FORWARD_IMAGES], strict=True)
        staged = uploads.staging((len(squares), *squares[0].shape), torch.uint8)
        torch.stack(squares, out=staged)
        levels = backbone.pyramid(*uploads([staged]))
        pending.append((list(slots), downloads.start([level.to(torch.float16) for level in levels])))
    return _Queued(stored=[row for row, _ in part], pending=pending)


def _pyramids(part: _Queued, header: StoreHeader) -> list[Tensor]:
    """The pyramid of each row, once it is there; zeros where there is none."""
    levels = [
        torch.zeros((len(part.stored), height, width, channels), dtype=torch.float16).permute(0, 3, 1, 2)
        for channels, (height, width) in zip(header.channels, header.grids, strict=True)
    ]
    for slots, pending in part.pending:
        for level, values in zip(levels, pending.result(), strict=True):
            level[slots] = values
    return levels


def stored_frames(store: PatchStore, rows: Sequence[int]) -> list[Frame]:
    """How network pixels lie in the image of each of some rows."""
    features = store.header.features
    stored = [store.images[row] for row in rows]
    return [frame_at(image.width, image.height, features, image.tile) for image in stored]


def image_rows(store: PatchStore, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first row of the image that each row is a view of, (n,) int64."""
    used, number_of = np.unique(rows, return_inverse=True)
    firsts = [row - store.images[row].tile for row in used.tolist()]
    return np.array(firsts, dtype=np.int64)[number_of]


def inspected_mask(store: PatchStore, rows: Sequence[int]) -> Tensor:
    """Patches that show their image and no padding: bool (len(rows), h*w)."""
    return valid_mask(stored_frames(store, rows), store.header.features.grid).flatten(1)


def inspected_cells(store: PatchStore, row: int) -> NDArray[np.int64]:
    """The cells of an image's grid that show it: (n,) int64, row-major, ascending."""
    return np.flatnonzero(inspected_mask(store, [row])[0].numpy())


def iterate_pyramids(
    store: PatchStore, rows: Sequence[int], batch_size: int
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Read a store in batches: the rows and their pyramids, float16 (B, C_l, h_l, w_l) each."""
    for start in range(0, len(rows), batch_size):
        part = list(rows[start : start + batch_size])
        yield part, store.read(part)

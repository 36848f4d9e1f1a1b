"""Images to PatchStore: the only place where the backbone sees a training image, and it sees it once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.backbones import Backbone
from cfa_index.bank import shared_threads
from cfa_index.errors import DatasetError
from cfa_index.events import Listener, Notice, ignore, stage
from cfa_index.files import printable, sha256_of_file, sha256_of_json
from cfa_index.images import frame_of, load_batches, valid_mask
from cfa_index.specs import FeatureSpec
from cfa_index.store import (
    SHARD_IMAGES,
    PatchStore,
    StoredImage,
    StoreHeader,
    StoreWriter,
    recorded_images,
)

READ_IMAGES = 8
"""Images read from a store at once, where nothing else decides."""
_FORWARD_IMAGES = 8
"""Images a forward pass: larger batches need more memory and are no faster on a CPU."""


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
    """
    if not images:
        raise DatasetError(expected=f"good images in {source}", got="none", remedy="give at least one")
    header = store_header(source, features, backbone)
    planned = _stamp_all(images, source, path, listener)
    with StoreWriter(path, header, planned) as writer:
        todo = sum(len(writer.shard_rows(shard)) for shard in writer.todo)
        with stage(listener, "features", todo, "images") as advance:
            rows = [row for shard in writer.todo for row in writer.shard_rows(shard)]
            offset = 0
            # A batch is a shard: only the last shard can be short, and it comes last.
            batches = load_batches(
                (images[row] for row in rows), features, batch_size=SHARD_IMAGES, threads=threads
            )
            for shard, batch in zip(writer.todo, batches, strict=True):
                stored = [planned[row] for row in writer.shard_rows(shard)]
                for position, error in batch.errors:
                    stored[position - offset] = replace(stored[position - offset], error=str(error))
                for position, frame in zip(batch.positions, batch.frames, strict=True):
                    stored[position - offset] = replace(
                        stored[position - offset], width=frame.source_width, height=frame.source_height
                    )
                slots = [position - offset for position in batch.positions]
                writer.write_shard(
                    shard, _pyramids(backbone, batch.pixels, slots, len(stored), header, device), stored
                )
                offset += len(stored)
                advance(len(stored))
        store = writer.finish()
    for image in store.images:
        if image.error:
            listener(Notice(message=f"left out: {image.error}"))
    if not store.good_rows:
        raise DatasetError(
            expected=f"at least one readable image among {len(images)} in {source}",
            got=f"none; the first says: {store.images[0].error}",
            remedy="look at the files, or point --data-root at another folder",
        )
    return store


def _stamp_all(images: Sequence[Path], source: Path, path: Path, listener: Listener) -> list[StoredImage]:
    """Size, time and checksum of every file; a file whose size and time are on record is not read again."""
    known = recorded_images(path)
    stamped = []
    with stage(listener, "checksums", len(images), "images") as advance:
        for image in images:
            uri = printable(image.relative_to(source).as_posix())
            stamped.append(_stamp(image, uri, known.get(uri)))
            advance(1)
    return stamped


def _stamp(image: Path, uri: str, known: StoredImage | None) -> StoredImage:
    try:
        status = image.stat()
        if known and not known.error and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
            return known
        checksum = sha256_of_file(image) if image.is_file() else ""
        return StoredImage(uri=uri, size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=checksum)
    except OSError:
        return StoredImage(uri=uri, size=0, mtime_ns=0, sha256="")


@torch.inference_mode()
def _pyramids(
    backbone: Backbone,
    pixels: Tensor,
    slots: Sequence[int],
    count: int,
    header: StoreHeader,
    device: torch.device,
) -> list[Tensor]:
    """Pyramids of the images that could be read, in their slots among `count`; zeros elsewhere."""
    levels = [
        torch.zeros((count, height, width, channels), dtype=torch.float16).permute(0, 3, 1, 2)
        for channels, (height, width) in zip(header.channels, header.grids, strict=True)
    ]
    for start in range(0, len(pixels), _FORWARD_IMAGES):
        part = slots[start : start + _FORWARD_IMAGES]
        for level, values in zip(
            levels, backbone.pyramid(pixels[start : start + _FORWARD_IMAGES].to(device)), strict=True
        ):
            level[part] = values.to(torch.float16).cpu()
    return levels


def inspected_mask(store: PatchStore, rows: Sequence[int]) -> Tensor:
    """Patches that show their image and not a letterbox's padding: bool (len(rows), h*w)."""
    features = store.header.features
    images = [store.images[row] for row in rows]
    frames = [frame_of(image.width, image.height, features) for image in images]
    return valid_mask(frames, features.grid).flatten(1)


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

"""What becomes of a shard in other processes; what they import of this has no torch.

read: list, earlier rows, pixels --> scored elsewhere: rows, maps --> written: maps, heatmaps, last of all rows
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cfa_index.engines import Payload
from cfa_index.errors import ImageError, SpecError
from cfa_index.images import Frame, Views, read_entry
from cfa_index.places import Place
from cfa_index.specs import FeatureSpec
from cfa_index.workflows.score_heatmaps import Heatmaps
from cfa_index.workflows.score_listing import Shard, read_shard
from cfa_index.workflows.score_parts import Parts, to_score

if TYPE_CHECKING:
    from cfa_index.workflows.score_maps import Maps

_LARGEST_PAYLOAD = 3 << 29
"""Bytes; Arrow takes below 2 GiB."""
Told = dict[str, Any]
"""Of a shard that is written: `images` and `errors` that were scored now, and `problems`, lines for a person."""


@dataclass(frozen=True, kw_only=True)
class ShardReader:
    """Reads the images of a shard that have no score.

    Attributes:
        source, target: of the images, and of the list.
        features: geometry and size_px.
        shard_images, max_pixels, retry_errors: as in `score_folder`.
    """

    source: Place
    target: Place
    features: FeatureSpec
    shard_images: int
    max_pixels: int
    retry_errors: bool

    def __call__(self, number: int) -> Payload:
        """The earlier rows of the shard, which images have no score, and what was read of these.

        Raises:
            DatasetError: the source is missing on this machine, or a bucket does not answer.
            OutputError: the list cannot be read.
        """
        shard = read_shard(self.target, number, self.shard_images)
        rows = Parts(self.target).read(shard)
        positions = to_score(rows, retry_errors=self.retry_errors)
        if positions:
            self.source.require()  # or a share that this machine lacks would be a million errors
        entries = [shard.entries[position] for position in positions]
        reads = [read_entry(self.source, entry, self.features, self.max_pixels) for entry in entries]
        size = sum(read.pixels.nbytes for read in reads if isinstance(read, Views))
        if size > _LARGEST_PAYLOAD:
            raise SpecError(
                expected=f"a shard of at most {_LARGEST_PAYLOAD / 2**30:.1f} GiB of squares",
                got=f"{size / 2**30:.1f} GiB in {len(entries)} images",
                remedy="give another -o and a smaller --shard-images",
            )
        told = [
            [asdict(frame) for frame in read.frames] if isinstance(read, Views) else str(read)
            for read in reads
        ]
        return {
            "rows": json.dumps(rows).encode(),
            "positions": json.dumps(positions).encode(),
            "reads": json.dumps(told).encode(),
            "pixels": b"".join(read.pixels.tobytes() for read in reads if isinstance(read, Views)),
        }


def reads_of(payload: Payload, size_px: int) -> list[Views | str]:
    """What was read of each image: its squares, of size_px, or why it could not be."""
    pixels = np.frombuffer(payload["pixels"], np.uint8).reshape(-1, 3, size_px, size_px)
    reads: list[Views | str] = []
    used = 0
    for told in json.loads(payload["reads"]):
        if isinstance(told, str):
            reads.append(told)
            continue
        frames = tuple(_frame(values) for values in told)
        reads.append(Views(pixels=pixels[used : used + len(frames)], frames=frames))
        used += len(frames)
    return reads


def _frame(values: dict[str, Any]) -> Frame:
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return Frame(**fields)


@dataclass(frozen=True, kw_only=True)
class ShardWriter:
    """Writes what a shard has become: last of all its rows, since a shard with rows is done.

    Attributes:
        target: of them.
        shard_images: images a shard.
        maps, heatmaps: where these go; None for nowhere.
    """

    target: Place
    shard_images: int
    maps: Maps | None
    heatmaps: Heatmaps | None

    def __call__(self, number: int, payload: Payload) -> Told:
        """Write it.

        Args:
            number: of the shard.
            payload: `part`, the file of its rows; `told`, what to answer; and with maps or heatmaps `positions`
                of the images that were scored, `frames`, the frame and the shape of the map of each (null for an
                image without one), and the `maps`, float32, one after another.

        Raises:
            OutputError: something cannot be written, or the list cannot be read.
        """
        told: Told = json.loads(payload["told"])
        if self.maps is not None or self.heatmaps is not None:
            told["problems"] += self._write_maps(read_shard(self.target, number, self.shard_images), payload)
        Parts(self.target).put(number, payload["part"])
        return told

    def _write_maps(self, shard: Shard, payload: Payload) -> list[str]:
        told = json.loads(payload["frames"])
        kept = self.maps.of(shard, again=True) if self.maps is not None else None
        problems: list[str] = []
        used = 0
        for position, one in zip(json.loads(payload["positions"]), told, strict=True):
            image_id, entry = shard.first_id + position, shard.entries[position]
            anomaly_map = None
            if one is not None:
                height, width = one["shape"]
                count = height * width
                anomaly_map = np.frombuffer(payload["maps"], np.float32, count, used).reshape(height, width)
                used += anomaly_map.nbytes
            if kept is not None:
                kept.add(position, anomaly_map)
            if self.heatmaps is None:
                continue
            if anomaly_map is None:
                self.heatmaps.remove(image_id, entry)
                continue
            problem = self.heatmaps.draw(image_id, entry, anomaly_map, _frame(one["frame"]))
            if isinstance(problem, ImageError):  # it was readable a moment ago; its score stands
                problems.append(f"no heatmap: {problem}")
        if kept is not None:
            kept.write()
        return problems

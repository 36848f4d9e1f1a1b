"""What becomes of a shard in other processes, as bytes from one to the next; here without torch.

    read --> {shard, rows, positions, reads, pixels} --score--> {name, rows, ...} --> written
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cfa_index.engines import Payload
from cfa_index.images import Frame, Views, read_views
from cfa_index.places import Place
from cfa_index.specs import FeatureSpec
from cfa_index.workflows.score_heatmaps import Heatmaps
from cfa_index.workflows.score_listing import LISTING, PARTS, shard_file, shard_of

if TYPE_CHECKING:
    from cfa_index.workflows.score_target import MapShards


@dataclass(frozen=True, kw_only=True)
class ShardReader:
    """Reads the images of a shard.

    Attributes:
        source, target: of the images, and of the list.
        features: geometry and size_px.
        shard_images, max_pixels: as in `score_folder`.
    """

    source: Place
    target: Place
    features: FeatureSpec
    shard_images: int
    max_pixels: int

    def __call__(self, number: int) -> Payload:
        """The shard's list, the rows that an earlier run left, and the images that have no score there.

        Raises:
            DatasetError: a bucket does not answer.
            OutputError: the list cannot be read.
        """
        name = f"{LISTING}/{shard_file(number)}"
        listed = self.target.read(name)
        shard = shard_of(listed or b"", number, self.shard_images)
        reads = [
            entry.error or read_views(self.source, entry.path, self.features, self.max_pixels)
            for entry in shard.entries
        ]
        good = [read for read in reads if isinstance(read, Views)]
        told = [
            [asdict(frame) for frame in read.frames] if isinstance(read, Views) else str(read)
            for read in reads
        ]
        return {
            "shard": listed or b"",
            "reads": json.dumps(told).encode(),
            "pixels": b"".join(read.pixels.tobytes() for read in good),
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

"""Good images that the model has not seen, and synthetic defects drawn on them: choosing without test labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.backbones import Backbone
from cfa_index.bank import require_finite
from cfa_index.defects import DEFECT_KINDS, draw_defect
from cfa_index.errors import DatasetError, SpecError
from cfa_index.events import Listener, ignore, stage
from cfa_index.files import printable, sha256_of_file
from cfa_index.images import Frame, decode, valid_mask, view_at
from cfa_index.scorer import Scorer
from cfa_index.store import PatchStore
from cfa_index.transfers import Downloads, Pending, Uploads
from cfa_index.workflows.extract import stored_frames

MOST_PROBES = 48
"""Good images, or a tile of each; with the defects five times as many pyramids are held, in float16."""
FEWEST_PROBES = 4
_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Pyramids to try a model on: n good images first, then their synthetic defects, a kind after another.

    Where images are cut into tiles, one tile of each image stands for it: the tiles of an image are no
    independent looks at a model, and a defect shows in few of them.

    Attributes:
        levels: (5n, C_l, h_l, w_l) float16 each, as a PatchStore gives them.
        frames: of each.
        labels: bool (5n,), True where a defect was drawn.
    """

    levels: list[Tensor]
    frames: list[Frame]
    labels: NDArray[np.bool_]


def split_probes(held: Sequence[int], seed: int) -> tuple[list[int], list[int]]:
    """Held-out images to choose by, and those left for the threshold, each by its first row in the store.

    Apart, so that the threshold's images have no say in the choice: half of them each, at most `MOST_PROBES`
    for the choice.

    Raises:
        SpecError: too few images were held out.
    """
    count = min(len(held) // 2, MOST_PROBES)
    if count < FEWEST_PROBES:
        raise SpecError(
            expected=f"at least {2 * FEWEST_PROBES} held-out good images to choose by",
            got=str(len(held)),
            remedy="give --select none, or build with more images or a larger --held-out",
        )
    shuffled = np.random.default_rng([seed, 1]).permutation(np.asarray(held))
    return sorted(shuffled[:count].tolist()), sorted(shuffled[count:].tolist())


def draw_probes(
    store: PatchStore, images: Sequence[int], backbone: Backbone, *, seed: int, listener: Listener = ignore
) -> Probes:
    """Read some good images again and draw a defect of each kind on each of them, or on a tile of it.

    Args:
        store: whose build has left the files where it found them.
        images: each by its first row.
        backbone: that of the store, on any device.
        seed: of the defects, and of which tile of an image is taken.
        listener: told of progress.

    Raises:
        DatasetError: an image is gone, or is not the one that the store was made of.
    """
    features = store.header.features
    device = next(backbone.parameters()).device
    uploads, downloads = Uploads(device), Downloads(device)
    rows = [_drawn_view(store, image, seed) for image in images]
    pixels, frames = _read(store, rows), stored_frames(store, rows)
    inside = valid_mask(frames, (features.size_px, features.size_px)).numpy()
    parts: list[list[Tensor]] = []

    def add(squares: NDArray[np.uint8]) -> None:
        queued = (
            downloads.start([level.half() for level in backbone.pyramid(*uploads([batch]))])
            for batch in torch.split(torch.from_numpy(squares), _BATCH)
        )
        parts.extend(pending.kept() for pending in downloads.behind(queued))

    with stage(listener, "synthetic defects", len(DEFECT_KINDS) * len(rows), "defects") as advance:
        add(pixels)  # again, so that good ones and defects come the same way
        for kind in DEFECT_KINDS:
            drawn = [
                draw_defect(
                    image, kind=kind, seed=(seed, row), other=pixels[number - 1], inside=inside[number]
                ).pixels
                for number, (row, image) in enumerate(zip(rows, pixels, strict=True))
            ]
            add(np.stack(drawn))
            advance(len(rows))
    whole = [torch.cat([part[number] for part in parts]) for number in range(len(features.strides))]
    labels = np.arange(len(whole[0])) >= len(rows)
    return Probes(levels=whole, frames=frames * (1 + len(DEFECT_KINDS)), labels=labels)


def probe_scores(scorer: Scorer, probes: Probes) -> NDArray[np.float32]:
    """Raw image scores (5n,) float32."""

    def queued() -> Iterator[Pending]:
        for start in range(0, len(probes.labels), _BATCH):
            part = slice(start, start + _BATCH)
            scored = scorer.score_pyramid([level[part] for level in probes.levels], probes.frames[part])
            yield scorer.downloads.start([scored.scores])

    scores = np.concatenate([pending.result()[0].numpy() for pending in scorer.downloads.behind(queued())])
    require_finite(scores)
    return scores


def _drawn_view(store: PatchStore, image: int, seed: int) -> int:
    """The row of a tile of an image, at random; the image's own row where it has no tiles."""
    rows = store.views_of([image])
    return rows[int(np.random.default_rng([seed, 2, image]).integers(len(rows)))]


def _read(store: PatchStore, rows: Sequence[int]) -> NDArray[np.uint8]:
    """(n, 3, S, S) of some views, each of another image. Raises DatasetError, ImageError."""
    squares = []
    for row in rows:
        stored = store.images[row]
        file = Path(store.header.source) / stored.uri
        if not (file.is_file() and sha256_of_file(file) == stored.sha256):
            raise DatasetError(
                expected="the held-out images as build found them",
                got=f"{printable(str(file))}, {'changed since' if file.is_file() else 'no such file'}",
                remedy="bring the images back, build again, or give --select none",
            )
        squares.append(view_at(decode(file), store.header.features, stored.tile)[0])
    return np.stack(squares)

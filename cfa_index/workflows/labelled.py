"""Labelled test images in turn: scored, with their masks, told to a listener."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cfa_index.bundle import ModelBundle
from cfa_index.errors import DatasetError
from cfa_index.events import Listener, Notice, stage
from cfa_index.images import TestImage, read_mask
from cfa_index.scorer import Scorer
from cfa_index.workflows.ensemble import ScoredImage, score_images


def score_labelled(
    bundles: Sequence[ModelBundle],
    images: Sequence[TestImage],
    *,
    states: Sequence[Sequence[Scorer]] | None = None,
    batch_size: int,
    threads: int,
    listener: Listener,
) -> Iterator[tuple[TestImage, ScoredImage]]:
    """Each image with its scores, see `score_images`; those that cannot be read are also told of.

    Raises:
        DatasetError: none can be read; after the last one.
    """
    readable, first_error = 0, "no image"
    with stage(listener, "evaluate", len(images), "images") as advance:
        paths = [image.path for image in images]
        for scored in score_images(bundles, paths, states=states, batch_size=batch_size, threads=threads):
            if scored.error:
                listener(Notice(message=f"left out: {scored.error}"))
                first_error = first_error if readable else str(scored.error)
            readable += not scored.error
            yield images[scored.position], scored
            advance(1)
    if not readable:
        raise DatasetError(
            expected="at least one readable test image",
            got=f"{len(images)} that cannot be read; the last says: {first_error}" if images else "none",
            remedy="look at the files below test/",
        )


def why_unmasked(images: Sequence[TestImage]) -> str:
    """Why pixel metrics cannot be had, or nothing: each defect image needs a mask, and there must be one."""
    without = sum(1 for image in images if image.is_defect and image.mask is None)
    if without:
        return f"{without} defect images have no mask"
    return "" if any(image.is_defect for image in images) else "no defect images"


def mask_of(image: TestImage, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Where the defect of an image of `shape` (H, W) is: (H, W) bool, nowhere without a mask.

    Raises:
        ImageError: the mask cannot be read, or has another size.
    """
    height, width = shape
    if image.mask is None:
        return np.zeros((height, width), dtype=bool)
    return read_mask(image.mask, width, height)

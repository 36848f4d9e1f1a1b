"""A sample of test patches before and after adaptation, for the view of the features (Figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index.bank import require_finite
from cfa_index.bundle import ModelBundle
from cfa_index.images import Frame, TestImage, frames_of, load_batches, valid_mask
from cfa_index.report import Cloud, feature_view
from cfa_index.scorer import Scorer
from cfa_index.workflows.evaluation import TestRow
from cfa_index.workflows.labelled import mask_of

_IMAGES_A_CLASS = 16
_PATCHES_AN_IMAGE = 16
_MEMORIES = 1000
_BATCH = 8


def draw_features(
    bundle: ModelBundle,
    images: Sequence[TestImage],
    rows: Sequence[TestRow],
    file: Path,
    *,
    threads: int,
    credit: str,
) -> None:
    """Write the view of one model; the same images and patches every time.

    Of up to 16 good images, 16 patches each at random; of as many defect images, up to 16 patches in the
    mask, or those of the highest score where there is no mask. Of an image in tiles they are those of one tile.

    Raises:
        ImageError: an image cannot be read any more.
        BankError: a feature of one is NaN or infinite.
        OutputError: the file cannot be written.
    """
    readable = [image for image, row in zip(images, rows, strict=True) if not row.error]
    defects = [image for image in readable if image.is_defect]
    shown = [*_spread([image for image in readable if not image.is_defect]), *_spread(defects)]
    adapted = not torch.equal(bundle.descriptor.weight, bundle.initial_descriptor.weight)
    spec = bundle.manifest.spec
    phis = [bundle.initial_descriptor, bundle.descriptor] if adapted else [bundle.descriptor]
    scorers = [
        Scorer(bundle.backbone, phi, bundle.bank, features=spec.features, score=spec.score) for phi in phis
    ]
    patches: list[list[NDArray[np.float32]]] = [[] for _ in phis]
    scores: list[list[NDArray[np.float32]]] = [[] for _ in phis]
    defective: list[bool] = []
    tiles: dict[int, int] = {}
    rng = np.random.default_rng(0)
    batches = load_batches([image.path for image in shown], spec.features, batch_size=_BATCH, threads=threads)
    for batch in batches:
        if batch.errors:
            raise batch.errors[0][1]
        for position, tile, frame in zip(batch.positions, batch.tiles, batch.frames, strict=True):
            if tile == 0:
                tiles[position] = _tile_shown(bundle, shown[position], frame, rng)
        at = [slot for slot, tile in enumerate(batch.tiles) if tile == tiles[batch.positions[slot]]]
        if not at:
            continue
        frames = [batch.frames[slot] for slot in at]
        with torch.inference_mode():
            levels = bundle.backbone.pyramid(batch.pixels[at].to(bundle.bank.device))
            features = [phi(levels).cpu().numpy() for phi in phis]  # (B, h*w, D') each
        grids = [
            scorer.score_pyramid(levels, frames).patch_scores.flatten(1).cpu().numpy() for scorer in scorers
        ]
        for grid in grids:
            require_finite(grid)
        inside = valid_mask(frames, spec.features.grid).flatten(1).numpy()
        for slot, frame in enumerate(frames):
            image = shown[batch.positions[at[slot]]]
            cells = _cells(image, frame, spec.features.grid, grids[-1][slot], inside[slot], rng)
            defective += [image.is_defect] * len(cells)
            for number in range(len(phis)):
                patches[number].append(features[number][slot][cells])
                scores[number].append(grids[number][slot][cells])
    titles = ("before adaptation (phi_0)", "after adaptation (phi)") if adapted else ("not adapted (phi_0)",)
    vectors = bundle.bank.vectors
    masked = all(image.mask for image in defects)
    feature_view(
        [
            Cloud(title=title, patches=np.concatenate(of_phi), scores=np.concatenate(their_scores))
            for title, of_phi, their_scores in zip(titles, patches, scores, strict=True)
        ],
        np.asarray(vectors[:: -(-len(vectors) // _MEMORIES)]),
        np.array(defective),
        title=f"{bundle.manifest.category}, generation {bundle.manifest.generation} ({spec.features.geometry}): "
        "patches and memories",
        defective_means="patches in masks" if masked else "patches of highest score in defect images",
        footer=credit,
    ).save(file, credit)


def _spread(images: Sequence[TestImage]) -> list[TestImage]:
    """At most `_IMAGES_A_CLASS` of them, evenly spaced."""
    at = np.linspace(0, len(images) - 1, min(len(images), _IMAGES_A_CLASS)).round().astype(int)
    return [images[number] for number in at.tolist()]


def _tile_shown(bundle: ModelBundle, image: TestImage, frame: Frame, rng: np.random.Generator) -> int:
    """Which tile of an image stands for it: that of most of the mask, of the highest score, or any of a good one."""
    size = frame.source_width, frame.source_height
    frames = frames_of(*size, bundle.manifest.spec.features)
    if len(frames) == 1:
        return 0
    if not image.is_defect:
        return int(rng.integers(len(frames)))
    if image.mask is None:
        return int(np.argmax([view.patch_scores.max() for view in bundle.score([image.path])[0].views]))
    mask = mask_of(image, size[::-1])
    boxes = (frame.inspected for frame in frames)
    return int(np.argmax([mask[top:bottom, left:right].sum() for left, top, right, bottom in boxes]))


def _cells(
    image: TestImage,
    frame: Frame,
    grid: tuple[int, int],
    scores: NDArray[np.float32],
    inside: NDArray[np.bool_],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Which patches (n,) of an image are shown, of h*w in row-major order; none where its mask was not seen."""
    if image.is_defect and image.mask is None:
        return np.argsort(-np.where(inside, scores, -np.inf), kind="stable")[:_PATCHES_AN_IMAGE]
    if image.is_defect:
        mask = mask_of(image, (frame.source_height, frame.source_width))
        height, width = grid
        boxes = (frame.patch_box(row, column, grid) for row in range(height) for column in range(width))
        inside = inside & [mask[top:bottom, left:right].any() for left, top, right, bottom in boxes]
    found = np.flatnonzero(inside)
    return np.sort(rng.permutation(found)[:_PATCHES_AN_IMAGE])

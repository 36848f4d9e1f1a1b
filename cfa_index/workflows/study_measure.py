"""What one cell of a study is worth: its speed, its recall against Flat, its AUROC on the test split."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.backbones import Backbone
from cfa_index.bank import Bank, MemoryBank, recall_at
from cfa_index.images import Frame, image_maps_of
from cfa_index.metrics import PixelMetrics, auroc
from cfa_index.scorer import Scorer
from cfa_index.workflows.calibrate import stored_maps
from cfa_index.workflows.ensemble import FusedMap
from cfa_index.workflows.labelled import mask_of
from cfa_index.workflows.study_images import StudyImages

BATCHES = (8, 64)
_TIMED_PATCHES = 256
_BACKBONE_BATCH = 8
_PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of scoring from features on; the names are those of `StudyRow`."""

    image_ms_p50: float
    image_ms_p95: float
    image_ms_p99: float
    patch_ms_p50: float
    patch_ms_p95: float
    patch_ms_p99: float
    images_per_s_1: float
    images_per_s_8: float
    images_per_s_64: float


def measure_speed(
    scorer: Scorer,
    levels: Sequence[Tensor],
    frames: Sequence[Frame],
    queries: Tensor,
    *,
    k: int,
    repeat: int,
) -> Speed:
    """Time the scoring of images, alone and in batches, and the search of single patches.

    Args:
        scorer: its backbone is not called.
        levels: pyramids of n images, or of n tiles, float16; where a batch needs more they come again.
        frames: of each.
        queries: (m, D') float32 patches on the bank's device.
        k: neighbours of a patch.
        repeat: how often each image, each batch and each patch is timed.
    """
    count = len(frames)

    def scoring(at: NDArray[np.int64]) -> Callable[[], None]:
        batch = [level[at].contiguous(memory_format=torch.channels_last) for level in levels]
        theirs = [frames[number] for number in at]
        return lambda: _wait_for(scorer.score_pyramid(batch, theirs).scores)

    def searching(query: Tensor) -> Callable[[], None]:
        return lambda: _wait_for(scorer.bank.search(query, k, exact=True).sq_distances)

    alone = [scoring(np.array([number])) for number in range(count)]
    alone[0]()  # what is slower the first time
    images = _seconds(alone, repeat)
    rates = [
        size / float(np.median(_seconds([scoring(np.arange(size) % count)], repeat))) for size in BATCHES
    ]
    patches = _seconds([searching(query) for query in torch.split(queries[:_TIMED_PATCHES], 1)], repeat)
    image_ms, patch_ms = (np.percentile(1000 * taken, _PERCENTILES) for taken in (images, patches))
    return Speed(
        image_ms_p50=float(image_ms[0]),
        image_ms_p95=float(image_ms[1]),
        image_ms_p99=float(image_ms[2]),
        patch_ms_p50=float(patch_ms[0]),
        patch_ms_p95=float(patch_ms[1]),
        patch_ms_p99=float(patch_ms[2]),
        images_per_s_1=len(images) / float(images.sum()),
        images_per_s_8=rates[0],
        images_per_s_64=rates[1],
    )


def measure_recall(bank: Bank, queries: Tensor) -> tuple[float, float]:
    """Recall@1 and @3 against Flat over the same vectors, on (m, D') float32 queries; ties are no misses."""
    k = min(3, len(bank))
    flat = MemoryBank(bank.vectors, bank.device, card=bank.card)
    found, nearest = (one.search(queries, k, exact=True).sq_distances.cpu().numpy() for one in (bank, flat))
    first, at_k = recall_at(found, nearest, k)
    return float(first.mean()), at_k


def measure_aurocs(scorer: Scorer, images: StudyImages) -> tuple[float | None, float | None]:
    """AUROC of image scores and of pixels on the test split, from its store; None where there is none.

    Images that could not be read are left out, as `evaluate` leaves them out.

    Raises:
        ImageError: a mask cannot be read, or has another size than its image.
    """
    store = images.test_store
    if store is None:
        return None, None
    pixels = None if images.unmasked else PixelMetrics(resamples=0)
    scores: list[float] = []
    labels: list[bool] = []
    maps = stored_maps(scorer, store, store.good_rows, lambda _: None)
    for row, found in image_maps_of(maps, store.header.features):
        image = images.test_of[row]
        scores.append(found.score)
        labels.append(image.is_defect)
        if pixels is not None:
            in_source = FusedMap([found]).in_source
            pixels.update(in_source, mask_of(image, in_source.shape))
    return auroc(np.array(labels), np.array(scores)), None if pixels is None else pixels.pixel_auroc()


def measure_backbone_ms(backbone: Backbone, size_px: int, repeat: int) -> float:
    """Milliseconds of the forward pass an image, in batches of 8 on the backbone's device."""
    device = next(backbone.parameters()).device
    pixels = torch.zeros((_BACKBONE_BATCH, 3, size_px, size_px), dtype=torch.uint8, device=device)

    def forward() -> None:
        with torch.inference_mode():
            _wait_for(backbone.pyramid(pixels)[-1][0, 0])

    forward()
    return 1000 * float(np.median(_seconds([forward], repeat))) / _BACKBONE_BATCH


def _seconds(calls: Sequence[Callable[[], None]], repeat: int) -> NDArray[np.float64]:
    """Seconds of each call, all of them in turn, `repeat` times over."""
    taken = []
    for _ in range(repeat):
        for call in calls:
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
    return np.array(taken)


def _wait_for(result: Tensor) -> None:
    """Until a GPU, too, has it."""
    result.cpu()

"""The published protocol, to compare with the paper's tables: the best epoch on the test split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cfa_index.bank import shared_threads
from cfa_index.bundle import ModelBundle
from cfa_index.errors import SpecError
from cfa_index.events import Listener, ignore
from cfa_index.images import TestImage
from cfa_index.metrics import PixelMetrics, auroc, average_precision, f1_threshold
from cfa_index.scorer import Scorer
from cfa_index.workflows.ensemble import one_category
from cfa_index.workflows.evaluate import model_names
from cfa_index.workflows.evaluation import PublishedEvaluation
from cfa_index.workflows.labelled import mask_of, score_labelled, why_unmasked

_EXACT_PIXELS = 1_000_000
"""Of an epoch's accumulator; beyond it goes into bins, 24 MiB. There are as many as epochs."""


@shared_threads()
def evaluate_published(
    models: ModelBundle | Sequence[ModelBundle],
    images: Sequence[TestImage],
    *,
    batch_size: int = 8,
    threads: int = 2,
    listener: Listener = ignore,
) -> PublishedEvaluation:
    """Evaluate every kept epoch on the test split and take the best of each metric by itself.

    The features of an image are computed once, whatever the number of epochs. Fused models go epoch by
    epoch. Memory grows with the epochs: one phi, the maps of a batch and up to 24 MiB of counts each.

    Args:
        models: one, or several of the same category, trained with `keep_epochs`.
        images, batch_size, threads, listener: as for `evaluate`.

    Raises:
        BundleError: a model was not trained with `keep_epochs`.
        SpecError: no model, models of different categories, or with different numbers of epochs.
        DatasetError, ImageError: as for `evaluate`.
    """
    bundles = one_category(models)
    states = [_scorers(bundle) for bundle in bundles]
    counts = [len(scorers) for scorers in states]
    if len(set(counts)) > 1:
        raise SpecError(
            expected="models to fuse with the same number of kept epochs",
            got=" and ".join(str(count) for count in counts),
            remedy="train them for the same number of epochs",
        )
    masks = why_unmasked(images)
    pixels = [PixelMetrics(exact_pixels=_EXACT_PIXELS, resamples=0) for _ in range(0 if masks else counts[0])]
    scores: list[list[float]] = [[] for _ in range(counts[0])]
    labels: list[bool] = []
    rejected = 0
    for image, scored in score_labelled(
        bundles, images, states=states, batch_size=batch_size, threads=threads, listener=listener
    ):
        if scored.error:
            rejected += 1
            continue
        labels.append(image.is_defect)
        mask = None
        for epoch, found in enumerate(scored.states):
            scores[epoch].append(found.score)
            if pixels:
                mask = mask_of(image, found.in_source.shape) if mask is None else mask
                pixels[epoch].update(found.in_source, mask)
    epochs = [
        _values(np.array(labels), np.array(of_epoch), pixels[epoch] if pixels else None)
        for epoch, of_epoch in enumerate(scores)
    ]
    if pixels and epochs[0]["pixel_auroc"] is None:
        masks = "no defect pixel in any mask"
    return PublishedEvaluation(
        category=bundles[0].manifest.category,
        models=model_names(bundles),
        epochs=tuple(epochs),
        masks=masks,
        rejected=rejected,
    )


def _scorers(bundle: ModelBundle) -> list[Scorer]:
    """One an epoch, on the model's backbone, bank and baseline."""
    spec = bundle.manifest.spec
    return [
        Scorer(
            bundle.backbone,
            phi,
            bundle.bank,
            features=spec.features,
            score=spec.score,
            baseline=bundle.scorer.baseline,
        )
        for phi in bundle.epoch_descriptors()
    ]


def _values(
    labels: np.ndarray[tuple[int], np.dtype[np.bool_]],
    scores: np.ndarray[tuple[int], np.dtype[np.float64]],
    pixels: PixelMetrics | None,
) -> dict[str, float | None]:
    """By the names of `MEASURES`."""
    image_f1 = f1_threshold(labels, scores)
    pixel_f1 = pixels.f1() if pixels else None
    return {
        "image_auroc": auroc(labels, scores),
        "image_average_precision": average_precision(labels, scores),
        "image_f1": image_f1.f1 if image_f1 else None,
        "pixel_auroc": pixels.pixel_auroc() if pixels else None,
        "pixel_average_precision": pixels.average_precision() if pixels else None,
        "pixel_f1": pixel_f1.f1 if pixel_f1 else None,
        "aupro": pixels.aupro() if pixels else None,
    }

"""How well a model, or several fused, tell good from bad on a labelled test split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cfa_index.bank import shared_threads
from cfa_index.bundle import ModelBundle
from cfa_index.events import Listener, ignore
from cfa_index.files import printable
from cfa_index.images import TestImage
from cfa_index.metrics import PixelMetrics, PixelMetricsByType, image_metrics
from cfa_index.workflows.ensemble import one_category
from cfa_index.workflows.evaluation import (
    Evaluation,
    ModelName,
    PixelSummary,
    SplitMetrics,
    TestRow,
)
from cfa_index.workflows.labelled import mask_of, score_labelled, why_unmasked

GOOD = "good"


@shared_threads()
def evaluate(
    models: ModelBundle | Sequence[ModelBundle],
    images: Sequence[TestImage],
    *,
    batch_size: int = 8,
    threads: int = 2,
    listener: Listener = ignore,
) -> Evaluation:
    """Score a test split and compare with its labels: last epoch, raw scores.

    Several models are an ensemble (CFA++): their maps are averaged in the pixels of the source image,
    see `fuse_maps`, and the score of an image is the fused map's maximum. Memory does not grow with the
    number of images, but for a row each.

    Args:
        models: one, or several of the same category.
        images: the test split, `good` and defects.
        batch_size: images a forward pass.
        threads: that decode.
        listener: told of progress.

    Raises:
        SpecError: no model, or models of different categories.
        DatasetError: no test image can be read.
        ImageError: a mask cannot be read, or has another size than its image.
    """
    bundles = one_category(models)
    masks = why_unmasked(images)
    pixels = None if masks else PixelMetricsByType(good=GOOD)
    threshold = bundles[0].threshold if len(bundles) == 1 else None
    rows: list[TestRow] = []
    for image, scored in score_labelled(
        bundles, images, batch_size=batch_size, threads=threads, listener=listener
    ):
        score = float("nan")
        for found in scored.states:
            score = found.score
            if pixels is not None:
                pixels.update(image.defect, found.in_source, mask_of(image, found.in_source.shape))
        rows.append(
            TestRow(
                uri=printable("/".join(image.path.parts[-3:])),
                defect=image.defect,
                score=score,
                is_anomalous=None if scored.error or threshold is None else score > threshold,
                error=str(scored.error or ""),
            )
        )
    readable = [row for row in rows if not row.error]
    whole = _split_metrics(readable, pixels.whole() if pixels else None)
    if whole.pixel is not None and whole.pixel.auroc is None:
        masks = "no defect pixel in any mask"
    return Evaluation(
        category=bundles[0].manifest.category,
        models=model_names(bundles),
        whole=whole,
        by_defect={
            defect: _split_metrics(
                [row for row in readable if row.defect in (GOOD, defect)],
                pixels.of(defect) if pixels else None,
            )
            for defect in sorted({row.defect for row in readable} - {GOOD})
        },
        masks=masks,
        threshold=threshold,
        false_alarm_rate=_rate([row for row in readable if row.defect == GOOD]),
        rows=tuple(rows),
    )


def model_names(bundles: Sequence[ModelBundle]) -> tuple[ModelName, ...]:
    """What a document says of the models behind it."""
    return tuple(
        ModelName(
            generation=bundle.manifest.generation,
            backbone=bundle.manifest.spec.features.backbone,
            geometry=bundle.manifest.spec.features.geometry,
            sha256=str(bundle.manifest.to_dict()["sha256"]),
        )
        for bundle in bundles
    )


def _split_metrics(rows: Sequence[TestRow], pixels: PixelMetrics | None) -> SplitMetrics:
    defective = np.array([row.defect != GOOD for row in rows])
    return SplitMetrics(
        images_good=int((~defective).sum()),
        images_defect=int(defective.sum()),
        image=image_metrics(defective, np.array([row.score for row in rows])),
        pixel=_pixel_summary(pixels) if pixels else None,
        detection_rate=_rate([row for row in rows if row.defect != GOOD]),
    )


def _pixel_summary(pixels: PixelMetrics) -> PixelSummary:
    intervals = pixels.intervals()
    return PixelSummary(
        auroc=intervals.auroc,
        average_precision=intervals.average_precision,
        aupro=intervals.aupro,
        f1=pixels.f1(),
        binning_error=pixels.binning_error(),
    )


def _rate(rows: Sequence[TestRow]) -> float | None:
    """Share of the rows above the threshold; None without rows or without a threshold."""
    verdicts = [row.is_anomalous for row in rows if row.is_anomalous is not None]
    return sum(verdicts) / len(verdicts) if verdicts else None

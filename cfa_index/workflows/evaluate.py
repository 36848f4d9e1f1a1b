"""How well a model tells good from bad on a labelled test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfa_index.bundle import ModelBundle
from cfa_index.errors import DatasetError
from cfa_index.events import Listener, Notice, ignore, stage
from cfa_index.files import printable
from cfa_index.images import TestImage, load_batches, read_mask
from cfa_index.maps import to_source
from cfa_index.metrics import PixelMetrics, auroc, auroc_interval

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TestRow:
    """One test image: raw score and label; score is NaN and error set where it could not be read."""

    uri: str
    defect: str
    score: float
    is_anomalous: bool | None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics as fractions, from raw scores; None where they cannot be computed.

    Attributes:
        image_auroc: over all readable test images; None with one class only.
        image_auroc_interval: 95% stratified bootstrap.
        pixel_auroc, aupro: where every defect image has a mask; AUPRO up to FPR 0.3.
        masks: why pixel metrics are missing, or empty.
        false_alarm_rate, detection_rate: of the model's threshold, or None.
    """

    category: str
    generation: str
    image_auroc: float | None
    image_auroc_interval: tuple[float, float] | None
    pixel_auroc: float | None
    aupro: float | None
    masks: str
    threshold: float | None
    false_alarm_rate: float | None
    detection_rate: float | None
    rows: tuple[TestRow, ...]

    @property
    def rejected(self) -> int:
        """How many images could not be read."""
        return sum(1 for row in self.rows if row.error)

    def to_dict(self) -> dict[str, Any]:
        """The document behind `evaluate --json`."""
        good = [row for row in self.rows if not row.error]
        return {
            "schema_version": SCHEMA_VERSION,
            "category": self.category,
            "generation": self.generation,
            "image_auroc": self.image_auroc,
            "image_auroc_interval_95": list(self.image_auroc_interval) if self.image_auroc_interval else None,
            "pixel_auroc": self.pixel_auroc,
            "aupro": self.aupro,
            "masks": self.masks,
            "threshold": self.threshold,
            "false_alarm_rate": self.false_alarm_rate,
            "detection_rate": self.detection_rate,
            "images_good": sum(1 for row in good if row.defect == "good"),
            "images_defect": sum(1 for row in good if row.defect != "good"),
            "images_rejected": self.rejected,
            "images": [
                {
                    "uri": row.uri,
                    "defect": row.defect,
                    "score": None if row.error else row.score,
                    "is_anomalous": row.is_anomalous,
                    "error": row.error or None,
                }
                for row in self.rows
            ],
        }


def evaluate(
    bundle: ModelBundle,
    images: Sequence[TestImage],
    *,
    batch_size: int = 8,
    threads: int = 2,
    listener: Listener = ignore,
) -> Evaluation:
    """Score a test split and compare with its labels. Memory does not grow with the maps.

    Args:
        bundle: the model.
        images: the test split, `good` and defects.
        batch_size: images a forward pass.
        threads: that decode.
        listener: told of progress.

    Raises:
        DatasetError: no test image can be read.
        ImageError: a mask cannot be read, or has another size than its image.
    """
    features = bundle.manifest.spec.features
    pixels = _pixel_metrics(images)
    rows: list[TestRow] = []
    threshold = bundle.threshold
    with stage(listener, "evaluate", len(images), "images") as advance:
        batches = load_batches(
            (image.path for image in images), features, batch_size=batch_size, threads=threads
        )
        for batch in batches:
            failed = dict(batch.errors)
            scored = bundle.scorer.score_pixels(batch.pixels, batch.frames)
            slots = {position: slot for slot, position in enumerate(batch.positions)}
            for position in sorted([*slots, *failed]):
                image = images[position]
                uri = printable("/".join(image.path.parts[-3:]))
                if position in failed:
                    listener(Notice(message=f"left out: {failed[position]}"))
                    rows.append(
                        TestRow(
                            uri=uri,
                            defect=image.defect,
                            score=float("nan"),
                            is_anomalous=None,
                            error=str(failed[position]),
                        )
                    )
                    continue
                slot = slots[position]
                score = float(scored.scores[slot])
                rows.append(
                    TestRow(
                        uri=uri,
                        defect=image.defect,
                        score=score,
                        is_anomalous=None if threshold is None else score > threshold,
                    )
                )
                if pixels is not None:
                    frame = batch.frames[slot]
                    source_map = to_source(
                        scored.maps[slot].cpu(),
                        width=frame.source_width,
                        height=frame.source_height,
                        scale_x=frame.scale_x,
                        scale_y=frame.scale_y,
                        offset_x=frame.offset_x,
                        offset_y=frame.offset_y,
                    )
                    pixels.update(source_map, _mask(image, source_map.shape))
            advance(len(batch.positions) + len(batch.errors))
    return _summarise(bundle, rows, pixels, images)


def _pixel_metrics(images: Sequence[TestImage]) -> PixelMetrics | None:
    """An accumulator when every defect image has a mask, else None."""
    defects = [image for image in images if image.is_defect]
    return PixelMetrics() if defects and all(image.mask for image in defects) else None


def _mask(image: TestImage, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    height, width = shape
    if image.mask is None:
        return np.zeros((height, width), dtype=bool)
    return read_mask(image.mask, width, height)


def _summarise(
    bundle: ModelBundle, rows: list[TestRow], pixels: PixelMetrics | None, images: Sequence[TestImage]
) -> Evaluation:
    readable = [row for row in rows if not row.error]
    if not readable:
        raise DatasetError(
            expected="at least one readable test image",
            got=f"{len(rows)} that cannot be read; the first says: {rows[0].error}" if rows else "none",
            remedy="look at the files below test/",
        )
    labels = np.array([row.defect != "good" for row in readable])
    scores = np.array([row.score for row in readable])
    both = labels.any() and not labels.all()
    threshold = bundle.threshold
    without = [image for image in images if image.is_defect and image.mask is None]
    masks = ""
    pixel_auroc = pixels.pixel_auroc() if pixels else None
    if pixels is not None and pixel_auroc is None:
        masks = "no defect pixel in any mask"
    elif pixels is None:
        masks = "no defect images" if not without else f"{len(without)} defect images have no mask"
    return Evaluation(
        category=bundle.manifest.category,
        generation=bundle.manifest.generation,
        image_auroc=auroc(labels, scores),
        image_auroc_interval=auroc_interval(labels, scores) if both else None,
        pixel_auroc=pixel_auroc,
        aupro=pixels.aupro() if pixels else None,
        masks=masks,
        threshold=threshold,
        false_alarm_rate=None
        if threshold is None or labels.all()
        else float((scores[~labels] > threshold).mean()),
        detection_rate=None
        if threshold is None or not labels.any()
        else float((scores[labels] > threshold).mean()),
        rows=tuple(rows),
    )

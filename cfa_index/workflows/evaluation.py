"""What an evaluation found, and the documents behind `evaluate --json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cfa_index.metrics import BinningError, F1Result, ImageMetrics, Interval

EVALUATION_SCHEMA_VERSION = 2
"""2: a document with `protocol` other than `last` holds no honest numbers; 1 knew no protocol."""
MEASURES = (
    "image_auroc",
    "image_average_precision",
    "image_f1",
    "pixel_auroc",
    "pixel_average_precision",
    "pixel_f1",
    "aupro",
)
"""Fractions of which more is better, as the documents name them."""


@dataclass(frozen=True, kw_only=True)
class TestRow:
    """One test image: raw score and label; score is NaN and error set where it could not be read."""

    __test__: ClassVar[bool] = False  # or pytest takes it for a class of tests

    uri: str
    defect: str
    score: float
    is_anomalous: bool | None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class PixelSummary:
    """What the maps of some test images are worth; None where a number has no value.

    Attributes:
        auroc, average_precision, aupro: with 95% bootstrap intervals over images; AUPRO up to FPR 0.3.
        f1: the best F1 over all pixels and its threshold, map >= threshold.
        binning_error: how far each area can be off; 0 while every score is kept.
    """

    auroc: Interval | None
    average_precision: Interval | None
    aupro: Interval | None
    f1: F1Result | None
    binning_error: BinningError


@dataclass(frozen=True, kw_only=True)
class SplitMetrics:
    """Metrics of some test images: a whole split, or one defect type against all good images.

    Attributes:
        images_good, images_defect: readable ones.
        image: from the scores.
        pixel: from the maps; None where masks are missing.
        detection_rate: share of the defect images above the model's threshold, or None.
    """

    images_good: int
    images_defect: int
    image: ImageMetrics
    pixel: PixelSummary | None
    detection_rate: float | None

    def intervals(self) -> dict[str, Interval | None]:
        """By the names of `MEASURES`, those that have an interval."""
        pixel = self.pixel
        return {
            "image_auroc": self.image.auroc,
            "image_average_precision": self.image.average_precision,
            "image_f1": self.image.f1,
            "pixel_auroc": pixel.auroc if pixel else None,
            "pixel_average_precision": pixel.average_precision if pixel else None,
            "aupro": pixel.aupro if pixel else None,
        }

    def values(self) -> dict[str, float | None]:
        """By the names of `MEASURES`."""
        found = {name: interval.value if interval else None for name, interval in self.intervals().items()}
        found["pixel_f1"] = self.pixel.f1.f1 if self.pixel and self.pixel.f1 else None
        return {name: found[name] for name in MEASURES}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        pixel_f1 = self.pixel.f1 if self.pixel else None
        image_at = self.image.f1_threshold
        return {
            "images_good": self.images_good,
            "images_defect": self.images_defect,
            **self.values(),
            **{
                f"{name}_interval_95": [interval.low, interval.high] if interval else None
                for name, interval in self.intervals().items()
            },
            "image_f1_threshold": image_at.value if image_at else None,
            "pixel_f1_threshold": pixel_f1.threshold if pixel_f1 else None,
            "pixel_binning_error": dict(vars(self.pixel.binning_error)) if self.pixel else None,
            "detection_rate": self.detection_rate,
        }


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """One of the models behind an evaluation."""

    generation: str
    backbone: str
    geometry: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An honest evaluation: last epoch, raw scores, nothing chosen on the test split.

    Attributes:
        models: one, or those that were fused.
        whole: over all readable test images.
        by_defect: each defect type against all good images.
        masks: why pixel metrics are missing, or empty.
        threshold: the model's own; None where it has none, and where models were fused, since no
            held-out score of the fused maps exists.
        false_alarm_rate: share of good images above the threshold, or None.
    """

    category: str
    models: tuple[ModelName, ...]
    whole: SplitMetrics
    by_defect: Mapping[str, SplitMetrics]
    masks: str
    threshold: float | None
    false_alarm_rate: float | None
    rows: tuple[TestRow, ...]

    @property
    def generation(self) -> str:
        """Of the first model."""
        return self.models[0].generation

    @property
    def image_auroc(self) -> float | None:
        """A fraction; None with one class only."""
        return self.whole.values()["image_auroc"]

    @property
    def pixel_auroc(self) -> float | None:
        """A fraction, where every defect image has a mask."""
        return self.whole.values()["pixel_auroc"]

    @property
    def aupro(self) -> float | None:
        """A fraction, up to FPR 0.3, where every defect image has a mask."""
        return self.whole.values()["aupro"]

    @property
    def detection_rate(self) -> float | None:
        """Share of the defect images above the threshold."""
        return self.whole.detection_rate

    @property
    def rejected(self) -> int:
        """How many images could not be read."""
        return sum(1 for row in self.rows if row.error)

    def to_dict(self) -> dict[str, Any]:
        """The document behind `evaluate --json`."""
        return {
            "schema_version": EVALUATION_SCHEMA_VERSION,
            "protocol": "last",
            "category": self.category,
            "generation": self.generation,
            "models": [dict(vars(model)) for model in self.models],
            **self.whole.to_dict(),
            "masks": self.masks,
            "threshold": self.threshold,
            "false_alarm_rate": self.false_alarm_rate,
            "images_rejected": self.rejected,
            "defects": {name: metrics.to_dict() for name, metrics in self.by_defect.items()},
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


@dataclass(frozen=True, kw_only=True)
class BestEpoch:
    """The largest value of one measure over the epochs, and the first epoch (from 1) that has it."""

    value: float
    epoch: int


@dataclass(frozen=True, kw_only=True)
class PublishedEvaluation:
    """The published protocol: the best epoch on the test split, each measure by itself.

    It chooses on the very images that it reports, so its numbers are for comparison with the paper's
    tables alone. A class of its own, so that they cannot be taken for those of an `Evaluation`.

    Attributes:
        models: one, or those that were fused.
        epochs: by epoch, values by the names of `MEASURES`.
        masks: why pixel metrics are missing, or empty.
        rejected: how many images could not be read.
    """

    category: str
    models: tuple[ModelName, ...]
    epochs: tuple[Mapping[str, float | None], ...]
    masks: str
    rejected: int

    @property
    def label(self) -> str:
        """What has to stand wherever one of these numbers appears."""
        return (
            f"published protocol: best of {len(self.epochs)} epochs on the test split, each metric by itself"
        )

    def best(self) -> dict[str, BestEpoch | None]:
        """By the names of `MEASURES`; None where a measure has no value."""
        found: dict[str, BestEpoch | None] = dict.fromkeys(MEASURES)
        for name in MEASURES:
            for epoch, values in enumerate(self.epochs, start=1):
                value, before = values[name], found[name]
                if value is not None and (before is None or value > before.value):
                    found[name] = BestEpoch(value=value, epoch=epoch)
        return found

    def values(self) -> dict[str, float | None]:
        """The best of each measure, by the names of `MEASURES`."""
        return {name: best.value if best else None for name, best in self.best().items()}

    def to_dict(self) -> dict[str, Any]:
        """The document behind `evaluate --protocol published --json`."""
        return {
            "schema_version": EVALUATION_SCHEMA_VERSION,
            "protocol": "published",
            "label": self.label,
            "category": self.category,
            "generation": self.models[0].generation,
            "models": [dict(vars(model)) for model in self.models],
            **self.values(),
            "best_epoch": {name: best.epoch if best else None for name, best in self.best().items()},
            "masks": self.masks,
            "images_rejected": self.rejected,
            "epochs": [{"epoch": number, **values} for number, values in enumerate(self.epochs, start=1)],
        }


def mean_over_categories(
    evaluations: Sequence[Evaluation | PublishedEvaluation],
) -> dict[str, float | None]:
    """Each measure's plain mean over categories, as the paper averages; None unless all of them have it."""
    found: dict[str, float | None] = {}
    for name in MEASURES:
        values = [
            (one.whole.values() if isinstance(one, Evaluation) else one.values())[name] for one in evaluations
        ]
        known = [value for value in values if value is not None]
        found[name] = sum(known) / len(known) if known and len(known) == len(values) else None
    return found

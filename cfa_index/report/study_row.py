"""One cell of a study: the settings, what was measured, and how a figure of it is named and drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["less", "more"]


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """What a study knows of one combination of bank and index; a row of `study.parquet`.

    A figure is None where it could not be measured, all of them where `error` says why the cell could not
    be made. Latency and throughput are those of scoring from the backbone's features on: descriptor,
    search and map; the backbone's own forward pass is `backbone_ms`.

    Attributes:
        key: digest of the settings, of the images and of how it was measured.
        method, bank_size, gamma_d, index: the settings that were swept, as they were asked for.
        memories, width: M and D' of the bank.
        factory, parameters: what the index is to FAISS, and what was tuned, as text.
        resident_bytes: in memory for a search: the index, and for `flat` the vectors themselves.
        index_bytes: of these, the index alone; 0 for `flat`, whose vectors are the index.
        vectors_bytes: of the vectors, mapped into memory where the index does not hold them.
        index_disk_bytes, vectors_disk_bytes: of the files.
        bank_s, index_s: seconds to make the bank from the features; to build and tune the index on it.
        image_ms_p50, image_ms_p95, image_ms_p99: latency of one image alone.
        patch_ms_p50, patch_ms_p95, patch_ms_p99: latency of the search of one patch alone.
        images_per_s_1, images_per_s_8, images_per_s_64: throughput by images a batch.
        recall_at_1, recall_at_3: against Flat on the same bank, on good images that are not in it.
        image_auroc, pixel_auroc: of the labelled test split, fractions.
        backbone_ms: the forward pass of one image in a batch of 8, milliseconds, when the cell was measured.
        seconds: that the cell took, its share of making the bank included.
        on_frontier: whether no other cell beats it in memory, latency and accuracy at once.
        command: that builds it, for a shell.
        error: why it could not be made; empty when it was.
    """

    key: str
    method: str
    bank_size: int
    gamma_d: float
    index: str
    memories: int | None = None
    width: int | None = None
    factory: str = ""
    parameters: str = ""
    resident_bytes: int | None = None
    index_bytes: int | None = None
    vectors_bytes: int | None = None
    index_disk_bytes: int | None = None
    vectors_disk_bytes: int | None = None
    bank_s: float | None = None
    index_s: float | None = None
    image_ms_p50: float | None = None
    image_ms_p95: float | None = None
    image_ms_p99: float | None = None
    patch_ms_p50: float | None = None
    patch_ms_p95: float | None = None
    patch_ms_p99: float | None = None
    images_per_s_1: float | None = None
    images_per_s_8: float | None = None
    images_per_s_64: float | None = None
    recall_at_1: float | None = None
    recall_at_3: float | None = None
    image_auroc: float | None = None
    pixel_auroc: float | None = None
    backbone_ms: float | None = None
    seconds: float | None = None
    on_frontier: bool = False
    command: str = ""
    error: str = ""

    @property
    def disk_bytes(self) -> int | None:
        """Of vectors and index together."""
        if self.vectors_disk_bytes is None or self.index_disk_bytes is None:
            return None
        return self.vectors_disk_bytes + self.index_disk_bytes


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A figure of a row as an axis of a plot.

    Attributes:
        name: of the field or property of `StudyRow`.
        label: with its unit.
        better: which direction a user wants.
        is_log: whether its values spread over magnitudes.
        divisor: from the field's unit to that of the label.
    """

    name: str
    label: str
    better: Direction
    is_log: bool
    divisor: int = 1

    def of(self, row: StudyRow) -> float | None:
        """The figure of a row in the label's unit; None where it could not be measured."""
        value = getattr(row, self.name)
        return None if value is None else value / self.divisor


_MIB = 1 << 20
AXES = (
    Axis(name="resident_bytes", label="memory for a search, MiB", better="less", is_log=True, divisor=_MIB),
    Axis(name="disk_bytes", label="disk, MiB", better="less", is_log=True, divisor=_MIB),
    Axis(name="memories", label="memories in the bank", better="less", is_log=True),
    Axis(name="bank_s", label="making the bank, s", better="less", is_log=True),
    Axis(name="index_s", label="building and tuning the index, s", better="less", is_log=True),
    Axis(name="image_ms_p50", label="latency of an image, median, ms", better="less", is_log=True),
    Axis(name="image_ms_p99", label="latency of an image, p99, ms", better="less", is_log=True),
    Axis(name="patch_ms_p50", label="latency of a patch, median, ms", better="less", is_log=True),
    Axis(name="images_per_s_1", label="images/s, one at a time", better="more", is_log=True),
    Axis(name="images_per_s_8", label="images/s, batches of 8", better="more", is_log=True),
    Axis(name="images_per_s_64", label="images/s, batches of 64", better="more", is_log=True),
    Axis(name="recall_at_1", label="recall@1 against Flat", better="more", is_log=False),
    Axis(name="recall_at_3", label="recall@3 against Flat", better="more", is_log=False),
    Axis(name="image_auroc", label="image AUROC", better="more", is_log=False),
    Axis(name="pixel_auroc", label="pixel AUROC", better="more", is_log=False),
)
"""What can be plotted, in the order in which a person is offered it."""


def axis(name: str) -> Axis:
    """The axis of that field; one of `AXES`."""
    return next(one for one in AXES if one.name == name)


def accuracy_of(rows: list[StudyRow]) -> Axis:
    """What stands for accuracy: the image AUROC where there is one, else recall@1."""
    return axis("image_auroc" if any(row.image_auroc is not None for row in rows) else "recall_at_1")


def views(rows: list[StudyRow]) -> tuple[tuple[str, Axis, Axis], ...]:
    """The three plots of a study: title, horizontal and vertical axis."""
    accuracy = accuracy_of(rows)
    return (
        (f"memory against {accuracy.label}", axis("resident_bytes"), accuracy),
        ("latency against recall", axis("image_ms_p50"), axis("recall_at_1")),
        ("bank size against throughput", axis("memories"), axis("images_per_s_8")),
    )


def index_names(rows: list[StudyRow]) -> list[str]:
    """The indexes in the order of their first row; colour and marker follow from the place."""
    return list(dict.fromkeys(row.index for row in rows))


PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a6d00")
"""Okabe and Ito's colours, told apart also by those who are colour-blind; the marker differs too."""

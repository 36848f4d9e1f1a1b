"""The tables that `evaluate` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cfa_index import Evaluation, Interval, PublishedEvaluation, SplitMetrics
from cfa_index_cli.console import Session, percent

_IMAGE_HEADER = ("", "image AUROC", "AP", "best F1", "at score", "found", "false alarms")
_PIXEL_HEADER = ("", "pixel AUROC", "AP", "AUPRO", "best F1", "at value")
_PUBLISHED_HEADER = ("", "image AUROC", "AP", "best F1", "pixel AUROC", "AP", "AUPRO", "best F1")
_PUBLISHED_ORDER = (
    "image_auroc",
    "image_average_precision",
    "image_f1",
    "pixel_auroc",
    "pixel_average_precision",
    "aupro",
    "pixel_f1",
)


def show(
    out: Session,
    results: Sequence[Evaluation | PublishedEvaluation],
    mean: Mapping[str, float | None] | None,
) -> None:
    """Print the results of some categories, all of one protocol, and their mean where there is one."""
    for result in results:
        if result.masks:
            out.say(f"{result.category}: no pixel metrics, {result.masks}")
    honest = [one for one in results if isinstance(one, Evaluation)]
    published = [one for one in results if isinstance(one, PublishedEvaluation)]
    if honest:
        _show_images(out, honest, mean)
    if any(one.whole.pixel for one in honest):
        _show_pixels(out, honest, mean)
    if published:
        _show_published(out, published, mean)


def _show_images(
    out: Session, results: Sequence[Evaluation], mean: Mapping[str, float | None] | None
) -> None:
    rows = []
    for result in results:
        for name, metrics in _splits(result):
            threshold = metrics.image.f1_threshold
            rows.append(
                [
                    f"{name}\n  {metrics.images_good} + {metrics.images_defect}",
                    *map(_cell, (metrics.image.auroc, metrics.image.average_precision, metrics.image.f1)),
                    f"{threshold.value:.4g}" if threshold else "-",
                    percent(metrics.detection_rate),
                    percent(result.false_alarm_rate if metrics is result.whole else None),
                ]
            )
    if mean:
        rows.append(_mean_row(len(results), mean, ["image_auroc", "image_average_precision", "image_f1"]))
        rows[-1] += [""] * (len(_IMAGE_HEADER) - len(rows[-1]))
    out.table(
        "test split, raw scores, last epoch; good + defect images, 95% intervals",
        _IMAGE_HEADER,
        rows,
    )


def _show_pixels(
    out: Session, results: Sequence[Evaluation], mean: Mapping[str, float | None] | None
) -> None:
    rows = []
    for result in results:
        for name, metrics in _splits(result):
            if pixel := metrics.pixel:
                rows.append(
                    [
                        name,
                        *map(_cell, (pixel.auroc, pixel.average_precision, pixel.aupro)),
                        percent(pixel.f1.f1 if pixel.f1 else None),
                        f"{pixel.f1.threshold:.4g}" if pixel.f1 else "-",
                    ]
                )
    if mean:
        rows.append(
            _mean_row(len(results), mean, ["pixel_auroc", "pixel_average_precision", "aupro", "pixel_f1"])
        )
        rows[-1].append("")
    out.table("its pixels", _PIXEL_HEADER, rows)


def _show_published(
    out: Session, results: Sequence[PublishedEvaluation], mean: Mapping[str, float | None] | None
) -> None:
    for result in results:
        best = result.best()
        cells = [
            f"{percent(found.value)}\nepoch {found.epoch}" if (found := best[name]) else "-"
            for name in _PUBLISHED_ORDER
        ]
        out.table(result.label, _PUBLISHED_HEADER, [[result.category, *cells]])
    if mean:
        title = "published protocol: mean of the best epochs on the test splits"
        out.table(title, _PUBLISHED_HEADER, [_mean_row(len(results), mean, _PUBLISHED_ORDER)])


def _splits(result: Evaluation) -> list[tuple[str, SplitMetrics]]:
    """The category, then its defect types; one type alone would say the same twice."""
    types = list(result.by_defect.items()) if len(result.by_defect) > 1 else []
    return [(result.category, result.whole), *((f"  {name}", metrics) for name, metrics in types)]


def _cell(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{percent(interval.value)}\n{100 * interval.low:.3g}–{100 * interval.high:.3g}"


def _mean_row(count: int, mean: Mapping[str, float | None], names: Sequence[str]) -> list[str]:
    return [f"mean of {count}", *(percent(mean[name]) for name in names)]

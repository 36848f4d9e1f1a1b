"""Bootstrap over images, stratified by class, and the intervals that come of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cfa_index.errors import SpecError
from cfa_index.metrics.curves import Bools, Floats, Values, roc_area
from cfa_index.metrics.ranking import rank

_RESAMPLES_A_CHUNK = 128


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and the ends of its interval, all in one unit; a bootstrap's may leave the estimate out."""

    value: float
    low: float
    high: float


def auroc_interval(
    labels: Bools, scores: Floats, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the AUROC by a bootstrap over images, stratified by class.

    Args:
        labels, scores: as for `auroc`.
        resamples, seed: number of bootstrap samples, and the seed that draws them.
        level: share of the resamples inside the interval.

    Returns:
        (low, high), fractions.

    Raises:
        SpecError: as `auroc`, or only one class is there.
    """
    ranking = rank(labels, scores)
    _require_both(labels)
    draws = drawn_times(labels, resamples, seed)
    return percentiles(np.concatenate([roc_area(*ranking.counts(times)) for times in draws]), level)


def paired_auroc_difference(
    labels: Bools,
    scores_a: Floats,
    scores_b: Floats,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """AUROC of `scores_a` minus that of `scores_b` on the same images, with a paired bootstrap interval.

    Each resample draws the same images for both, so what makes an image hard for both cancels.

    Args:
        labels, scores_a, scores_b: (n,), as for `auroc`, in the same order of images.
        resamples, seed, level: as for `auroc_interval`.

    Returns:
        (difference, low, high), fractions; the difference is that of all images, which is also the
        bootstrap's expectation.

    Raises:
        SpecError: as `auroc`, or only one class is there.
    """
    a, b = rank(labels, scores_a), rank(labels, scores_b)
    _require_both(labels)
    draws = drawn_times(labels, resamples, seed)
    differences = [roc_area(*a.counts(times)) - roc_area(*b.counts(times)) for times in draws]
    low, high = percentiles(np.concatenate(differences), level)
    return float(roc_area(*a.counts()) - roc_area(*b.counts())), low, high


def drawn_times(labels: Bools, resamples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """How often each image is drawn, (resamples, n) in chunks; as many of each class as there are.

    Raises:
        SpecError: no resample is asked for.
    """
    if resamples < 1:
        raise SpecError(expected="at least one resample", got=repr(resamples), remedy="give for example 1000")
    rng = np.random.default_rng(seed)
    for begin in range(0, resamples, _RESAMPLES_A_CHUNK):
        times = np.empty((min(_RESAMPLES_A_CHUNK, resamples - begin), len(labels)), dtype=np.int64)
        for of_class in (~labels, labels):
            times[:, of_class] = _draw(rng, len(times), int(of_class.sum()))
        yield times


def percentiles(values: Values, level: float) -> tuple[float, float]:
    """The middle `level` of the values.

    Raises:
        SpecError: the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise SpecError(expected="a level between 0 and 1", got=repr(level), remedy="give for example 0.95")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _draw(rng: np.random.Generator, resamples: int, count: int) -> npt.NDArray[np.int64]:
    """How often each of `count` images is drawn in each resample: (resamples, count)."""
    drawn = rng.integers(max(count, 1), size=(resamples, count)) + count * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * count).reshape(resamples, count)


def _require_both(labels: Bools) -> None:
    if labels.all() or not labels.any():
        raise SpecError(
            expected="good and defective images",
            got=f"{(~labels).sum()} good, {labels.sum()} defective",
            remedy="an interval of the AUROC needs both classes",
        )

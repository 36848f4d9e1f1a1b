"""The one-pass bootstrap against an ordinary bootstrap over images, and its bins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from reference_metrics import Maps, Masks

from cfa_index.metrics import Interval, PixelMetrics
from cfa_index.metrics.curves import overlap_area, precision_area, roc_area
from cfa_index.metrics.replicates import MAX_BINS, Replicates
from cfa_index.metrics.scores import BinCounts


def made_up(rng: np.random.Generator, count: int, *, scale: float = 1.0) -> tuple[Maps, Masks]:
    """Images that differ: each has a level and a contrast of its own; two in three are good."""
    maps, masks = [], []
    for number in range(count):
        mask = np.zeros((16, 16), dtype=bool)
        if number % 3 == 0:
            top, left = rng.integers(0, 12, 2)
            mask[top : top + rng.integers(2, 6), left : left + rng.integers(2, 6)] = True
        level, contrast = rng.normal(5, 0.4), rng.gamma(4, 0.3)
        scores = level + rng.gamma(2, 0.3, mask.shape) + contrast * mask
        maps.append((scale * scores).astype(np.float32))
        masks.append(mask)
    return maps, masks


def measured(maps: Maps, masks: Masks, *, exact_pixels: int = 10**6, resamples: int = 400) -> PixelMetrics:
    pixels = PixelMetrics(exact_pixels=exact_pixels, resamples=resamples)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        pixels.update(anomaly_map, mask)
    return pixels


def once(bins: npt.NDArray[np.int64]) -> BinCounts:
    return BinCounts(bins, np.ones((3, len(bins))))


def ordinary(maps: Maps, masks: Masks, resamples: int) -> npt.NDArray[np.float64]:
    """AUROC, AUPRO and average precision (3, resamples) of images drawn with replacement, exact scores."""
    rng = np.random.default_rng(1)
    images = [measured([m], [mask], resamples=0) for m, mask in zip(maps, masks, strict=True)]
    values = []
    for _ in range(resamples):
        pixels = PixelMetrics(resamples=0)
        for number in rng.integers(len(images), size=len(images)):
            pixels.merge(images[number])
        values.append((pixels.pixel_auroc(), pixels.aupro(), pixels.average_precision()))
    return np.array(values, dtype=np.float64).T


def test_intervals_are_those_of_an_ordinary_bootstrap() -> None:
    maps, masks = made_up(np.random.default_rng(0), 45)
    drawn = ordinary(maps, masks, 400)
    for exact_pixels in (0, 10**6):
        intervals = measured(maps, masks, exact_pixels=exact_pixels, resamples=2000).intervals(level=0.8)
        mine = (intervals.auroc, intervals.aupro, intervals.average_precision)
        for interval, values in zip(mine, drawn, strict=True):
            assert interval is not None
            low, high = np.quantile(values, [0.1, 0.9])  # of 400 draws, less noisy than the far tails
            assert interval.high - interval.low == pytest.approx(high - low, rel=0.15)
            assert interval.low == pytest.approx(low, abs=0.25 * values.std())
            assert interval.high == pytest.approx(high, abs=0.25 * values.std())
            assert interval.low < interval.value < interval.high


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    truth = measured(*made_up(np.random.default_rng(100), 600), resamples=0)
    points = np.array([truth.pixel_auroc(), truth.aupro()], dtype=np.float64)
    covered = np.zeros(2)
    for seed in range(24):
        intervals = measured(*made_up(np.random.default_rng(seed), 45), resamples=100).intervals()
        for metric, interval in enumerate((intervals.auroc, intervals.aupro)):
            assert interval is not None
            covered[metric] += interval.low <= points[metric] <= interval.high
    assert (covered / 24 >= 0.82).all(), covered  # 0.95 less the noise of 24 and of 15 defective images


def test_images_stand_and_fall_as_one() -> None:
    """The same pixels dealt out to more images know more about the images."""
    maps, masks = made_up(np.random.default_rng(3), 30)
    halves = (
        [part for m in maps for part in (m[::2], m[1::2])],
        [part for m in masks for part in (m[::2], m[1::2])],
    )
    whole, split = measured(maps, masks).intervals().auroc, measured(*halves).intervals().auroc
    assert whole is not None
    assert split is not None
    assert split.high - split.low < 0.9 * (whole.high - whole.low)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e30])
def test_intervals_do_not_depend_on_the_unit(scale: float) -> None:
    """Powers of ten shift the bins a little, so they agree within the noise of binning."""
    one, other = (measured(*made_up(np.random.default_rng(4), 30, scale=s)).intervals() for s in (1, scale))
    assert one.auroc is not None
    assert other.auroc is not None
    width = one.auroc.high - one.auroc.low
    assert (other.auroc.low, other.auroc.high) == pytest.approx(
        (one.auroc.low, one.auroc.high), abs=0.02 * width
    )


def test_intervals_are_reproducible_and_obey_their_level() -> None:
    maps, masks = made_up(np.random.default_rng(5), 30)
    pixels = measured(maps, masks)
    assert pixels.intervals() == measured(maps, masks).intervals()
    narrow, wide = pixels.intervals(level=0.5).auroc, pixels.intervals(level=0.99).auroc
    assert narrow is not None
    assert wide is not None
    assert wide.low < narrow.low < narrow.high < wide.high


def test_perfect_maps_have_intervals_of_no_width() -> None:
    _, masks = made_up(np.random.default_rng(6), 12)
    intervals = measured([mask.astype(np.float32) for mask in masks], masks).intervals()
    one = Interval(value=1.0, low=1.0, high=1.0)
    assert (intervals.auroc, intervals.average_precision) == (one, one)


def test_replicates_are_the_metrics_of_the_weighted_images() -> None:
    """Keys as they are, few enough for a bin each: every replicate counts image i as often as was drawn."""
    rng = np.random.default_rng(7)
    replicates, images = Replicates(20, seed=3), []
    for number in range(6):
        keys = np.sort(rng.choice(50, size=10, replace=False)).astype(np.int64)
        counts = rng.integers(0, 9, (3, 10)).astype(np.float64)
        counts[0, 0] = counts[1, 1] = counts[2, 1] = 1
        replicates.add(BinCounts(keys, counts), number)
        times = np.append(1, np.random.default_rng((3, number)).poisson(1.0, 20))
        images.append((keys, counts, times))
    columns = [np.concatenate(parts) for parts in zip(*replicates.counts(), strict=True)]
    for column in range(21):
        dense = np.zeros((3, 50))
        for keys, counts, times in images:
            dense[:, keys] += times[column] * counts
        false_alarms, hits, overlap = np.cumsum(dense[:, ::-1], axis=1)
        mine = [part[column] for part in columns]
        assert roc_area(mine[0], mine[1]) == pytest.approx(roc_area(false_alarms, hits), abs=1e-12)
        assert precision_area(mine[0], mine[1]) == pytest.approx(
            precision_area(false_alarms, hits), abs=1e-12
        )
        assert overlap_area(mine[0], mine[2], 0.3) == pytest.approx(
            overlap_area(false_alarms, overlap, 0.3), abs=1e-12
        )


def test_bins_are_bounded_and_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(8)
    images = [(np.unique(rng.integers(0, 2**20, 3000)), number) for number in range(4)]
    totals = []
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        replicates = Replicates(5, seed=0)
        for place in order:
            keys, number = images[place]
            replicates.add(once(keys), number)
        totals.append(np.concatenate([part[0] for part in replicates.counts()]))
    assert totals[0].shape[1] <= MAX_BINS
    assert totals[0].shape[1] > MAX_BINS / 4
    assert (totals[0] == totals[1]).all()
    assert totals[0][0, -1] == sum(len(keys) for keys, _ in images)


def test_merging_parts_of_unlike_resolution() -> None:
    rng = np.random.default_rng(9)
    wide, narrow = np.unique(rng.integers(0, 2**20, 5000)), np.arange(777, 999, dtype=np.int64)
    whole = Replicates(5, seed=0)
    whole.add(once(wide), 0)
    whole.add(once(narrow), 1)
    for keys, others, numbers in ((wide, narrow, (0, 1)), (narrow, wide, (1, 0))):
        first, second = Replicates(5, seed=0), Replicates(5, seed=0)
        first.add(once(keys), numbers[0])
        second.add(once(others), numbers[1])
        first.merge(second)
        for mine, expected in zip(first.counts(), whole.counts(), strict=True):
            assert all((a == b).all() for a, b in zip(mine, expected, strict=True))
    empty = Replicates(5, seed=0)
    empty.merge(whole)
    empty.merge(Replicates(5, seed=0))
    for mine, expected in zip(empty.counts(), whole.counts(), strict=True):
        assert all((a == b).all() for a, b in zip(mine, expected, strict=True))

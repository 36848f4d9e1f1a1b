"""Metrics against pair counts, scikit-learn, and a plain AUPRO that sorts every threshold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from cfa_index import metrics
from cfa_index.errors import SpecError
from cfa_index.metrics import (
    PixelMetrics,
    auroc,
    auroc_interval,
    conformal_threshold,
    f1_threshold,
    paired_auroc_difference,
)

Maps = list[npt.NDArray[np.float32]]
Masks = list[npt.NDArray[np.bool_]]


def pair_count(labels: npt.NDArray[np.bool_], scores: npt.NDArray[Any]) -> float:
    won = sum(
        (defect > good) + 0.5 * (defect == good) for defect in scores[labels] for good in scores[~labels]
    )
    return float(won) / (int(labels.sum()) * int((~labels).sum()))


def regions_of(mask: npt.NDArray[np.bool_]) -> list[set[tuple[int, int]]]:
    """8-connected regions by flooding."""
    left = {(int(i), int(j)) for i, j in np.argwhere(mask)}
    regions = []
    while left:
        region, edge = set(), [left.pop()]
        while edge:
            i, j = edge.pop()
            region.add((i, j))
            near = {(i + di, j + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1)} & left
            left -= near
            edge.extend(near)
        regions.append(region)
    return regions


def plain_aupro(maps: Maps, masks: Masks, max_fpr: float) -> float:
    """Every distinct score is a threshold; overlaps are counted region by region, areas strip by strip."""
    normal = [float(s) for m, k in zip(maps, masks, strict=True) for s in m[~k]]
    regions = [
        [float(m[pixel]) for pixel in region]
        for m, k in zip(maps, masks, strict=True)
        for region in regions_of(k)
    ]
    area = last_fpr = last_pro = 0.0
    for threshold in sorted({float(s) for m in maps for s in m.ravel()}, reverse=True):
        fpr = sum(s >= threshold for s in normal) / len(normal)
        pro = sum(sum(s >= threshold for s in r) / len(r) for r in regions) / len(regions)
        if fpr > max_fpr:
            pro = last_pro + (pro - last_pro) * (max_fpr - last_fpr) / (fpr - last_fpr)
            return (area + (max_fpr - last_fpr) * (pro + last_pro) / 2) / max_fpr
        area += (fpr - last_fpr) * (pro + last_pro) / 2
        last_fpr, last_pro = fpr, pro
    return area / max_fpr


def accumulated(maps: Maps, masks: Masks) -> PixelMetrics:
    pixels = PixelMetrics()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        pixels.update(anomaly_map, mask)
    return pixels


def random_masks(rng: np.random.Generator, count: int, share: float) -> Masks:
    """Scattered regions: single pixels, diagonals, the border."""
    return [rng.random((9, 11)) < share for _ in range(count)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=40))
def test_auroc_is_the_pair_count(pairs: list[tuple[bool, int]]) -> None:
    labels = np.array([label for label, _ in pairs])
    scores = np.array([score / 4 for _, score in pairs])
    if labels.all() or not labels.any():
        assert auroc(labels, scores) is None
    else:
        assert auroc(labels, scores) == pytest.approx(pair_count(labels, scores), abs=1e-12)


def test_auroc_separates_neighbouring_floats() -> None:
    one = np.float32(1)
    scores = np.array([one, np.nextafter(one, np.float32(2))], dtype=np.float32)
    assert auroc(np.array([False, True]), scores) == 1.0
    assert auroc(np.array([True, False]), scores) == 0.0


@pytest.mark.parametrize(
    ("labels", "scores"),
    [
        (np.array([True, False]), np.array([0.5, math.nan])),
        (np.array([True, False]), np.array([0.5, math.inf])),
        (np.array([True, False]), np.array([0.5])),
        (np.array([1, 0]), np.array([0.5, 0.1])),
        (np.array([[True, False]]), np.array([[0.5, 0.1]])),
    ],
)
def test_bad_labels_and_scores_are_refused(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> None:
    for metric in (auroc, auroc_interval, f1_threshold):
        with pytest.raises(SpecError):
            metric(labels, scores)
    with pytest.raises(SpecError):
        paired_auroc_difference(labels, scores, scores)


def test_bootstrap_is_the_auroc_of_the_drawn_images(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(30) < 0.4
    several = [rng.integers(0, 6, 30) / 2, rng.random(30)]
    counts: list[npt.NDArray[np.int64]] = []
    draw = metrics._draw

    def spy(rng: np.random.Generator, resamples: int, count: int) -> npt.NDArray[np.int64]:
        counts.append(draw(rng, resamples, count))
        return counts[-1]

    monkeypatch.setattr(metrics, "_draw", spy)
    got = metrics._bootstrap(labels, several, 200, seed=1)
    times_good, times_defect = np.concatenate(counts[::2]), np.concatenate(counts[1::2])
    assert (times_good.sum(axis=1) == (~labels).sum()).all()
    assert (times_defect.sum(axis=1) == labels.sum()).all()
    for values, scores in zip(got, several, strict=True):
        for value, good, defect in zip(values, times_good, times_defect, strict=True):
            drawn = np.concatenate([np.repeat(scores[~labels], good), np.repeat(scores[labels], defect)])
            drawn_labels = np.arange(len(drawn)) >= good.sum()
            assert value == pytest.approx(roc_auc_score(drawn_labels, drawn), abs=1e-12)


def test_interval_holds_the_auroc_and_narrows() -> None:
    rng = np.random.default_rng(2)
    widths = []
    for count in (50, 5000):
        labels = np.arange(count) % 2 == 0
        scores = rng.normal(size=count) + labels
        value = auroc(labels, scores)
        low, high = auroc_interval(labels, scores, resamples=300)
        assert value is not None
        assert low < value < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5  # the root of 100 is 10


def test_interval_is_reproducible_and_obeys_its_level() -> None:
    rng = np.random.default_rng(3)
    labels = rng.random(100) < 0.5
    scores = rng.normal(size=100) + labels
    assert auroc_interval(labels, scores, seed=5) == auroc_interval(labels, scores, seed=5)
    narrow, wide = (auroc_interval(labels, scores, level=level) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert auroc_interval(labels, labels.astype(float)) == (1.0, 1.0)


def test_paired_difference_cancels_what_both_share() -> None:
    rng = np.random.default_rng(4)
    labels = rng.random(400) < 0.5
    scores = rng.normal(size=400) + labels
    assert paired_auroc_difference(labels, scores, 3 * scores + 1) == (0.0, 0.0, 0.0)
    slightly_better = scores + 0.2 * labels
    difference, low, high = paired_auroc_difference(labels, slightly_better, scores)
    assert difference == pytest.approx(pair_count(labels, slightly_better) - pair_count(labels, scores))
    assert 0 < low < difference < high
    alone_low, alone_high = auroc_interval(labels, scores)
    assert high - low < (alone_high - alone_low) / 2
    backward = paired_auroc_difference(labels, scores, slightly_better)
    assert backward == pytest.approx((-difference, -high, -low))


@pytest.mark.parametrize("change", [{"resamples": 0}, {"level": 1.0}, {"level": 0.0}])
def test_bad_bootstraps_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        auroc_interval(np.array([True, False]), np.array([1.0, 0.0]), **change)
    with pytest.raises(SpecError):
        auroc_interval(np.array([True, True]), np.array([1.0, 0.0]))


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 3),
    share=st.sampled_from([0.02, 0.1, 0.4]),
    max_fpr=st.sampled_from([0.05, 0.3, 1.0]),
)
def test_pixel_metrics_are_exact_on_scores_with_their_own_bins(
    seed: int, count: int, share: float, max_fpr: float
) -> None:
    rng = np.random.default_rng(seed)
    masks = random_masks(rng, count, share)
    masks[0][0, 0], masks[0][4, 4] = True, False
    maps = [(rng.integers(0, 20, mask.shape) / 8 + mask).astype(np.float32) for mask in masks]
    pixels = accumulated(maps, masks)
    assert pixels.regions == sum(len(regions_of(mask)) for mask in masks)
    assert pixels.aupro(max_fpr) == pytest.approx(plain_aupro(maps, masks, max_fpr), abs=1e-9)
    flat_labels, flat_scores = np.concatenate(masks).ravel(), np.concatenate(maps).ravel()
    assert pixels.pixel_auroc() == pytest.approx(roc_auc_score(flat_labels, flat_scores), abs=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("seed", range(3))
def test_pixel_metrics_on_arbitrary_floats(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    masks = random_masks(rng, 3, 0.15)
    maps = [(scale * (rng.random(mask.shape) + 0.5 * mask)).astype(np.float32) for mask in masks]
    pixels = accumulated(maps, masks)
    assert pixels.aupro() == pytest.approx(plain_aupro(maps, masks, 0.3), abs=1e-3)
    flat_labels, flat_scores = np.concatenate(masks).ravel(), np.concatenate(maps).ravel()
    assert pixels.pixel_auroc() == pytest.approx(roc_auc_score(flat_labels, flat_scores), abs=1e-3)


def test_aupro_by_hand() -> None:
    # Two regions, of 1 and of 3 pixels, and four normal pixels.
    mask = np.array([[True, False, True, True], [False, False, False, True]])
    anomaly_map = np.array([[4, 3, 4, 2], [1, 0, 0, 1]], dtype=np.float32)
    # At 4: FPR 0, PRO (1 + 1/3) / 2 = 2/3. At 3: 1/4, 2/3. At 2: 1/4, 5/6. At 1: 1/2, 1. At 0: 1, 1.
    pixels = accumulated([anomaly_map], [mask])
    assert pixels.aupro(0.25) == pytest.approx(2 / 3)  # the vertical step at the limit has no area
    assert pixels.aupro(0.5) == pytest.approx((2 / 3 / 4 + (5 / 6 + 1) / 8) * 2)
    at_limit = 5 / 6 + (1 - 5 / 6) * 0.05 / 0.25
    assert pixels.aupro(0.3) == pytest.approx((2 / 3 * 0.25 + (5 / 6 + at_limit) / 2 * 0.05) / 0.3)


def test_perfect_constant_and_useless_maps() -> None:
    mask = np.zeros((6, 6), dtype=bool)
    mask[:2, :2] = True
    assert accumulated([mask.astype(np.float32)], [mask]).aupro() == pytest.approx(1.0)
    constant = accumulated([np.ones((6, 6), dtype=np.float32)], [mask])
    assert constant.pixel_auroc() == pytest.approx(0.5)
    assert constant.aupro() == pytest.approx(0.15)  # the diagonal up to 0.3
    assert accumulated([(~mask).astype(np.float32)], [mask]).pixel_auroc() == pytest.approx(0.0)


def test_nothing_to_measure_is_none() -> None:
    pixels = PixelMetrics()
    assert pixels.pixel_auroc() is None
    assert pixels.aupro() is None
    pixels.update(np.ones((3, 3), dtype=np.float32), np.zeros((3, 3), dtype=bool))
    assert pixels.pixel_auroc() is None
    assert pixels.aupro() is None
    only_defect = accumulated([np.ones((3, 3), dtype=np.float32)], [np.ones((3, 3), dtype=bool)])
    assert only_defect.pixel_auroc() is None
    assert only_defect.aupro() is None


def test_merging_is_seeing_all_images_in_one() -> None:
    rng = np.random.default_rng(7)
    masks = random_masks(rng, 4, 0.1)
    maps = [rng.random(mask.shape, dtype=np.float32) for mask in masks]
    whole, first, second = (
        accumulated(maps[part], masks[part]) for part in (slice(None), slice(1), slice(1, None))
    )
    first.merge(second)
    assert first.regions == whole.regions
    assert first.aupro() == pytest.approx(whole.aupro(), abs=1e-12)
    assert first.pixel_auroc() == whole.pixel_auroc()


def test_a_defect_that_was_not_inspected_is_missed() -> None:
    mask = np.zeros((4, 4), dtype=bool)
    mask[0, 0] = mask[3, 3] = True
    anomaly_map = 1 + mask.astype(np.float32)
    cropped = anomaly_map.copy()
    cropped[0] = np.nan
    counted_as_zero = anomaly_map.copy()
    counted_as_zero[0] = 0
    inspected = np.ones((4, 4), dtype=bool)
    inspected[0] = False
    by_mask = PixelMetrics()
    by_mask.update(anomaly_map, mask, inspected)
    for pixels in (accumulated([cropped], [mask]), by_mask):
        assert pixels.aupro() == accumulated([counted_as_zero], [mask]).aupro()
        assert pixels.aupro() == pytest.approx(plain_aupro([counted_as_zero], [mask], 0.3))
        assert pixels.pixel_auroc() == pytest.approx(roc_auc_score(mask.ravel(), counted_as_zero.ravel()))


def test_minus_zero_is_zero() -> None:
    mask = np.array([[True, False]])
    pixels = accumulated([np.array([[0.0, -0.0]], dtype=np.float32)], [mask])
    assert pixels.pixel_auroc() == 0.5


@pytest.mark.parametrize(
    ("anomaly_map", "mask", "inspected"),
    [
        (np.full((2, 2), -1.0), np.zeros((2, 2), dtype=bool), None),
        (np.full((2, 2), math.inf), np.zeros((2, 2), dtype=bool), None),
        (np.full((2, 2), math.nan), np.zeros((2, 2), dtype=bool), np.ones((2, 2), dtype=bool)),
        (np.ones((2, 2)), np.zeros((2, 3), dtype=bool), None),
        (np.ones((2, 2)), np.full((2, 2), 255, dtype=np.uint8), None),
        (np.ones((2, 2)), np.zeros((2, 2), dtype=bool), np.ones((2, 2))),
        (np.ones((1, 2, 2)), np.zeros((1, 2, 2), dtype=bool), None),
    ],
)
def test_bad_maps_are_refused(anomaly_map: Any, mask: Any, inspected: Any) -> None:
    pixels = PixelMetrics()
    with pytest.raises(SpecError):
        pixels.update(anomaly_map.astype(np.float32), mask, inspected)
    assert pixels.pixel_auroc() is None
    assert pixels.regions == 0


@pytest.mark.parametrize("max_fpr", [0.0, -0.1, 1.1, math.nan])
def test_bad_limits_are_refused(max_fpr: float) -> None:
    with pytest.raises(SpecError):
        PixelMetrics().aupro(max_fpr)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=30))
def test_f1_is_the_best_of_all_thresholds(pairs: list[tuple[bool, int]]) -> None:
    labels = np.array([label for label, _ in pairs])
    scores = np.array([score / 4 for _, score in pairs])
    result = f1_threshold(labels, scores)
    if not labels.any():
        assert result is None
        return
    assert result is not None
    reached = {float(t): float(f1_score(labels, scores >= t)) for t in scores}
    assert result.f1 == pytest.approx(max(reached.values()))
    assert result.threshold == max(t for t, f1 in reached.items() if f1 == pytest.approx(result.f1))


@settings(deadline=None)
@given(
    scores=st.lists(st.integers(0, 12), min_size=2, max_size=40),
    rate=st.sampled_from([0.01, 0.05, 0.1, 0.2, 1 / 3, 0.5, 0.9, 0.999]),
)
def test_conformal_coverage_is_exact(scores: list[int], rate: float) -> None:
    """Of n + 1 exchangeable images any one is the new one equally often: count how often it is above."""
    values = np.array(scores) / 8
    alarms = 0
    for new in range(len(values)):
        threshold = conformal_threshold(np.delete(values, new), rate)
        alarms += values[new] > threshold.value
        assert threshold.requested_rate == rate
        assert threshold.count == len(values) - 1
    assert alarms <= threshold.supported_rate * len(values) + 1e-9
    if len(set(scores)) == len(scores):  # without ties it is as tight as ranks allow
        assert alarms > threshold.supported_rate * len(values) - 1


@pytest.mark.parametrize(
    ("count", "rate", "rank", "supported"),
    [
        (19, 0.05, 19, 0.05),
        (18, 0.05, 18, 1 / 19),
        (39, 0.05, 38, 0.05),
        (99, 0.01, 99, 0.01),
        (98, 0.01, 98, 1 / 99),
        (9, 0.1, 9, 0.1),
        (9, 0.7, 3, 0.7),
        (2, 1 / 3, 2, 1 / 3),
        (1, 0.05, 1, 0.5),
        (1, 0.9, 1, 0.9),
    ],
)
def test_conformal_ranks(count: int, rate: float, rank: int, supported: float) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1, count + 1)).astype(np.float32)
    threshold = conformal_threshold(scores, rate)
    assert threshold.value == rank
    assert threshold.supported_rate == supported


def test_no_rank_is_lost_to_rounding() -> None:
    for count in range(1, 400):
        scores = np.arange(1, count + 1, dtype=np.float64)
        for percent in (1, 2, 5, 7, 10, 15, 30, 70):
            exact = -(-(count + 1) * (100 - percent) // 100)
            assert conformal_threshold(scores, percent / 100).value == min(exact, count)


@pytest.mark.parametrize(
    ("scores", "rate"),
    [
        ([], 0.05),
        ([1.0, math.nan], 0.05),
        ([[1.0]], 0.05),
        ([1.0], 0.0),
        ([1.0], 1.0),
        ([1.0], math.nan),
    ],
)
def test_bad_calibrations_are_refused(scores: list[Any], rate: float) -> None:
    with pytest.raises(SpecError):
        conformal_threshold(np.array(scores, dtype=np.float64), rate)

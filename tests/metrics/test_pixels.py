"""Pixel metrics: exact and binned against scikit-learn and each other, bad input, bounded memory."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st
from reference_metrics import Maps, Masks, plain_aupro, plain_f1, regions_of
from sklearn.metrics import average_precision_score, roc_auc_score

from cfa_index.errors import SpecError
from cfa_index.metrics import BinningError, PixelMetrics

NOTHING = BinningError(auroc=0.0, aupro=0.0, average_precision=0.0)


def accumulated(maps: Maps, masks: Masks, **settings: int) -> PixelMetrics:
    pixels = PixelMetrics(**settings)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        pixels.update(anomaly_map, mask)
    return pixels


def random_masks(rng: np.random.Generator, count: int, share: float) -> Masks:
    """Scattered regions: single pixels, diagonals, the border."""
    return [rng.random((9, 11)) < share for _ in range(count)]


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 3),
    share=st.sampled_from([0.02, 0.1, 0.4]),
    max_fpr=st.sampled_from([0.05, 0.3, 1.0]),
    exact_pixels=st.sampled_from([0, 150, 10**6]),
)
@settings(max_examples=40)
def test_both_modes_are_exact_on_scores_with_their_own_bins(
    seed: int, count: int, share: float, max_fpr: float, exact_pixels: int
) -> None:
    rng = np.random.default_rng(seed)
    masks = random_masks(rng, count, share)
    masks[0][0, 0], masks[0][4, 4] = True, False
    maps = [(rng.integers(0, 20, mask.shape) / 8 + mask).astype(np.float32) for mask in masks]
    pixels = accumulated(maps, masks, exact_pixels=exact_pixels, resamples=0)
    assert (pixels.images, pixels.pixels) == (count, 99 * count)
    assert pixels.is_exact == (pixels.pixels <= exact_pixels)
    assert pixels.regions == sum(len(regions_of(mask)) for mask in masks)
    assert pixels.aupro(max_fpr) == pytest.approx(plain_aupro(maps, masks, max_fpr), abs=1e-9)
    labels, scores = np.concatenate(masks).ravel(), np.concatenate(maps).ravel()
    assert pixels.pixel_auroc() == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert pixels.average_precision() == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
    best = pixels.f1()
    assert best is not None
    reached = {float(t): plain_f1(labels, scores >= t) for t in set(scores)}
    assert best.f1 == max(reached.values())
    assert best.threshold == max(t for t, f1 in reached.items() if f1 == best.f1)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("seed", range(3))
def test_exact_mode_on_arbitrary_floats(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    masks = random_masks(rng, 3, 0.15)
    maps = [(scale * (rng.random(mask.shape) + 0.5 * mask)).astype(np.float32) for mask in masks]
    pixels = accumulated(maps, masks)
    assert pixels.binning_error() == NOTHING
    assert pixels.aupro() == pytest.approx(plain_aupro(maps, masks, 0.3), abs=1e-12)
    labels, scores = np.concatenate(masks).ravel(), np.concatenate(maps).ravel()
    assert pixels.pixel_auroc() == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert pixels.average_precision() == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([1e-6, 1e-3, 1.0]),
    order=st.sampled_from(["random", "defects above", "defects below"]),
    max_fpr=st.sampled_from([0.02, 0.3, 1.0]),
)
@settings(max_examples=40)
def test_bins_are_within_the_stated_error(seed: int, spread: float, order: str, max_fpr: float) -> None:
    """Scores so close that whole images share a few bins, and the worst orders within a bin."""
    rng = np.random.default_rng(seed)
    masks = random_masks(rng, 2, 0.2)
    masks[0][0, 0], masks[0][4, 4] = True, False
    lift = {"random": 0.0, "defects above": 1.0, "defects below": -1.0}[order]
    maps = [(2 + spread * (rng.random(mask.shape) + lift * mask)).astype(np.float32) for mask in masks]
    exact, binned = (accumulated(maps, masks, exact_pixels=n, resamples=0) for n in (10**6, 0))
    error = binned.binning_error(max_fpr)
    for mine, other, bound in (
        (exact.pixel_auroc(), binned.pixel_auroc(), error.auroc),
        (exact.average_precision(), binned.average_precision(), error.average_precision),
        (exact.aupro(max_fpr), binned.aupro(max_fpr), error.aupro),
    ):
        assert mine is not None
        assert other is not None
        assert abs(mine - other) <= bound + 1e-9
    assert (exact.f1() or (0, 0))[1] >= (binned.f1() or (0, 1))[1]


def test_the_stated_error_is_half_the_pairs_in_one_bin_and_is_reached() -> None:
    mask = np.array([[True, True, False, False]])
    for scores in ([1 + 2e-5, 3, 1 + 1e-5, 2], [1 + 1e-5, 3, 1 + 2e-5, 2]):
        anomaly_map = np.array([scores], dtype=np.float32)
        exact, binned = (accumulated([anomaly_map], [mask], exact_pixels=n) for n in (4, 0))
        assert binned.binning_error().auroc == pytest.approx(1 / 8)  # 1 of 4 pairs
        assert abs((exact.pixel_auroc() or 0) - (binned.pixel_auroc() or 0)) == pytest.approx(1 / 8)


def test_the_stated_error_is_small_on_smooth_scores() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((200, 200)) < 0.05
    anomaly_map = (rng.gamma(4, 1, mask.shape) + 2 * mask).astype(np.float32)
    error = accumulated([anomaly_map], [mask], exact_pixels=0).binning_error()
    assert 0 < error.auroc < 1e-4
    assert 0 < error.aupro < 2e-4
    assert 0 < error.average_precision < 1e-2


def test_a_binned_threshold_reaches_the_f1_it_states() -> None:
    rng = np.random.default_rng(1)
    mask = rng.random((60, 60)) < 0.1
    anomaly_map = (rng.gamma(4, 1, mask.shape) + 3 * mask).astype(np.float32)
    best = accumulated([anomaly_map], [mask], exact_pixels=0).f1()
    assert best is not None
    assert plain_f1(mask, anomaly_map >= best.threshold) == best.f1


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


@pytest.mark.parametrize("exact_pixels", [0, 10**6])
def test_perfect_constant_and_useless_maps(exact_pixels: int) -> None:
    mask = np.zeros((6, 6), dtype=bool)
    mask[:2, :2] = True
    perfect = accumulated([mask.astype(np.float32)], [mask], exact_pixels=exact_pixels)
    assert perfect.aupro() == pytest.approx(1.0)
    assert perfect.f1() == (1.0, 1.0)
    constant = accumulated([np.ones((6, 6), dtype=np.float32)], [mask], exact_pixels=exact_pixels)
    assert constant.pixel_auroc() == pytest.approx(0.5)
    assert constant.aupro() == pytest.approx(0.15)  # the diagonal up to 0.3
    assert constant.average_precision() == pytest.approx(4 / 36)
    useless = accumulated([(~mask).astype(np.float32)], [mask], exact_pixels=exact_pixels)
    assert useless.pixel_auroc() == pytest.approx(0.0)


@pytest.mark.parametrize("exact_pixels", [0, 10**6])
def test_nothing_to_measure_is_none(exact_pixels: int) -> None:
    good = PixelMetrics(exact_pixels=exact_pixels)
    for _ in range(2):  # before and after the first image, which is good
        assert (good.pixel_auroc(), good.aupro(), good.average_precision(), good.f1()) == (None,) * 4
        intervals = good.intervals()
        assert (intervals.auroc, intervals.aupro, intervals.average_precision) == (None,) * 3
        assert good.binning_error() == NOTHING
        good.update(np.ones((3, 3), dtype=np.float32), np.zeros((3, 3), dtype=bool))
    defect = PixelMetrics(exact_pixels=exact_pixels)
    defect.update(np.ones((3, 3), dtype=np.float32), np.ones((3, 3), dtype=bool))
    assert (defect.pixel_auroc(), defect.aupro()) == (None, None)
    assert defect.average_precision() == 1.0
    assert defect.intervals().auroc is None


def test_a_defect_that_was_not_inspected_is_missed() -> None:
    mask = np.zeros((4, 4), dtype=bool)
    mask[0, 0] = mask[3, 3] = True
    anomaly_map = 1 + mask.astype(np.float32)
    cropped, counted_as_zero = anomaly_map.copy(), anomaly_map.copy()
    cropped[0], counted_as_zero[0] = np.nan, 0
    inspected = np.ones((4, 4), dtype=bool)
    inspected[0] = False
    by_mask = PixelMetrics()
    by_mask.update(anomaly_map, mask, inspected)
    for pixels in (accumulated([cropped], [mask]), by_mask):
        assert pixels.aupro() == accumulated([counted_as_zero], [mask]).aupro()
        assert pixels.aupro() == pytest.approx(plain_aupro([counted_as_zero], [mask], 0.3))
        assert pixels.pixel_auroc() == pytest.approx(roc_auc_score(mask.ravel(), counted_as_zero.ravel()))


@pytest.mark.parametrize("exact_pixels", [0, 10**6])
def test_minus_zero_is_zero(exact_pixels: int) -> None:
    anomaly_map = np.array([[0.0, -0.0]], dtype=np.float32)
    pixels = accumulated([anomaly_map], [np.array([[True, False]])], exact_pixels=exact_pixels)
    assert pixels.pixel_auroc() == 0.5


def test_the_callers_map_can_be_reused() -> None:
    mask = np.eye(5, dtype=bool)
    buffer = mask.astype(np.float32)
    pixels = accumulated([buffer], [mask])
    good = np.zeros_like(mask)
    pixels.update(buffer, good)
    before = pixels.pixel_auroc()
    buffer[:] = 7
    again = PixelMetrics()
    again.merge(pixels)  # nothing computed before is used
    assert again.pixel_auroc() == before


@pytest.mark.parametrize("exact_pixels", [0, 250, 10**6])
def test_merging_is_seeing_all_images_in_one(exact_pixels: int) -> None:
    rng = np.random.default_rng(7)
    masks = random_masks(rng, 4, 0.1)
    maps = [rng.random(mask.shape, dtype=np.float32) + mask for mask in masks]
    whole = accumulated(maps, masks, exact_pixels=exact_pixels)
    first, second = PixelMetrics(exact_pixels=exact_pixels), PixelMetrics(exact_pixels=exact_pixels)
    for number in (2, 0, 3, 1):  # in whatever order
        (first if number % 2 else second).update(maps[number], masks[number], number=number)
    seen = (second.pixels, second.pixel_auroc(), second.intervals())
    assert first.pixel_auroc() is not None  # and its running counts are not used afterwards
    first.merge(second)
    assert (first.images, first.pixels, first.regions) == (whole.images, whole.pixels, whole.regions)
    assert first.is_exact == whole.is_exact
    assert first.aupro() == pytest.approx(whole.aupro(), abs=1e-12)
    assert first.pixel_auroc() == pytest.approx(whole.pixel_auroc(), abs=1e-12)
    assert first.average_precision() == pytest.approx(whole.average_precision(), abs=1e-12)
    assert first.f1() == whole.f1()
    mine, others = first.intervals(), whole.intervals()
    for name in ("auroc", "aupro", "average_precision"):
        a, b = getattr(mine, name), getattr(others, name)
        assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=1e-6)  # float32 sums
    assert (second.pixels, second.pixel_auroc(), second.intervals()) == seen


def test_one_binned_part_makes_the_merger_binned() -> None:
    mask = np.eye(5, dtype=bool)
    anomaly_map = mask.astype(np.float32)
    for mine, other in ((0, 10**6), (10**6, 0)):
        first, second = (PixelMetrics(exact_pixels=n, resamples=0) for n in (mine, other))
        first.update(anomaly_map, mask)
        second.update(anomaly_map, mask)
        first.merge(second)
        assert not first.is_exact
        assert first.pixel_auroc() == 1.0
        assert first.pixels == 50


def test_parts_with_the_same_draws_are_not_merged() -> None:
    mask = np.eye(5, dtype=bool)
    parts = [accumulated([mask.astype(np.float32)], [mask]) for _ in range(2)]
    with pytest.raises(SpecError, match="numbered over the whole test set"):
        parts[0].merge(parts[1])
    assert (parts[0].images, parts[0].pixels) == (1, 25)
    with pytest.raises(SpecError, match="resamples and seed"):
        parts[0].merge(PixelMetrics(seed=1))
    empty = PixelMetrics()
    empty.merge(parts[0])
    assert empty.images == 1


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
        (np.ones((0, 2)), np.zeros((0, 2), dtype=bool), None),
    ],
)
def test_bad_maps_are_refused(anomaly_map: Any, mask: Any, inspected: Any) -> None:
    pixels = PixelMetrics()
    with pytest.raises(SpecError):
        pixels.update(anomaly_map.astype(np.float32), mask, inspected)
    assert pixels.pixel_auroc() is None
    assert (pixels.images, pixels.pixels, pixels.regions) == (0, 0, 0)


def test_a_negative_number_is_refused() -> None:
    pixels = PixelMetrics()
    with pytest.raises(SpecError, match="number"):
        pixels.update(np.ones((2, 2), dtype=np.float32), np.eye(2, dtype=bool), number=-1)
    assert pixels.images == 0


@pytest.mark.parametrize("max_fpr", [0.0, -0.1, 1.1, math.nan])
def test_bad_limits_are_refused(max_fpr: float) -> None:
    for method in (PixelMetrics().aupro, PixelMetrics().binning_error):
        with pytest.raises(SpecError):
            method(max_fpr)
    with pytest.raises(SpecError):
        PixelMetrics().intervals(max_fpr=max_fpr)


@pytest.mark.parametrize("settings", [{"exact_pixels": -1}, {"resamples": -1}, {"seed": -1}])
def test_bad_settings_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(SpecError):
        PixelMetrics(**settings)
    with pytest.raises(SpecError, match="resamples"):
        PixelMetrics(resamples=0).intervals()


def test_memory_does_not_grow_with_images() -> None:
    rng = np.random.default_rng(0)
    shape = (60, 60)

    def wild(count: int) -> Maps:
        """Scores over all of float32: every octave, as many bins as can be."""
        return [np.exp(rng.uniform(-80, 80, shape)).astype(np.float32) for _ in range(count)]

    mask: npt.NDArray[np.bool_] = rng.random(shape) < 0.2
    tracemalloc.start()
    try:
        pixels = PixelMetrics(exact_pixels=20_000)
        peaks = []
        for _ in range(2):
            for anomaly_map in wild(10):
                pixels.update(anomaly_map, mask)
            peaks.append(tracemalloc.get_traced_memory()[0])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not pixels.is_exact
    assert peaks[1] == pytest.approx(peaks[0], rel=0.02)
    assert peak < 100 * 2**20

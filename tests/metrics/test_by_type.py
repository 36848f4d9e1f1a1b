"""Each defect type against all good images is what an accumulator of just those images says."""

from __future__ import annotations

import numpy as np
import pytest

from cfa_index.errors import SpecError
from cfa_index.metrics import PixelMetrics, PixelMetricsByType

TYPES = ["scratch", "good", "hole", "good", "scratch", "good"]


def image(
    number: int,
) -> tuple[
    np.ndarray[tuple[int, int], np.dtype[np.float32]], np.ndarray[tuple[int, int], np.dtype[np.bool_]]
]:
    rng = np.random.default_rng(number)
    mask = np.zeros((12, 10), dtype=bool)
    if TYPES[number] != "good":
        mask[2:5, 3:6] = True
    return (rng.random(mask.shape) + 0.3 * mask).astype(np.float32), mask


def of_these(names: set[str], exact_pixels: int) -> PixelMetrics:
    pixels = PixelMetrics(exact_pixels=exact_pixels, resamples=50)
    for number, name in enumerate(TYPES):
        if name in names:
            pixels.update(*image(number), number=number)
    return pixels


def by_type(exact_pixels: int) -> PixelMetricsByType:
    metrics = PixelMetricsByType(exact_pixels=exact_pixels, resamples=50)
    for number, name in enumerate(TYPES):
        metrics.update(name, *image(number))
    return metrics


@pytest.mark.parametrize("exact_pixels", [0, 500, 10**6])
def test_a_type_and_the_whole(exact_pixels: int) -> None:
    metrics = by_type(exact_pixels)
    assert metrics.types == ("hole", "scratch")
    is_exact = len(TYPES) * 120 <= exact_pixels
    for names, mine in (
        ({"good", "scratch"}, metrics.of("scratch")),
        ({"good", "hole"}, metrics.of("hole")),
        ({"good"}, metrics.of("never seen")),
        ({"good", "hole", "scratch"}, metrics.whole()),
    ):
        expected = of_these(names, exact_pixels if is_exact else 0)
        assert mine.is_exact == is_exact
        assert (mine.images, mine.regions) == (expected.images, expected.regions)
        assert mine.pixel_auroc() == pytest.approx(expected.pixel_auroc(), abs=1e-12)
        assert mine.aupro() == pytest.approx(expected.aupro(), abs=1e-12)
        assert mine.f1() == expected.f1()
        a, b = mine.intervals().aupro, expected.intervals().aupro
        assert (a is None) == (b is None)
        if a and b:
            assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=1e-6)


def test_asking_changes_nothing() -> None:
    metrics = by_type(10**6)
    before = metrics.whole().pixel_auroc()
    metrics.of("scratch").update(*image(0), number=99)
    assert metrics.whole().pixel_auroc() == before
    assert metrics.of("scratch").images == 5


def test_an_image_that_is_refused_leaves_no_type_behind() -> None:
    metrics = PixelMetricsByType()
    with pytest.raises(SpecError):
        metrics.update("dent", np.full((2, 2), np.inf, dtype=np.float32), np.zeros((2, 2), dtype=bool))
    assert metrics.types == ()
    with pytest.raises(SpecError):
        PixelMetricsByType(resamples=-1)

"""AUPRO against plain loops and against two packages: pyaupro (MVTec's own evaluation code) and adeval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from reference_metrics import Maps, Masks, area_up_to, plain_aupro, regions_of

from cfa_index.metrics import PixelMetrics

_LEVELS = 40
"""Scores are k / 8 with k below this: adeval then gets a strip for each, so that it is exact too."""


def ours(maps: Maps, masks: Masks, *, exact_pixels: int) -> float | None:
    pixels = PixelMetrics(exact_pixels=exact_pixels, resamples=0)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        pixels.update(anomaly_map, mask)
    return pixels.aupro()


def by_adeval(maps: Maps, masks: Masks) -> float:
    import adeval

    below, above = -1 / 16, (_LEVELS - 0.5) / 8  # each score in the middle of a strip
    accumulator = adeval.EvalAccumulator(0.0, 1.0, below, above, nstrips=_LEVELS)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        accumulator.add_anomap(anomaly_map, mask.astype(np.uint8))
    with np.errstate(invalid="ignore"):  # its summary also divides for images, of which there are none
        return float(accumulator.summary()["p_aupro"])


def by_pyaupro(maps: Maps, masks: Masks) -> float:
    import pyaupro

    metric = pyaupro.PerRegionOverlap(reference_implementation=True)
    metric.update(torch.from_numpy(np.stack(maps)), torch.from_numpy(np.stack(masks).astype(np.int64)))
    fpr, pro = metric.compute()
    return area_up_to([float(x) for x in fpr], [float(y) for y in pro], 0.3)


@pytest.fixture(autouse=True)
def trapezoid_under_its_old_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """adeval 1.1.0 calls np.trapz, which numpy 2.4 no longer has."""
    if not hasattr(np, "trapz"):
        monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)


def scored(rng: np.random.Generator, masks: Masks, *, levels: int, lift: int) -> Maps:
    """Scores k / 8 of few or many levels, higher by `lift` levels where there is a defect."""
    return [((rng.integers(0, levels, mask.shape) + lift * mask) / 8).astype(np.float32) for mask in masks]


def rectangles(rng: np.random.Generator, shape: tuple[int, int], count: int) -> Any:
    mask = np.zeros(shape, dtype=bool)
    for _ in range(count):
        top, left = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        mask[top : top + rng.integers(1, 6), left : left + rng.integers(1, 6)] = True
    return mask


def scattered(rng: np.random.Generator) -> tuple[Maps, Masks]:
    """Regions of one pixel, diagonals that only eight neighbours join, the border."""
    masks = [rng.random((17, 17)) < 0.08 for _ in range(3)]
    return scored(rng, masks, levels=20, lift=8), masks


def heavy_ties(rng: np.random.Generator) -> tuple[Maps, Masks]:
    masks = [rectangles(rng, (16, 16), 3) for _ in range(3)]
    return scored(rng, masks, levels=3, lift=1), masks


def few_ties(rng: np.random.Generator) -> tuple[Maps, Masks]:
    masks = [rectangles(rng, (20, 20), 2) for _ in range(2)]
    return scored(rng, masks, levels=_LEVELS - 8, lift=5), masks


def no_skill(rng: np.random.Generator) -> tuple[Maps, Masks]:
    masks = [rectangles(rng, (16, 16), 2) for _ in range(2)]
    return scored(rng, masks, levels=10, lift=0), masks


def one_score(rng: np.random.Generator) -> tuple[Maps, Masks]:
    masks = [rectangles(rng, (16, 16), 2) for _ in range(2)]
    return [np.ones(mask.shape, dtype=np.float32) for mask in masks], masks


def not_square(rng: np.random.Generator) -> tuple[Maps, Masks]:
    masks = [rectangles(rng, (9, 31), 3) for _ in range(3)]
    return scored(rng, masks, levels=20, lift=6), masks


def on_the_border(rng: np.random.Generator) -> tuple[Maps, Masks]:
    frame = np.ones((14, 14), dtype=bool)
    frame[1:-1, 1:-1] = False
    corners = np.zeros((14, 14), dtype=bool)
    corners[:2, :2] = corners[-1, -1] = corners[-3:, 0] = True
    return scored(rng, [frame, corners], levels=20, lift=6), [frame, corners]


def one_pixel_each(rng: np.random.Generator) -> tuple[Maps, Masks]:
    mask = np.zeros((15, 15), dtype=bool)
    mask[::4, ::3] = True
    return scored(rng, [mask, mask.T], levels=20, lift=10), [mask, mask.T]


def good_images_among_them(rng: np.random.Generator) -> tuple[Maps, Masks]:
    masks = [np.zeros((16, 16), dtype=bool), rectangles(rng, (16, 16), 4), np.zeros((16, 16), dtype=bool)]
    return scored(rng, masks, levels=20, lift=9), masks


def one_image_all_defect(rng: np.random.Generator) -> tuple[Maps, Masks]:
    masks = [np.ones((8, 8), dtype=bool), rectangles(rng, (8, 8), 1)]
    return scored(rng, masks, levels=16, lift=4), masks


def a_large_and_a_tiny_region(rng: np.random.Generator) -> tuple[Maps, Masks]:
    mask = np.zeros((20, 20), dtype=bool)
    mask[:12, :12] = mask[17, 17] = True
    return scored(rng, [mask], levels=12, lift=12), [mask]


MAKERS = [
    scattered,
    heavy_ties,
    few_ties,
    no_skill,
    one_score,
    not_square,
    on_the_border,
    one_pixel_each,
    good_images_among_them,
    one_image_all_defect,
    a_large_and_a_tiny_region,
]


@pytest.mark.parametrize("exact_pixels", [0, 10**6], ids=["bins", "exact"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: str(make.__name__))
def test_aupro_is_everyone_elses(
    make: Callable[[np.random.Generator], tuple[Maps, Masks]], seed: int, exact_pixels: int
) -> None:
    maps, masks = make(np.random.default_rng(seed))
    value = ours(maps, masks, exact_pixels=exact_pixels)
    assert value is not None
    assert value == pytest.approx(plain_aupro(maps, masks, 0.3), abs=1e-9)
    assert value == pytest.approx(by_pyaupro(maps, masks), abs=1e-6)  # its rates are float32
    assert value == pytest.approx(by_adeval(maps, masks), abs=1e-6)  # its weights are float32


def test_continuous_scores() -> None:
    rng = np.random.default_rng(9)
    masks = [rectangles(rng, (30, 20), 3) for _ in range(3)]
    maps = [(rng.gamma(3, 1, mask.shape) + mask).astype(np.float32) for mask in masks]
    value = ours(maps, masks, exact_pixels=10**6)
    assert value == pytest.approx(plain_aupro(maps, masks, 0.3), abs=1e-9)
    assert value == pytest.approx(by_pyaupro(maps, masks), abs=1e-6)
    assert ours(maps, masks, exact_pixels=0) == pytest.approx(value, abs=1e-4)


def test_what_was_not_inspected_scores_zero() -> None:
    rng = np.random.default_rng(3)
    maps, masks = not_square(rng)
    whole = [anomaly_map + np.float32(1 / 8) for anomaly_map in maps]
    shown, zeroed = [m.copy() for m in whole], [m.copy() for m in whole]
    for hidden, zero in zip(shown, zeroed, strict=True):
        hidden[:, :6], zero[:, :6] = np.nan, 0
    value = ours(shown, masks, exact_pixels=10**6)
    assert value == pytest.approx(by_pyaupro(zeroed, masks), abs=1e-6)
    assert value == pytest.approx(by_adeval(zeroed, masks), abs=1e-6)


def test_regions_are_counted_as_by_flooding() -> None:
    for make in MAKERS:
        maps, masks = make(np.random.default_rng(0))
        pixels = PixelMetrics(resamples=0)
        for anomaly_map, mask in zip(maps, masks, strict=True):
            pixels.update(anomaly_map, mask)
        assert pixels.regions == sum(len(regions_of(mask)) for mask in masks)

"""Intervals over images: each resample is the metric of the drawn images, no more and no less."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from reference_metrics import pair_count, plain_f1
from sklearn.metrics import average_precision_score, roc_auc_score

from cfa_index.errors import SpecError
from cfa_index.metrics import (
    Interval,
    auroc,
    auroc_interval,
    average_precision,
    f1_threshold,
    image_metrics,
    image_metrics_by_type,
    paired_auroc_difference,
)
from cfa_index.metrics.bootstrap import drawn_times


def test_draws_are_stratified_and_even() -> None:
    labels = np.arange(40) % 4 == 0
    times = np.concatenate(list(drawn_times(labels, 1000, seed=0)))
    assert times.shape == (1000, 40)
    assert (times[:, labels].sum(axis=1) == 10).all()
    assert (times[:, ~labels].sum(axis=1) == 30).all()
    assert times.mean(axis=0) == pytest.approx(1.0, abs=0.2)
    assert times.var(axis=0) == pytest.approx(1.0, abs=0.3)  # 1 - 1/n


@settings(max_examples=10)
@given(
    seed=st.integers(0, 1000), goods=st.integers(0, 12), defects=st.integers(1, 12), levels=st.integers(1, 8)
)
def test_intervals_are_percentiles_of_the_metrics_of_the_drawn_images(
    seed: int, goods: int, defects: int, levels: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(goods + defects) < defects)
    scores = rng.integers(0, levels, goods + defects) / 2
    result = image_metrics(labels, scores, resamples=12, seed=seed)
    columns: dict[str, list[float]] = {"auroc": [], "average_precision": [], "f1": [], "f1_threshold": []}
    for times in np.concatenate(list(drawn_times(labels, 12, seed))):
        drawn, drawn_labels = np.repeat(scores, times), np.repeat(labels, times)
        columns["auroc"].append(roc_auc_score(drawn_labels, drawn) if goods else np.nan)
        columns["average_precision"].append(average_precision_score(drawn_labels, drawn))
        reached = [(plain_f1(drawn_labels, drawn >= t), float(t)) for t in set(drawn)]
        best = max(f1 for f1, _ in reached)
        columns["f1"].append(best)
        columns["f1_threshold"].append(max(t for f1, t in reached if f1 == pytest.approx(best, abs=1e-12)))
    for name, values in columns.items():
        interval = getattr(result, name)
        if goods == 0 and name == "auroc":
            assert interval is None
        else:
            low, high = np.quantile(values, [0.025, 0.975])
            assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12)


def test_image_metrics_are_those_of_the_single_functions() -> None:
    rng = np.random.default_rng(1)
    labels = rng.random(300) < 0.3
    scores = rng.normal(size=300) + labels
    result = image_metrics(labels, scores, resamples=120, seed=4)
    best = f1_threshold(labels, scores)
    assert result.auroc
    assert result.average_precision
    assert result.f1
    assert result.f1_threshold
    assert best
    assert result.auroc.value == auroc(labels, scores)
    assert (result.auroc.low, result.auroc.high) == auroc_interval(labels, scores, resamples=120, seed=4)
    assert result.average_precision.value == average_precision(labels, scores)
    assert (result.f1.value, result.f1_threshold.value) == (best.f1, best.threshold)
    for interval in (result.auroc, result.average_precision, result.f1):
        assert 0 < interval.low < interval.value < interval.high < 1
    assert image_metrics(labels, scores, resamples=120, seed=4) == result
    assert image_metrics(labels, scores, resamples=120, seed=5) != result


def test_one_class_constant_scores_and_a_perfect_split() -> None:
    scores = np.array([1.0, 2.0, 2.0, 5.0])
    goods = image_metrics(np.zeros(4, dtype=bool), scores, resamples=9)
    assert (goods.auroc, goods.average_precision, goods.f1, goods.f1_threshold) == (None,) * 4
    one = Interval(value=1.0, low=1.0, high=1.0)
    defects = image_metrics(np.ones(4, dtype=bool), scores, resamples=9)
    assert (defects.auroc, defects.average_precision, defects.f1) == (None, one, one)
    half = np.array([False, False, True, True])
    constant = image_metrics(half, np.full(4, 3.0), resamples=9)
    assert constant.auroc == Interval(value=0.5, low=0.5, high=0.5)
    assert constant.average_precision == Interval(value=0.5, low=0.5, high=0.5)
    assert constant.f1_threshold == Interval(value=3.0, low=3.0, high=3.0)
    perfect = image_metrics(half, np.array([0.0, 1.0, 2.0, 2.0]), resamples=9)
    assert (perfect.auroc, perfect.average_precision, perfect.f1) == (one, one, one)


def test_each_defect_type_stands_against_all_good_images() -> None:
    rng = np.random.default_rng(2)
    types = np.array(["scratch", "good", "hole", "good"])[np.arange(60) % 4]
    scores = rng.normal(size=60) + (types != "good")
    by_type = image_metrics_by_type(list(types), scores, resamples=50)
    assert list(by_type) == ["hole", "scratch"]
    for name, result in by_type.items():
        shown = (types == name) | (types == "good")
        assert result == image_metrics(types[shown] == name, scores[shown], resamples=50)
    assert image_metrics_by_type(["good", "good"], scores[:2]) == {}
    with pytest.raises(SpecError):
        image_metrics_by_type(["good"], scores)


def test_interval_holds_the_auroc_and_narrows() -> None:
    rng = np.random.default_rng(2)
    widths = []
    for count in (50, 5000):
        labels = np.arange(count) % 2 == 0
        scores = rng.normal(size=count) + labels
        value = auroc(labels, scores)
        low, high = auroc_interval(labels, scores, resamples=120)
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
    assert auroc_interval(labels, labels.astype(float)) == pytest.approx((1.0, 1.0), abs=1e-12)


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


def test_an_interval_needs_both_classes_and_a_resample() -> None:
    for labels in (np.array([True, True]), np.array([False, False])):
        with pytest.raises(SpecError):
            auroc_interval(labels, np.array([1.0, 0.0]))
    with pytest.raises(SpecError):
        image_metrics(np.array([True, False]), np.array([1.0, 0.0]), resamples=0)

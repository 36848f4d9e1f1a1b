"""AUROC, average precision and the best F1 against pair counts and scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings, strategies as st
from reference_metrics import pair_count
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from cfa_index.errors import SpecError
from cfa_index.metrics import (
    auroc,
    auroc_interval,
    average_precision,
    f1_threshold,
    image_metrics,
    paired_auroc_difference,
)

# Few distinct scores: ties, within a class and across; a constant score; one class only; one image.
Pairs = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=40)


def unzipped(pairs: list[tuple[bool, int]]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    return np.array([label for label, _ in pairs]), np.array([score / 4 - 0.5 for _, score in pairs])


@given(Pairs)
def test_auroc_is_scikit_learns_and_the_pair_count(pairs: list[tuple[bool, int]]) -> None:
    labels, scores = unzipped(pairs)
    if labels.all() or not labels.any():
        assert auroc(labels, scores) is None
        return
    assert auroc(labels, scores) == pytest.approx(pair_count(labels, scores), abs=1e-12)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@given(Pairs)
@example([(True, 1)])
@example([(True, 1), (False, 1)])
def test_average_precision_is_scikit_learns(pairs: list[tuple[bool, int]]) -> None:
    labels, scores = unzipped(pairs)
    if not labels.any():
        assert average_precision(labels, scores) is None
        return
    expected = average_precision_score(labels, scores)
    assert average_precision(labels, scores) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=25)
@given(Pairs)
def test_f1_is_the_best_of_all_thresholds(pairs: list[tuple[bool, int]]) -> None:
    labels, scores = unzipped(pairs)
    result = f1_threshold(labels, scores)
    if not labels.any():
        assert result is None
        return
    assert result is not None
    reached = {float(t): float(f1_score(labels, scores >= t)) for t in scores}
    assert result.f1 == pytest.approx(max(reached.values()))
    assert result.threshold == max(t for t, f1 in reached.items() if f1 == pytest.approx(result.f1))


def test_many_images_without_ties() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(5000) < 0.1
    scores = rng.normal(size=5000) + labels
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    expected = average_precision_score(labels, scores)
    assert average_precision(labels, scores) == pytest.approx(expected, abs=1e-12)


def test_neighbouring_floats_are_no_tie() -> None:
    one = np.float32(1)
    scores = np.array([one, np.nextafter(one, np.float32(2))], dtype=np.float32)
    assert auroc(np.array([False, True]), scores) == average_precision(np.array([False, True]), scores) == 1.0
    assert auroc(np.array([True, False]), scores) == 0.0
    assert average_precision(np.array([True, False]), scores) == 0.5


@pytest.mark.parametrize(
    ("labels", "scores"),
    [
        (np.array([True, False]), np.array([0.5, math.nan])),
        (np.array([True, False]), np.array([0.5, math.inf])),
        (np.array([True, False]), np.array([0.5])),
        (np.array([1, 0]), np.array([0.5, 0.1])),
        (np.array([[True, False]]), np.array([[0.5, 0.1]])),
        (np.array([], dtype=bool), np.array([])),
    ],
)
def test_bad_labels_and_scores_are_refused(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> None:
    for metric in (auroc, auroc_interval, average_precision, f1_threshold, image_metrics):
        with pytest.raises(SpecError):
            metric(labels, scores)
    with pytest.raises(SpecError):
        paired_auroc_difference(labels, scores, scores)

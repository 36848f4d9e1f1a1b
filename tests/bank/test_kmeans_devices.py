"""K-means and the search for one neighbour on every device, against the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_card import fake_card
from numpy.typing import NDArray
from vectors import clustered

from cfa_index.bank import NearestRow, kmeans, nearest_rows
from cfa_index.errors import BankError
from cfa_index.specs import CardSpec

CPU, CARD = torch.device("cpu"), torch.device("meta", 0)
X = clustered(900, 8, seed=1)
REPEATED = np.repeat(clustered(20, 8, seed=2), 30, axis=0)
"""Centres that start on equal rows leave all but one of their cells empty. Their halves are then equally far away."""


def centres_and_errors(
    x: NDArray[np.float32], k: int, device: torch.device, iterations: int
) -> tuple[NDArray[np.float32], list[float]]:
    errors: list[float] = []
    found = kmeans(x, k, iterations=iterations, seed=3, on_iteration=errors.append, device=device)
    return found, errors


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize(
    ("x", "k", "iterations"), [(X, 12, 4), (X, 150, 4), (REPEATED, 60, 1), (X[:40], 40, 1)]
)
def test_every_device_has_the_centres_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    x: NDArray[np.float32],
    k: int,
    iterations: int,
    in_blocks: bool,
) -> None:
    if in_blocks:
        monkeypatch.setattr("cfa_index.bank.card_kmeans.has_room", lambda *_: False)
        monkeypatch.setattr("cfa_index.bank.card_kmeans._BLOCK_BYTES", 7 * 8 * 41)
    expected, errors = centres_and_errors(x, k, CPU, iterations)
    found, seen = centres_and_errors(x, k, device, iterations)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(seen, errors, rtol=1e-4, atol=1e-4)


def test_a_card_has_the_points_once_and_is_waited_for_once_a_step() -> None:
    with fake_card() as card:
        centres_and_errors(X, 12, CARD, iterations=5)
        assert card.to_card.count(X.shape) == 1
        assert len(card.to_host) == 5 + 1  # and the centres
        assert not card.waits
        assert card.faiss.calls["brute_force"] == 5


def test_numbers_that_are_none_are_refused(device: torch.device) -> None:
    x = X.copy()
    x[5, 3] = np.nan
    with pytest.raises((BankError, RuntimeError), match=r"NaN"):
        kmeans(x, 12, iterations=2, seed=0, device=device)
    nearest = NearestRow(X, device, CardSpec())
    with pytest.raises(BankError, match="NaN or infinite patch feature"):
        nearest(x)


def test_every_device_finds_the_nearest_row(device: torch.device) -> None:
    queries = clustered(70, 8, seed=5)
    expected, ids = nearest_rows(queries, X)
    sq_distances, rows = NearestRow(X, device, CardSpec())(queries)
    np.testing.assert_array_equal(rows, ids[:, 0])
    np.testing.assert_allclose(sq_distances, expected[:, 0], rtol=1e-4, atol=1e-4)

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from fake_card import fake_card
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from cfa_index.compress import greedy_k_centre
from cfa_index.errors import BankError


def points_of(count: int, width: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@given(seed=st.integers(0, 1000), count=st.integers(1, 60), share=st.floats(0.01, 1), pool=st.integers(1, 70))
def test_the_picks_are_those_of_the_plain_algorithm(seed: int, count: int, share: float, pool: int) -> None:
    points = points_of(count, 3, seed)
    k = max(1, int(share * count))
    got = greedy_k_centre(torch.from_numpy(points), k, seed=seed, pool=pool)
    assert got.tolist() == reference.greedy_k_centre(points.astype(float), k, first=int(got[0]))


def test_several_blocks_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfa_index.compress.k_centre._BLOCK", 16)
    monkeypatch.setattr("cfa_index.compress.k_centre._MOST_PICKS", 5)
    points = torch.from_numpy(points_of(100, 4, seed=1)).half()
    steps: list[int] = []
    estimates: list[float] = []
    got = greedy_k_centre(points, 30, seed=0, pool=8, on_picks=steps.append, on_estimate=estimates.append)
    expected = reference.greedy_k_centre(points.double().numpy(), 30, first=int(got[0]))
    assert got.tolist() == expected
    assert (sum(steps), max(steps) <= 5) == (30, True)
    assert len(estimates) == 1
    assert estimates[0] > 0


def test_by_hand() -> None:
    points = torch.tensor([[0.0], [1.0], [4.0], [10.0]])
    for seed in range(8):
        got = greedy_k_centre(points, 4, seed=seed).tolist()
        assert got in ([0, 3, 2, 1], [1, 3, 2, 0], [2, 3, 0, 1], [3, 0, 2, 1])


@pytest.mark.parametrize("pool", [2, 100])
def test_duplicates_come_last_and_no_row_comes_twice(pool: int) -> None:
    different = points_of(10, 5, seed=2)
    points = torch.from_numpy(np.repeat(different, 4, axis=0))
    got = greedy_k_centre(points, 40, seed=0, pool=pool)
    assert sorted(got.tolist()) == list(range(40))
    assert sorted(got[:10] // 4) == list(range(10))


def test_points_that_are_all_the_same_are_all_picked() -> None:
    got = greedy_k_centre(torch.ones(20, 3), 20, seed=0, pool=3)
    assert sorted(got.tolist()) == list(range(20))


def test_the_first_pick_is_the_seed_s() -> None:
    points = torch.from_numpy(points_of(50, 3, seed=0))
    firsts = {int(greedy_k_centre(points, 1, seed=seed)[0]) for seed in range(20)}
    assert len(firsts) > 10
    again = [greedy_k_centre(points, 20, seed=5).tolist() for _ in range(2)]
    assert again[0] == again[1]


def test_more_picks_than_points_are_refused() -> None:
    with pytest.raises(BankError, match="at most 4 memories, one a patch, got 5"):
        greedy_k_centre(torch.zeros(4, 2), 5, seed=0)


@pytest.mark.parametrize(("half", "covered"), [(False, False), (False, True), (True, False)])
def test_every_device_picks_the_same(device: torch.device, half: bool, covered: bool) -> None:
    points = torch.from_numpy(points_of(400, 5, seed=3))
    points = points.half() if half else points
    distances = torch.from_numpy(points_of(400, 1, seed=4)[:, 0]).square() if covered else None
    expected = greedy_k_centre(points, 100, seed=1, covered=distances, pool=64)
    got = greedy_k_centre(points, 100, seed=1, covered=distances, pool=64, device=device)
    np.testing.assert_array_equal(got, expected)


def test_a_card_is_looked_at_once_for_many_picks() -> None:
    points = torch.from_numpy(points_of(600, 4, seed=5))
    passes: list[int] = []
    with fake_card() as card:
        greedy_k_centre(points, 300, seed=0, pool=200, device=torch.device("meta", 0), on_picks=passes.append)
        # Of every pass the bound and a look for each 32 picks; and in the end the picks.
        looks = sum(1 + -(-min(new + 31, 300) // 32) for new in passes[1:])
        assert len(card.to_host) + card.waits.total() <= 1 + looks < 100
        assert card.to_card == [(600, 4)]


def test_what_a_card_has_no_room_for_is_picked_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfa_index.compress.k_centre.has_room", lambda *_: False)
    points = torch.from_numpy(points_of(50, 4, seed=5))
    with fake_card() as card:
        got = greedy_k_centre(points, 9, seed=0, device=torch.device("meta", 0))
        assert not card.to_card
    np.testing.assert_array_equal(got, greedy_k_centre(points, 9, seed=0))

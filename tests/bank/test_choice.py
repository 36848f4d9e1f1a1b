"""Recipes, tuning and the choice within budgets, on made-up vectors whose true neighbours are known."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from vectors import clustered

from cfa_index.bank import (
    BuiltIndex,
    IndexChoice,
    IndexState,
    Truth,
    build_faiss,
    make_index,
    recall_at,
    recipes_of,
)
from cfa_index.bank.recipes import cell_count
from cfa_index.errors import BankError
from cfa_index.events import Event, Notice
from cfa_index.specs import INDEX_NAMES, IndexSpec

XB, XQ = clustered(3000, 32, seed=1), clustered(600, 32, seed=2)


def choose(spec: IndexSpec, events: list[Event] | None = None, k: int = 3) -> IndexChoice:
    listener = events.append if events is not None else lambda _: None
    return make_index(XB, spec, XQ, k=k, patches_per_image=64, seed=0, listener=listener)


@given(st.integers(1, 10**8), st.integers(1, 4096))
def test_recipes_suit_any_size(count: int, d: int) -> None:
    for name in INDEX_NAMES:
        for recipe in recipes_of(name, count, d):
            assert recipe.factory
    cells = cell_count(count)
    assert cells == 1 or (cells & (cells - 1) == 0 and cells * 39 <= count)


def test_a_factory_string_stands_for_itself() -> None:
    (recipe,) = recipes_of("OPQ16,IVF64,PQ16", 5000, 32)
    assert (recipe.name, recipe.factory) == ("OPQ16,IVF64,PQ16",) * 2


def test_recall_counts_a_tie_as_found() -> None:
    nearest = np.array([[1.0, 2.0], [1.0, 1.0], [0.0, 0.0]], dtype=np.float32)
    found = np.array([[1.000001, 2.5], [1.0, 1.0], [0.1, 0.2]], dtype=np.float32)
    first, at_2 = recall_at(found, nearest, 2)
    assert first.tolist() == [True, True, False]
    assert at_2 == pytest.approx((1 + 2 + 0) / 6)


@pytest.mark.parametrize("recall", [0.8, 0.99, 1.0])
def test_more_recall_is_looked_for_longer(recall: float) -> None:
    state = choose(IndexSpec(factory="IVF64,PQ4x4", min_recall=recall)).state
    assert state.recall_at_1 >= recall - 0.03
    assert state.queries == 300


def test_tuning_does_not_see_the_queries_that_it_is_measured_with() -> None:
    truth = Truth(XB, XQ, k=3, patches_per_image=64)
    assert truth.half == 300
    other = XQ.copy()
    other[300:] = clustered(300, 32, seed=9) * 1.5
    same = make_index(XB, IndexSpec(factory="ivf"), other, k=3, patches_per_image=64, seed=0).state
    assert same.shortlist == choose(IndexSpec(factory="ivf")).state.shortlist


def test_an_index_that_finds_too_little_is_kept_with_a_notice() -> None:
    events: list[Event] = []
    choice = choose(IndexSpec(factory="PCA1,PQ1x2", min_recall=1.0), events)
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert choice.index is not None
    assert len(notices) == 1
    assert "recall@1 of" in notices[0]
    assert "1 were asked for" in notices[0]


def test_a_recall_that_only_the_tuning_queries_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # The fewest cells that do, whatever the machine is busy with.
    monkeypatch.setattr(Truth, "latency_ms", lambda _, bank: float(bank.index.state.parameters["nprobe"]))
    queries = XQ.copy()
    queries[300:] = (
        np.random.default_rng(3).normal(size=(300, 32)).astype(np.float32) * 4
    )  # unlike those that tune
    events: list[Event] = []
    choice = make_index(
        XB,
        IndexSpec(factory="IVF64,Flat", min_recall=0.9),
        queries,
        k=3,
        patches_per_image=64,
        seed=0,
        listener=events.append,
    )
    assert choice.state.recall_at_1 < 0.9
    (notice,) = [event.message for event in events if isinstance(event, Notice)]
    assert "on patches that did not tune it, 0.9 were asked for" in notice


def test_auto_tries_all_and_says_why_each_fell_out() -> None:
    choice = choose(IndexSpec(factory="auto", min_recall=0.95, budget_memory_bytes=200_000))
    names = {trial.name for trial in choice.trials}
    assert names == set(INDEX_NAMES) - {"auto", "cagra"}  # the CPU's graph is hnsw
    verdicts = {trial.name: trial.verdict for trial in choice.trials}
    assert "MiB resident, 0.191 MiB allowed" in verdicts["flat"]
    assert [trial.verdict for trial in choice.trials].count("chosen") == 1
    assert choice.state.resident_bytes <= 200_000
    fitting = [trial for trial in choice.trials if trial.verdict in ("chosen", "slower")]
    assert choice.state.latency_ms == min(trial.state.latency_ms for trial in fitting if trial.state)


def test_of_all_that_are_tried_only_the_best_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[BuiltIndex]] = []
    most = 0

    def building(*args: Any, **settings: Any) -> BuiltIndex:
        nonlocal most
        gc.collect()
        most = max(most, sum(one() is not None for one in alive))
        built = build_faiss(*args, **settings)
        alive.append(weakref.ref(built))
        return built

    monkeypatch.setattr("cfa_index.bank.choice.build_faiss", building)
    choice = choose(IndexSpec(factory="auto", min_recall=0.9))
    assert len(alive) > 5
    assert most <= 1
    assert [trial.state for trial in choice.trials if trial.verdict == "chosen"] == [choice.state]


def test_auto_may_choose_flat() -> None:
    choice = choose(IndexSpec(factory="auto", min_recall=1.0, budget_memory_bytes=XB.nbytes))
    if choice.index is None:
        assert choice.state == IndexState(
            parameters={}, k=3, queries=0, resident_bytes=XB.nbytes, latency_ms=choice.state.latency_ms
        )


def test_nothing_fits_and_the_nearest_miss_is_named() -> None:
    with pytest.raises(BankError) as caught:
        choose(IndexSpec(factory="auto", budget_memory_bytes=1000, budget_latency_ms=1e-6))
    assert "recall@1 of 0.99, 0.000954 MiB, 1e-06 ms an image" in caught.value.expected
    assert "the nearest miss is" in caught.value.got
    assert "MiB allowed" in caught.value.got or "ms allowed" in caught.value.got


def test_the_same_choice_twice() -> None:
    first, second = choose(IndexSpec(factory="ivf-sq8")), choose(IndexSpec(factory="ivf-sq8"))
    assert first.state.parameters.keys() == second.state.parameters.keys()
    assert first.state.resident_bytes == second.state.resident_bytes


def test_flat_needs_no_queries_but_an_index_does() -> None:
    with pytest.raises(BankError, match="at least 2 good patches"):
        make_index(XB, IndexSpec(factory="ivf"), XQ[:1], k=3, patches_per_image=64, seed=0)

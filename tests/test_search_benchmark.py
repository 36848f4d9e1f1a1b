"""The pure parts of the benchmarks of the search: recall, choice, fits, tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.bank_size import (
    SizeCell,
    bank_sizes,
    enlarged,
    gamma_table,
    measure_sizes,
    size_row,
    size_table,
)
from benchmarks.search import (
    IndexRow,
    best_of,
    index_table,
    measure_indexes,
    measure_products,
    product_table,
    recall_at_1,
)
from benchmarks.search_cases import SearchCase

ROW = IndexRow(
    index="ivf",
    made="ivf (nprobe 4)",
    times_flat=5.0,
    ms=1.0,
    recall_good=0.9995,
    recall_defective=0.98,
    resident_bytes=1 << 20,
    build_s=0.1,
)


@pytest.fixture(scope="module")
def case() -> SearchCase:
    draw = np.random.default_rng(0)
    basis = draw.normal(size=(3, 16))
    parts = [(draw.normal(size=(n, 3)) @ basis).astype(np.float32) for n in (1200, 64, 50, 50)]
    return SearchCase(
        vectors=parts[0], tuning=parts[1], good=parts[2], defective=parts[3], patches_per_image=25
    )


def test_recall_counts_ties_as_found_and_farther_ones_as_missed() -> None:
    nearest = np.array([0.0, 1.0, 1.0, 4.0], dtype=np.float32)
    found = np.array([0.0, 1.000001, 1.01, 9.0], dtype=np.float32)
    assert recall_at_1(found, nearest) == 0.5


def test_the_best_index_is_the_fastest_that_finds_enough_and_never_flat() -> None:
    flat = replace(ROW, index="flat", times_flat=9.0, recall_good=1.0)
    poor = replace(ROW, index="poor", times_flat=20.0, recall_good=0.9)
    slow = replace(ROW, index="slow", times_flat=2.0)
    failed = replace(ROW, index="failed", times_flat=0.0, recall_good=1.0)
    assert best_of([flat, poor, slow, ROW, failed], 0.999) == ROW
    assert best_of([flat, poor, failed], 0.999) is None


def test_every_index_has_a_line_and_one_that_cannot_be_made_its_reason(case: SearchCase) -> None:
    rows = measure_indexes(case, ["ivf", "PQ5"], min_recall=0.9, rounds=1, seed=0)
    assert [row.index for row in rows] == ["flat", "ivf", "PQ5"]
    assert (rows[0].times_flat, rows[0].recall_good, rows[0].recall_defective) == (1.0, 1.0, 1.0)
    assert rows[1].recall_good >= 0.8
    assert rows[2].times_flat == 0
    table = index_table(rows)
    assert len(table.splitlines()) == 2 + len(rows)
    assert {line.count("|") for line in table.splitlines()} == {9}


def test_products_are_cut_out_of_the_bank_that_is_there() -> None:
    x = np.random.default_rng(0).normal(size=(800, 152)).astype(np.float32)
    rows = measure_products(x, x[:790], rounds=1)
    assert [(row["memories"], row["width"], row["queries"]) for row in rows] == [(784, 152, 784)]
    assert len(product_table(rows).splitlines()) == 3


def test_sizes_are_powers_of_ten() -> None:
    assert bank_sizes(50_000) == [1000, 10_000]
    with pytest.raises(ValueError, match="at least 1000"):
        bank_sizes(999)


def test_a_larger_bank_holds_the_given_vectors_and_near_copies() -> None:
    x = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    assert enlarged(x, 20, 0).shape == (20, 16)
    grown = enlarged(x, 200, 0)
    np.testing.assert_array_equal(grown[:50], x)
    gaps = ((grown[50:, None] - x[None]) ** 2).sum(-1).min(axis=1)
    own = ((x[:, None] - x[None]) ** 2).sum(-1) + np.diag(np.full(50, np.inf))
    assert 0 < gaps.max() < own.min()


def test_exponents_are_slopes_in_log_log() -> None:
    cells = [
        SizeCell(memories=m, ms=m**0.5, resident_bytes=4 * m, build_s=0.0, recall=1.0)
        for m in (1000, 10_000, 100_000)
    ]
    row = size_row("ivf", cells)
    assert row.time_exponent == pytest.approx(0.5)
    assert row.memory_exponent == pytest.approx(1.0)
    assert size_row("ivf", cells[:1]).time_exponent is None


def test_sizes_are_measured_and_made_up_patches_have_a_star(case: SearchCase) -> None:
    rows = measure_sizes(case, [1000, 2000], ["ivf"], min_recall=0.9, rounds=1, seed=0)
    assert [row.memories for row in rows] == [(1000, 2000)] * 2
    table = size_table(rows, real=len(case.vectors))
    assert "| flat | 1,000 |" in table
    assert "| ivf | 2,000* |" in table
    assert "flat: time ~ M^" in table


def test_throughput_by_gamma_is_a_ratio_to_the_first() -> None:
    results = [
        {"gamma": "1", "ms_per_image": {"whole inference": 100.0, "search": 60.0}},
        {"gamma": "1/2", "ms_per_image": {"whole inference": 50.0, "search": 20.0}},
    ]
    assert gamma_table(results).splitlines()[-1] == "| 1/2 | 2.00 | 3.00 | 1.9 |"

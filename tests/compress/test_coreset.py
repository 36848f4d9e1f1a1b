from __future__ import annotations

import re

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, strategies as st
from sklearn.random_projection import johnson_lindenstrauss_min_dim
from streams import random_images, stream_of

from cfa_index.compress import coreset_bank
from cfa_index.compress.coreset import project_patches, projected_width, sparse_projection
from cfa_index.errors import BankError
from cfa_index.events import Event, Notice, StageStarted, ignore


def test_without_a_projection_it_is_the_plain_algorithm_over_all_patches() -> None:
    """40 patches at eps 0.9 need 92 dimensions: four are kept as they are, in float16."""
    data = random_images(5, cells=8)
    bank = coreset_bank(stream_of(data, [1, 2, 5, 6, 9]), 12, images=5, total=40, eps=0.9, seed=0)
    rounded = (np.concatenate(data) - data[0].mean(axis=0)).astype(np.float16).astype(float)
    numbers = [[1, 2, 5, 6, 9].index(row) * 8 + cell for row, cell in zip(bank.rows, bank.cells, strict=True)]
    assert numbers == reference.greedy_k_centre(rounded, 12, first=numbers[0])
    np.testing.assert_array_equal(bank.features, np.concatenate(data)[numbers])


def test_a_projection_keeps_distances_as_far_as_johnson_and_lindenstrauss_say() -> None:
    data = random_images(6, cells=10, width=400, seed=4)
    points = project_patches(
        stream_of(data), total=60, eps=0.9, seed=0, held_bytes=1 << 20, on_image=lambda: None
    ).double()
    assert points.shape == (60, johnson_lindenstrauss_min_dim(60, eps=0.9))
    every = np.concatenate(data).astype(float)
    before = np.square(every[:, None] - every[None]).sum(axis=2)[np.triu_indices(60, 1)]
    after = (points[:, None] - points[None]).square().sum(dim=2).numpy()[np.triu_indices(60, 1)]
    assert (0.1 * before < after).all()
    assert (after < 1.9 * before).all()
    assert after.mean() == pytest.approx(before.mean(), rel=0.1)


def test_every_device_projects_as_the_cpu(device: torch.device) -> None:
    data = random_images(3, cells=10, width=400, seed=4)
    expected, found = (
        project_patches(
            stream_of(data),
            total=30,
            eps=0.9,
            seed=0,
            held_bytes=1 << 20,
            device=where,
            on_image=lambda: None,
        )
        for where in (torch.device("cpu"), device)
    )
    assert found.device.type == "cpu"  # where they all fit
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


@given(st.integers(1, 10**8), st.floats(0.05, 0.95))
def test_the_projected_width_is_scikit_learn_s(count: int, eps: float) -> None:
    assert projected_width(count, eps) == max(1, johnson_lindenstrauss_min_dim(count, eps=eps))


def test_a_projection_is_sparse_seeded_and_keeps_lengths_in_the_mean() -> None:
    matrix = sparse_projection(1600, 300, seed=0)
    assert (matrix.shape, matrix.dtype.name) == ((1600, 300), "float32")
    assert np.count_nonzero(matrix) / matrix.size == pytest.approx(1 / 40, rel=0.05)
    assert np.unique(np.abs(matrix)) == pytest.approx([0, (40 / 300) ** 0.5])
    assert (matrix.astype(float) ** 2).sum(axis=1).mean() == pytest.approx(1, rel=0.02)
    np.testing.assert_array_equal(matrix, sparse_projection(1600, 300, seed=0))
    assert not np.array_equal(matrix, sparse_projection(1600, 300, seed=1))


def test_a_common_offset_costs_no_digits() -> None:
    """Features around 1,000: float16 would keep nothing below 0.5 of them."""
    data = [image + 1000 for image in random_images(4)]
    points = project_patches(
        stream_of(data), total=36, eps=0.9, seed=0, held_bytes=1 << 20, on_image=lambda: None
    )
    moved = np.concatenate(data) - data[0].mean(axis=0)
    np.testing.assert_allclose(points.numpy(), moved, rtol=1e-3, atol=1e-3)


def test_memory_and_time_are_announced_and_every_stage_has_its_total() -> None:
    events: list[Event] = []
    coreset_bank(stream_of(random_images(5)), 9, images=5, total=45, eps=0.9, seed=0, listener=events.append)
    assert [(e.stage, e.total) for e in events if isinstance(e, StageStarted)] == [
        ("project", 5),
        ("coreset", 9),
        ("gather", 5),
    ]
    (notice,) = (event.message for event in events if isinstance(event, Notice))
    assert re.fullmatch(
        r"coreset: 45 patches held in 4 dimensions \(0 MiB\); 9 memories at \S+ ms, about \d+ s", notice
    )


def test_a_coreset_covers_better_than_chance() -> None:
    data = random_images(20, seed=3)
    bank = coreset_bank(stream_of(data), 30, images=20, total=180, eps=0.9, seed=0).features
    every = np.concatenate(data)
    drawn = every[np.random.default_rng(0).choice(180, 30, replace=False)]

    def radius(memories: np.ndarray) -> float:
        return float(np.linalg.norm(every[:, None] - memories[None], axis=2).min(axis=1).max())

    assert radius(bank) < 0.8 * radius(drawn)


def test_what_cannot_be_held_is_refused_before_it_is_held() -> None:
    with pytest.raises(BankError, match=r"the patches in 4 dimensions to fit in 0 MiB, got 45 of them"):
        coreset_bank(stream_of(random_images(5)), 9, images=5, total=45, eps=0.9, seed=0, held_bytes=359)
    assert (
        len(
            coreset_bank(
                stream_of(random_images(5)), 9, images=5, total=45, eps=0.9, seed=0, held_bytes=360
            ).rows
        )
        == 9
    )


@pytest.mark.parametrize(
    ("memories", "total", "match"),
    [
        (46, 45, "at most 45 memories"),
        (9, 44, "a stream of 44 patches, got 45 or more"),
        (9, 46, "a stream of 46 patches, got 45"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(memories: int, total: int, match: str) -> None:
    with pytest.raises(BankError, match=match):
        coreset_bank(stream_of(random_images(5)), memories, images=5, total=total, eps=0.9, seed=0)


@pytest.mark.parametrize("value", [1e6, np.nan])
def test_features_that_float16_cannot_hold_are_refused(value: float) -> None:
    data = random_images(2)
    data[1][4, 2] = value
    with pytest.raises(BankError, match="within float16's range"):
        coreset_bank(stream_of(data), 3, images=2, total=18, eps=0.9, seed=0, listener=ignore)


def test_no_images_is_an_error() -> None:
    with pytest.raises(BankError, match="at least one image"):
        coreset_bank(stream_of([]), 1, images=0, total=1, eps=0.9, seed=0)

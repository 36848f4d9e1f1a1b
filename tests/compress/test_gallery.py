from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from streams import random_images, stream_of

from cfa_index.bank import MemoryBank
from cfa_index.compress import full_bank, gather_patches, random_bank
from cfa_index.errors import BankError, OutputError


@given(st.permutations(range(27)), st.integers(0, 27))
def test_patches_are_gathered_in_the_order_of_their_numbers(order: list[int], count: int) -> None:
    data = random_images(3)
    steps: list[None] = []
    numbers = np.array(order[:count], dtype=np.int64)
    got = gather_patches(stream_of(data, [4, 7, 8]), numbers, on_image=lambda: steps.append(None))
    np.testing.assert_array_equal(got.features, np.concatenate(data)[numbers])
    assert got.rows.tolist() == [(4, 7, 8)[number // 9] for number in numbers]
    assert got.cells.tolist() == [number % 9 for number in numbers]
    assert len(steps) == 3


def test_a_random_bank_is_drawn_without_replacement_from_all_images() -> None:
    data = random_images(40)
    drawn = random_bank(stream_of(data), 180, total=360, seed=3)
    places = set(zip(drawn.rows.tolist(), drawn.cells.tolist(), strict=True))
    assert len(places) == 180
    assert len({row for row, _ in places}) > 35
    for patch, row, cell in zip(drawn.features, drawn.rows, drawn.cells, strict=True):
        np.testing.assert_array_equal(patch, data[row][cell])
    assert random_bank(stream_of(data), 180, total=360, seed=4).rows.tolist() != drawn.rows.tolist()


def test_every_patch_has_the_same_chance() -> None:
    data = random_images(2)
    counts = np.zeros(18)
    for seed in range(400):
        drawn = random_bank(stream_of(data), 6, total=18, seed=seed)
        counts[drawn.rows * 9 + drawn.cells] += 1
    expected = 400 * 6 / 18
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected * 12 / 18)).all()


def test_a_full_bank_is_every_patch() -> None:
    data = random_images(4)
    bank = full_bank(stream_of(data), total=36)
    np.testing.assert_array_equal(bank.features, np.concatenate(data))
    np.testing.assert_array_equal(random_bank(stream_of(data), 36, total=36, seed=0).features, bank.features)


def test_what_cannot_be_gathered_is_refused() -> None:
    stream = stream_of(random_images(2))
    with pytest.raises(BankError, match="at most 18 memories, one a patch, got 19"):
        random_bank(stream, 19, total=18, seed=0)
    with pytest.raises(BankError, match="a stream of 19 patches, got 18"):
        full_bank(stream, total=19)
    with pytest.raises(BankError, match="at least one image"):
        full_bank(stream_of([]), total=0)


def test_a_bank_larger_than_its_budget_is_in_a_file_that_nobody_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = random_images(6)
    numbers = np.random.default_rng(0).permutation(54)
    bank = gather_patches(stream_of(data), numbers, held_bytes=100)
    assert isinstance(bank.features, np.memmap)
    np.testing.assert_array_equal(bank.features, np.concatenate(data)[numbers])
    assert list(tmp_path.iterdir()) == []
    assert not isinstance(gather_patches(stream_of(data), numbers, held_bytes=54 * 16).features, np.memmap)
    memory = MemoryBank(bank.features, torch.device("cpu"))
    assert np.shares_memory(memory.tensor.numpy(), bank.features)
    np.save(tmp_path / "vectors.npy", memory.vectors)
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), bank.features)


def test_no_room_for_the_file_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="No space left"):
        gather_patches(stream_of(random_images(2)), np.arange(18), held_bytes=0)

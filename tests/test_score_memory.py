"""Batch scoring holds a batch, whatever the folder holds."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import batch
import pytest
from batch import Job, Peak
from made_up import Workplace

from cfa_index.images import SUFFIXES
from cfa_index.places import LocalPlace

MEBIBYTE = 1 << 20


def peak_of(place: Workplace, tmp_path: Path, images: int) -> Peak:
    """Of the parent and its processes, with everything written."""
    folder = batch.write_images(tmp_path / f"in{images}", images)
    options = ("--workers", 2, "--shard-images", 32, "--heatmaps", "--maps")
    job = Job(place=place, folder=folder, out=tmp_path / f"out{images}", options=options)
    with job.start() as running:
        peak = batch.watched(running)
        outcome = running.wait()
    assert outcome.code == 0, outcome
    return peak


@pytest.mark.slow
def test_ten_times_the_images_take_the_same_memory(scorable: Workplace, tmp_path: Path) -> None:
    few, many = (peak_of(scorable, tmp_path, images) for images in (200, 2000))
    assert many.parent < 1.1 * few.parent, (few, many)
    assert many.worker < 1.1 * few.worker, (few, many)


def walked(folder: Path) -> tuple[int, int]:
    """Entries of a walk, and the most bytes that it held."""
    tracemalloc.start()
    try:
        count = sum(1 for _ in LocalPlace(folder).walk(SUFFIXES))
        return count, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_walk_holds_one_folder_at_a_time(tmp_path: Path) -> None:
    """40 folders of 500 take what 2 of them take."""
    for number in range(40):
        folder = tmp_path / "many" / f"{number:02d}" / "deeper"
        folder.mkdir(parents=True)
        for image in range(500):
            os.mknod(folder / f"{image:06d}.png")
    (tmp_path / "few").mkdir()
    for number in range(2):
        (tmp_path / "many" / f"{number:02d}").rename(tmp_path / "few" / f"{number:02d}")
    few, many = walked(tmp_path / "few"), walked(tmp_path / "many")
    assert (few[0], many[0]) == (1000, 19_000)
    assert many[1] < 1.2 * few[1] + 20_000, (few, many)


def test_a_walk_through_one_large_folder_is_bounded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a number of names, here 1,000, sorted runs lie in files; the order is the same."""
    for image in range(20_000):
        os.mknod(tmp_path / f"{(image * 7919) % 20_000:06d}.png")
    monkeypatch.setattr("cfa_index.places.local._HELD", 1000)
    count, held = walked(tmp_path)
    assert count == 20_000
    assert held < MEBIBYTE, held
    names = [entry.path for entry in LocalPlace(tmp_path).walk(SUFFIXES)]
    assert names == sorted(names)
    assert len(set(names)) == 20_000

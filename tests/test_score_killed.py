"""Batch scoring that is killed, or whose workers are: a rerun leaves what an unbroken run leaves."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import batch
import made_up
import pyarrow.parquet as pq
import pytest
from batch import Job, Row
from made_up import Workplace

IMAGES, SHARD = 96, 4
PARTS = IMAGES // SHARD
SMALL_SHARDS: tuple[object, ...] = (
    *("--shard-images", SHARD, "--batch-size", SHARD),
    *("--workers", 2, "--gallery", 4),
)


@pytest.fixture(scope="module")
def unbroken(scorable: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A finished run over 96 images, 2 of them broken, with everything that a run can write."""
    root = tmp_path_factory.mktemp("unbroken")
    folder = batch.write_images(root / "in", IMAGES)
    (folder / "00010.png").write_bytes(b"")
    (folder / "00050.png").write_bytes(b"no image")
    job = Job(
        place=scorable, folder=folder, out=root / "out", options=(*SMALL_SHARDS, "--heatmaps", "--maps")
    )
    outcome = job.run()
    assert outcome.code == 3, outcome
    batch.assert_whole(job.out, names(job))
    return job


def names(job: Job) -> list[str]:
    return [path.name for path in job.folder.iterdir()]


def results(out: Path) -> dict[str, str]:
    """Every file of a target that two runs have in common, and its checksum."""
    found = made_up.tree(out)
    return {
        name: checksum
        for name, checksum in found.items()
        if name.startswith(("parts/", "maps/", "heatmaps/")) or name == "scores.csv"
    }


def killed_again_and_again(job: Job, whole: Job, draw: random.Random, times: int) -> None:
    """Start, kill -9 at a random moment, look at what is there; then let it finish and compare."""
    expected = {part.name: pq.read_table(part).to_pylist() for part in batch.parts(whole.out)}
    for _ in range(times):
        with job.start() as running:
            more = draw.choice([0, 0, 1, 2, 3, 5, PARTS])
            wanted = min(len(batch.parts(job.out)) + more, PARTS)
            running.until(lambda: (job.out / "lock").exists(), "a lock")
            running.until_parts(wanted)
            time.sleep(draw.uniform(0, 0.1))
            running.kill()
            running.until_gone()
        for part in batch.parts(job.out):
            assert pq.read_table(part).to_pylist() == expected[part.name]
    outcome = job.run()
    assert outcome.code == 3, outcome
    batch.assert_whole(job.out, names(job))
    assert results(job.out) == results(whole.out)
    assert set(made_up.tree(job.out)) == set(made_up.tree(whole.out))


def test_a_run_that_is_killed_is_finished_by_the_same_command(unbroken: Job, tmp_path: Path) -> None:
    seed = 1
    print("seed", seed)
    job = replace(unbroken, out=tmp_path / "out")
    killed_again_and_again(job, unbroken, random.Random(seed), 5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_fifty_random_moments(unbroken: Job, tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    job = replace(unbroken, out=tmp_path / "out")
    killed_again_and_again(job, unbroken, random.Random(100 + seed), 5)


# ---------------------------------------------------------------------------------------- workers


@contextmanager
def upon_workers(number: signal.Signals, out: Path, times: int = 1) -> Iterator[list[int]]:
    """Send a signal to a decode worker of this process now and then; gives whom it hit.

    Seven parts lie between two of them, more than are under way at a time: no image is hit twice.
    """
    hit: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        wanted = 1
        while len(hit) < times and not ended.is_set():
            if len(batch.parts(out)) >= wanted and (workers := batch.own_workers()):
                wanted += 7
                hit.append(random.Random(wanted).choice(workers))
                os.kill(hit[-1], number)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield hit
    finally:
        ended.set()
        watcher.join()


def same_but(got: list[Row], expected: list[Row], most: int) -> None:
    """At most so many rows are other than expected, and those have an error."""
    other = [row for row, whole in zip(got, expected, strict=True) if row != whole]
    assert all(row["error"] for row in other), other
    assert len(other) <= most, other


def test_a_worker_that_is_killed_costs_no_row(unbroken: Job, tmp_path: Path) -> None:
    job = replace(unbroken, out=tmp_path / "out", options=SMALL_SHARDS)
    with upon_workers(signal.SIGKILL, job.out, times=3) as hit:
        outcome = job.run()
    assert len(hit) == 3
    assert outcome.code == 3, outcome
    assert batch.assert_whole(job.out, names(job)) == batch.rows(unbroken.out)


def test_a_worker_that_hangs_costs_one_row_at_worst(unbroken: Job, tmp_path: Path) -> None:
    """It is stopped, so that it neither works nor dies, and the time limit ends it."""
    job = replace(unbroken, out=tmp_path / "out", options=(*SMALL_SHARDS, "--time-limit", 2))
    with upon_workers(signal.SIGSTOP, job.out) as hit:
        outcome = job.run()
    assert len(hit) == 1
    assert outcome.code == 3, outcome
    same_but(batch.assert_whole(job.out, names(job)), batch.rows(unbroken.out), most=1)


POISON = """
import os, signal, time
from PIL import PngImagePlugin
opened = PngImagePlugin.PngImageFile._open
def _open(self):
    head = self.fp.read(100)
    self.fp.seek(0)
    if b"it kills" in head:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"it hangs" in head:
        time.sleep(3600)
    opened(self)
PngImagePlugin.PngImageFile._open = _open
"""
"""A reader with two flaws, in every process that starts with it on its path."""


def test_files_that_kill_or_hang_their_reader_are_rows(
    unbroken: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = batch.write_images(tmp_path / "in", 24)
    signature = b"\x89PNG\r\n\x1a\n"
    (folder / "00005.png").write_bytes(signature + b"it kills")
    (folder / "00011.png").write_bytes(signature + b"it hangs")
    (tmp_path / "flawed").mkdir()
    (tmp_path / "flawed" / "sitecustomize.py").write_text(POISON)
    monkeypatch.syspath_prepend(tmp_path / "flawed")
    job = replace(unbroken, folder=folder, out=tmp_path / "out", options=(*SMALL_SHARDS, "--time-limit", 2))
    path = os.pathsep.join([str(tmp_path / "flawed"), os.environ.get("PYTHONPATH", "")])
    outcome = job.run("--json", "-", env={"PYTHONPATH": path})
    assert outcome.code == 3, outcome
    assert (outcome.document["images"], outcome.document["rejected"]) == (24, 2)
    lost = {row["uri"]: row["error"] for row in batch.assert_whole(job.out, names(job)) if row["error"]}
    assert set(lost) == {"00005.png", "00011.png"}
    assert "died" in lost["00005.png"]
    assert "2 s" in lost["00011.png"]
    good = [row["score"] for row in batch.rows(job.out) if not row["error"]]
    whole = [row["score"] for row in batch.rows(unbroken.out)[:24] if row["uri"] not in lost]
    assert all(b is None or a == pytest.approx(b, rel=1e-5) for a, b in zip(good, whole, strict=True))

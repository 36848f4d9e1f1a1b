"""Batch scoring that is asked to stop: it finishes its shard, says how to go on, and can be asked twice."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import batch
import made_up
import pyarrow.parquet as pq
import pytest
from batch import Job
from made_up import Outcome, Workplace

SHARD = 4


@pytest.fixture(scope="module")
def whole(scorable: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A finished run over images enough that one can be stopped on the way."""
    root = tmp_path_factory.mktemp("whole")
    folder = batch.write_images(root / "in", 80)
    options = ("--shard-images", SHARD, "--batch-size", SHARD, "--workers", 1, "--heatmaps", "--no-report")
    job = Job(place=scorable, folder=folder, out=root / "out", options=options)
    assert job.run().code == 0
    return job


def names(job: Job) -> list[str]:
    return [path.name for path in job.folder.iterdir()]


def assert_stopped_well(job: Job, whole: Job, stopped: Outcome, code: int) -> None:
    """The exit code, words without a traceback, whole parts; then the same command finishes."""
    assert stopped.code == code, stopped
    assert "Traceback" not in stopped.err
    assert "Process" not in stopped.err, stopped  # as in "Process SpawnProcess-1:"
    done = len(batch.parts(job.out))
    assert 1 <= done < len(batch.parts(whole.out)), done
    for part in batch.parts(job.out):
        assert pq.read_table(part).num_rows == SHARD
    assert not (job.out / "scores.csv").exists()
    outcome = job.run("--json", "-")
    assert outcome.code == 0, outcome
    assert outcome.document["resumed"] == SHARD * done
    assert batch.assert_whole(job.out, names(job)) == batch.rows(whole.out)
    assert made_up.tree(job.out / "heatmaps") == made_up.tree(whole.out / "heatmaps")
    assert (job.out / "scores.csv").read_bytes() == (whole.out / "scores.csv").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_asked_to_stop(whole: Job, tmp_path: Path, number: signal.Signals, code: int) -> None:
    """SIGINT as a terminal sends it, to every process of the group; SIGTERM as a supervisor does."""
    job = replace(whole, out=tmp_path / "out")
    with job.start() as running:
        running.until_parts(1)
        if number == signal.SIGINT:
            os.killpg(running.process.pid, number)
        else:
            running.send(number)
        stopped = running.wait()
        running.until_gone()
    assert "same command" in stopped.err
    assert not made_up.leftovers(job.out)
    assert_stopped_well(job, whole, stopped, code)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_request_stops_at_once(whole: Job, tmp_path: Path, number: signal.Signals) -> None:
    """The decoders are stopped, so that no shard can be finished and waiting would be for ever."""
    job = replace(whole, out=tmp_path / "out")
    with job.start() as running:
        running.until_parts(1)
        for worker in running.workers():
            os.kill(worker, signal.SIGSTOP)
        os.killpg(running.process.pid, number)
        batch.until(lambda: "once more stops at once" in running.said(), "the first answer")
        assert running.process.poll() is None
        os.killpg(running.process.pid, number)
        stopped = running.wait()
        running.until_gone()
    assert "it took longer" not in stopped.err
    assert_stopped_well(job, whole, stopped, 128 + number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_before_anything_is_scored(whole: Job, tmp_path: Path, number: signal.Signals) -> None:
    """As soon as the target is taken: no traceback, and the command can be given again."""
    job = replace(whole, out=tmp_path / "out")
    with job.start() as running:
        running.until(lambda: (job.out / "lock").exists(), "the lock")
        os.killpg(running.process.pid, number)
        stopped = running.wait()
        running.until_gone()
    assert stopped.code == 128 + number, stopped
    assert "Traceback" not in stopped.err
    assert job.run().code == 0
    assert batch.assert_whole(job.out, names(job)) == batch.rows(whole.out)

"""Calls in other processes: order, limits, deaths."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from cfa_index.engines import Lost, Workers, workers as workers_module
from cfa_index.errors import EngineError, SpecError


def double(value: int) -> int:
    return 2 * value


def sleepy(value: int) -> int:
    time.sleep(0.02 * (3 - value % 3))
    return value


def slow_once(value: int) -> int:
    if value == 2:
        time.sleep(60)
    return value


def deadly(value: int, folder: str = "") -> int:
    """Kills its process: always for 2, and for 5 the first time."""
    if value == 5 and not Path(folder, "died").exists():
        Path(folder, "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if value == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def dying(*arguments: object) -> None:
    os._exit(1)


def failing(value: int) -> int:
    raise KeyError(value)


def imported() -> list[str]:
    import sys

    from cfa_index.images import read_entry
    from cfa_index.workflows.score_heatmaps import Heatmaps

    assert all((read_entry, Heatmaps.draw))
    return sorted({"torch", "faiss", "zarr", "pyarrow", "scipy", "matplotlib"} & set(sys.modules))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_results_come_in_order(count: int) -> None:
    with Workers(count, time_limit_s=30) as workers:
        found = list(workers.ordered(sleepy, ((n, (n,)) for n in range(12)), window=5))
    assert found == [(n, n) for n in range(12)]


def test_no_more_is_under_way_than_the_window() -> None:
    taken = 0

    def tasks() -> Iterator[tuple[int, tuple[int]]]:
        nonlocal taken
        for n in range(100):
            taken += 1
            yield n, (n,)

    with Workers(0, time_limit_s=30) as workers:
        results = workers.ordered(double, tasks(), window=4)
        for done in range(10):
            assert next(results) == (done, 2 * done)
            assert taken <= done + 4


def test_a_call_that_takes_too_long_is_lost_alone() -> None:
    with Workers(2, time_limit_s=1.0, functions=(slow_once,)) as workers:
        found = dict(workers.ordered(slow_once, ((n, (n,)) for n in range(6)), window=6))
    assert found.pop(2) == Lost("it took longer than 1 s")
    assert found == {n: n for n in (0, 1, 3, 4, 5)}


def test_a_call_that_kills_its_process_is_tried_once_more(tmp_path: Path) -> None:
    with Workers(2, time_limit_s=30) as workers:
        found = dict(workers.ordered(deadly, ((n, (n, str(tmp_path))) for n in range(8)), window=8))
    assert found.pop(2) == Lost("the process that worked on it died")
    assert found == {n: n for n in (0, 1, 3, 4, 5, 6, 7)}


@pytest.mark.parametrize("count", [0, 1])
def test_what_a_call_raises_is_raised_here(count: int) -> None:
    with Workers(count, time_limit_s=30) as workers, pytest.raises(KeyError):
        workers.submit(failing, 1).result()


def test_leaving_ends_what_hangs() -> None:
    started = time.monotonic()
    with Workers(1, time_limit_s=300) as workers:
        future = workers.submit(slow_once, 2)
        while not future.running():
            time.sleep(0.01)
        time.sleep(0.3)
    assert time.monotonic() - started < 60
    with pytest.raises(CancelledError):
        future.result()


def test_threads_of_the_pool_end() -> None:
    with Workers(2, time_limit_s=5) as workers:
        assert workers.submit(double, 4).result() == 8
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cfa-index-worker")]


def test_a_process_that_reads_and_draws_loads_nothing_heavy() -> None:
    with Workers(1, time_limit_s=60) as workers:
        assert workers.submit(imported).result() == []


@pytest.mark.parametrize("cause", ["no process", "one that dies"])
def test_a_machine_on_which_no_process_starts_is_an_error_and_not_a_lost_call(
    monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    """A script without a main guard, or no memory to spawn: else every image would be a row with an error."""

    def refused(process: Any) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    if cause == "no process":
        monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", refused)
    else:
        monkeypatch.setattr(workers_module, "_work", dying)
    with Workers(1, time_limit_s=30) as workers, pytest.raises(EngineError, match="to start a process"):
        workers.submit(double, 1).result()


@pytest.mark.parametrize(("count", "limit"), [(-1, 1.0), (1, 0.0), (1, float("nan"))])
def test_numbers_that_cannot_be(count: int, limit: float) -> None:
    with pytest.raises(SpecError):
        Workers(count, time_limit_s=limit)

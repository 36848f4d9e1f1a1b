"""Batch scoring as tests call it: in this process, or as a real one that can be stopped, killed and watched."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import made_up
import pyarrow.parquet as pq
from made_up import Outcome, Workplace, cfa

Row = dict[str, Any]

_MARK = "CFA_INDEX_TEST_RUN"
_PATIENCE_S = 120.0
"""How long a test waits for what should happen at once on a machine that does nothing else."""
_SAME_PICTURES = 50
"""Larger folders hold the same pictures again."""


def write_images(folder: Path, count: int, *, first: int = 0) -> Path:
    """`count` images 00000.png, 00001.png, ... in a folder."""
    pictures = made_up.write_good(folder.parent / "pictures", min(count, _SAME_PICTURES))
    contents = [file.read_bytes() for file in sorted(pictures.iterdir())]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / f"{number:05d}.png").write_bytes(contents[number % len(contents)])
    return folder


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition; failing to come true is a failure of the test."""
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"no sign of this in {_PATIENCE_S:g} s: {what}"
        time.sleep(0.002)


@dataclass(frozen=True, kw_only=True)
class Job:
    """`cfa-index score` of one folder into one target."""

    place: Workplace
    folder: Path
    out: Path
    options: tuple[object, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """Of the command line."""
        common = ("-c", "weave", *self.place.model, "-o", self.out, *self.options)
        return [str(part) for part in ("score", self.folder, *common)]

    def run(self, *more: object, env: dict[str, str] | None = None) -> Outcome:
        """In this process."""
        return cfa(*self.arguments, *more, env=env)

    def start(self, *more: object, env: dict[str, str] | None = None) -> Running:
        """As a process that leads a group of its own, as a shell starts it."""
        mark = uuid.uuid4().hex
        said = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - `Running` closes them
        process = subprocess.Popen(
            [made_up.CONSOLE_SCRIPT, *self.arguments, *(str(part) for part in more)],
            env={**os.environ, **made_up.ONE_THREAD, **(env or {}), _MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=said[0],
            stderr=said[1],
            process_group=0,
        )
        return Running(process=process, out=self.out, mark=mark, files=said)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A run that was started, and whatever it started. Use as a context manager: nothing outlives it."""

    process: subprocess.Popen[bytes]
    out: Path
    mark: str
    files: tuple[IO[bytes], IO[bytes]]

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [self.process.pid, *self.children()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for file in self.files:
            file.close()

    def wait(self) -> Outcome:
        """Exit code, negative for the signal that ended it, and what it wrote."""
        code = self.process.wait(_PATIENCE_S)
        out, err = (_content(file) for file in self.files)
        return Outcome(code=code, out=out, err=err)

    def said(self) -> str:
        """What it has written to standard error so far."""
        return _content(self.files[1])

    def children(self) -> list[int]:
        """Processes that the run started, at any depth, also those that have lost their parent."""
        return [pid for pid in _marked(self.mark) if pid != self.process.pid]

    def workers(self) -> list[int]:
        """Those of them that decode."""
        return [pid for pid in self.children() if b"spawn_main" in _of_process(pid, "cmdline")]

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition while the run lives."""
        until(lambda: condition() or self.process.poll() is not None, what)
        if not condition():
            raise AssertionError(f"the run ended before {what}: {self.wait()}")

    def until_parts(self, count: int) -> None:
        """Wait until so many parts are written."""
        self.until(lambda: len(parts(self.out)) >= count, f"{count} parts")

    def send(self, number: signal.Signals) -> None:
        """A signal to the run alone."""
        self.process.send_signal(number)

    def pause(self) -> None:
        """Stop the run alone; when this returns, none of its threads goes on until SIGCONT."""
        self.send(signal.SIGSTOP)
        tasks = Path("/proc") / str(self.process.pid) / "task"

        def stopped() -> bool:
            states = [_of_process(self.process.pid, f"task/{task.name}/stat") for task in tasks.iterdir()]
            return all(state.rpartition(b")")[2].split()[:1] == [b"T"] for state in states if state)

        until(stopped, "a pause")

    def kill(self) -> None:
        """kill -9 of the run alone; what it started must notice by itself."""
        self.process.kill()
        self.process.wait()

    def until_gone(self) -> None:
        """Wait until nothing that the run started is left."""
        until(lambda: not _marked(self.mark), "the end of all processes")


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The most bytes that the run itself, and that any one of its decoders, has held.

    Attributes:
        libraries: of those that only the run itself needs, which a decoder had loaded.
    """

    parent: int
    worker: int
    libraries: frozenset[str]


def watched(running: Running) -> Peak:
    """Watch a run until it ends."""
    parent = worker = 0
    libraries: set[str] = set()
    while running.process.poll() is None:
        parent = max(parent, resident_bytes(running.process.pid))
        for pid in running.workers():
            worker = max(worker, resident_bytes(pid))
            loaded = _of_process(pid, "maps")
            libraries |= {name for name in ("torch", "faiss") if f"/{name}/".encode() in loaded}
        time.sleep(0.05)
    return Peak(parent=parent, worker=worker, libraries=frozenset(libraries))


def _content(file: IO[bytes]) -> str:
    """Of a file that a process may still write to; its position is shared and stays."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()


def _marked(mark: str) -> list[int]:
    """Living processes whose environment holds the mark."""
    wanted = f"{_MARK}={mark}".encode()
    pids = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    return [pid for pid in pids if wanted in _of_process(pid, "environ")]


def _of_process(pid: int, name: str) -> bytes:
    try:
        return (Path("/proc") / str(pid) / name).read_bytes()
    except OSError:  # it has ended, or is another user's
        return b""


def resident_bytes(pid: int) -> int:
    """The most that a process has held so far (VmHWM); 0 when it has ended."""
    for line in _of_process(pid, "status").splitlines():
        if line.startswith(b"VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def parts(out: Path) -> list[Path]:
    """Finished parts of a target, in order."""
    return sorted((out / "parts").glob("part-*.parquet"))


def rows(out: Path) -> list[Row]:
    """Rows of all parts, in order."""
    return [row for part in parts(out) for row in pq.read_table(part).to_pylist()]


def table(out: Path) -> list[dict[str, str]]:
    """Rows of scores.csv."""
    with (out / "scores.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def listed(out: Path) -> list[Row]:
    """Rows of the listing, in order."""
    files = sorted((out / "listing").glob("part-*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def assert_whole(out: Path, names: Iterable[str | bytes]) -> list[Row]:
    """A finished target: one row an image, one line of the CSV a row, nothing temporary; gives the rows."""
    found, expected = listed(out), sorted(os.fsencode(name) for name in names)
    assert [row["path"] for row in found] == expected
    scored = rows(out)
    assert [row["image_id"] for row in scored] == list(range(len(expected)))
    assert [row["uri"] for row in scored] == [row["uri"] for row in found]
    for row in scored:
        assert (row["score"] is None) == bool(row["error"]), row
    assert [int(line["image_id"]) for line in table(out)] == list(range(len(expected)))
    assert json.loads((out / "listing" / "ended.json").read_text())["images"] == len(expected)
    assert not made_up.leftovers(out)
    return scored


def paths(folder: Path) -> Iterator[str]:
    """Everything below a folder, whatever it is, its links not followed; names alone."""
    for at, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield str((Path(at) / name).relative_to(folder))


def own_workers() -> list[int]:
    """Decode workers of this very process."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that has ended
            found += map(int, (task / "children").read_text().split())
    return [pid for pid in found if b"spawn_main" in _of_process(pid, "cmdline")]

"""Functions run in other processes, each within a time limit; results in order, a bounded number under way.

Processes and not threads, since a file may hang or break its reader, and a process can be ended. They are
spawned: FAISS and torch can hang after a fork. So they need a main module that can be imported; with no
workers, threads of this process do the work, and nothing can be ended.

Each process has a pipe and a thread of this process of its own, so that one that is killed, at whatever moment,
leaves no lock behind that others wait for. (A pool that shares a pipe, such as pebble's, does.)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from cfa_index.errors import EngineError, SpecError

_THREADS = 2
"""That work where there are no processes."""
_TRIES = 2
"""A process may die of something else than its file, such as a system that is short of memory."""
_STARTS = 3
"""The same at its start."""
_START_S = 60.0
_DEATH_S = 5.0
"""That a killed process is waited for: one that hangs in a read of the kernel's dies later."""

Key = TypeVar("Key")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lost:
    """What became of a call that has no result; `reason` is for a person."""

    reason: str


class Workers:
    """Processes that call functions; use as a context manager.

    Args:
        count: processes; 0 for threads of this one.
        time_limit_s: seconds that a process has for a call; one that takes longer is ended, and the call lost.
        functions: that will be called: what they import is loaded before the clock of a call starts.

    Raises:
        SpecError: a negative count, or a limit that is not above 0.
    """

    def __init__(
        self, count: int, *, time_limit_s: float, functions: Sequence[Callable[..., Any]] = ()
    ) -> None:
        if count < 0 or not time_limit_s > 0:
            raise SpecError(
                expected="workers of 0 or more and a time limit above 0",
                got=f"{count} workers and {time_limit_s!r} s",
                remedy="give other values for them",
            )
        self._threads = ThreadPoolExecutor(count or _THREADS, thread_name_prefix="cfa-index-worker")
        self._processes = [_Process(time_limit_s, functions) for _ in range(count)]
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self._threads.shutdown(wait=True)
        for process in self._processes:
            process.close()

    def end(self) -> None:
        """End every process at once, for good: calls that have no result yet raise CancelledError."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.end()

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result | Lost]:
        """Call a function of a module; it, its arguments and its result can be pickled."""
        if self._processes:
            return self._threads.submit(self._call, function, arguments)
        return self._threads.submit(function, *arguments)

    def ordered(
        self, function: Callable[..., Result], tasks: Iterable[tuple[Key, tuple[Any, ...]]], *, window: int
    ) -> Iterator[tuple[Key, Result | Lost]]:
        """Call a function for each task, and give the results in the order of the tasks.

        Args:
            function: as in `submit`.
            tasks: a key and the arguments of each; taken when there is room.
            window: calls under way, or waiting for their turn to be given, at most.
        """
        waiting: deque[tuple[Key, Future[Result | Lost]]] = deque()
        for key, arguments in tasks:
            waiting.append((key, self.submit(function, *arguments)))
            if len(waiting) >= window:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()

    def _call(self, function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result | Lost:
        process = self._idle.get()
        try:
            return process.call(function, arguments)
        finally:
            self._idle.put(process)


class _Process:
    """A spawned process and the pipe to it; started when it is first needed, and again after its death."""

    def __init__(self, time_limit_s: float, functions: Sequence[Callable[..., Any]]) -> None:
        self._limit = time_limit_s
        self._functions = tuple(functions)
        self._pipe: Connection[Any, Any] | None = None
        self._process: Any = None
        self._ended = False
        self._lock = threading.Lock()

    def call(self, function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result | Lost:
        """Raises what the function raised, and EngineError where no process can be started."""
        for _ in range(_TRIES):
            pipe = self._started()
            # Sending and receiving may hang, too, when a process stands still in the middle of a large message.
            late = threading.Event()
            deadline = threading.Timer(self._limit, self._overdue, [late])
            deadline.start()
            try:
                pipe.send((function, arguments))
                error, result = cast("tuple[Exception | None, Result]", pipe.recv())
            except (EOFError, OSError):  # of the pipe to a process that has died
                self.close()
                if late.is_set():
                    return Lost(f"it took longer than {self._limit:g} s")
                continue
            finally:
                deadline.cancel()
            if error is not None:
                raise error
            return result
        self._require_going()
        return Lost("the process that worked on it died")

    def _overdue(self, late: threading.Event) -> None:
        late.set()
        self._process.kill()

    def end(self) -> None:
        """For good; a thread that waits for a result sees the pipe end."""
        with self._lock:
            self._ended = True
            if self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """Stop it and take its pipe away; nobody may be waiting for a result."""
        with self._lock:
            if self._pipe is not None:
                if self._process is not None:
                    self._process.kill()
                    self._process.join(_DEATH_S)
                self._pipe.close()
                self._pipe = None

    def _started(self) -> Connection[Any, Any]:
        """The pipe to the process. Raises EngineError, and CancelledError once it has ended for good."""
        problem = ""
        for _ in range(_STARTS):
            with self._lock:
                self._require_going()
                if self._pipe is None:
                    problem = self._start()
                if self._pipe is not None and not problem:
                    return self._pipe
            self.close()
        self._require_going()
        # The fault of no file: else every image would be a row with an error.
        raise EngineError(
            expected="to start a process that reads images",
            got=problem,
            remedy="free some memory, or take no workers; a script needs if __name__ == '__main__'",
        )

    def _require_going(self) -> None:
        """What died may have been ended. Raises CancelledError."""
        if self._ended:
            raise CancelledError

    def _start(self) -> str:
        """What went wrong, or nothing."""
        context = multiprocessing.get_context("spawn")
        try:
            self._pipe, theirs = context.Pipe()
            with theirs:
                process = context.Process(target=_work, args=(theirs, self._functions), daemon=True)
                process.start()
            self._process = process
            if not self._pipe.poll(_START_S):
                return f"none within {_START_S:g} s"
            self._pipe.recv()
        except EOFError:
            return "one that died at once"
        except OSError as error:
            return error.strerror or str(error)
        return ""


def _work(pipe: Connection[Any, Any], functions: tuple[Callable[..., Any], ...]) -> None:
    """The other side: calls what comes, until the pipe closes. With `functions` came the modules they are in."""
    del functions
    # A terminal's Ctrl-C and a supervisor's SIGTERM reach the whole group; a worker's end is its parent's affair.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):
        pipe.send("ready")
        while True:
            function, arguments = pipe.recv()
            answer: tuple[Exception | None, Any]
            try:
                answer = (None, function(*arguments))
            except Exception as error:
                answer = (error, None)
            pipe.send(answer)


def _die_with_parent() -> None:
    """Also in the middle of a call that hangs."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is a child"
    parent.join()
    os._exit(1)

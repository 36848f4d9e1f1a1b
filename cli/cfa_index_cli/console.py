"""What a person sees on standard error, and the JSON that a program reads."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from cfa_index import (
    Event,
    Listener,
    Notice,
    StageAdvanced,
    StageEnded,
    StageStarted,
    StageTotal,
    json_text,
    write_json,
    writing,
)
from cfa_index.errors import OutputError

_PLAIN_EVERY_SECONDS = 10.0


class _Figures(ProgressColumn):
    """Rate in images a second, and the figures of the last step."""

    def render(self, task: Task) -> Text:
        figures: Mapping[str, float] = task.fields.get("figures", {})
        parts = []
        rate = task.fields.get("rate")
        if rate:
            parts.append(f"{rate:.1f} {task.fields['unit']}/s")
        parts += _figures(figures)
        if "epoch" in figures:
            parts.insert(0, f"epoch {figures['epoch']:.0f}")
        return Text("  ".join(parts), style="dim")


class _TimeLeft(ProgressColumn):
    """Of the rate so far, which what an earlier run has done has no part in."""

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        return Text("-:--:--" if left is None else str(timedelta(seconds=round(left))), style="cyan")


class _Display:
    """Shows events: bars on a terminal, a plain line now and then elsewhere.

    Args:
        console: to write to.
        level: `info` shows all; `warning` notices only, `error` nothing, `debug` a line for every event.
    """

    def __init__(self, console: Console, level: str = "info") -> None:
        self.console = console
        self._level = level
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._total: int | None = None
        self._unit, self._done, self._new, self._images = "", 0, 0, 0.0
        self._started = self._shown = 0.0
        self.seconds: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        if self._level == "debug":
            line = f"{type(event).__name__} {asdict(event)}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        if isinstance(event, StageStarted):
            self._start(event)
        elif isinstance(event, StageAdvanced):
            self._advance(event)
        elif isinstance(event, StageTotal):
            self._total = event.total
            if self._progress is not None and self._task is not None:
                self._progress.update(self._task, total=event.total)
        elif isinstance(event, StageEnded):
            self._end(event)
        elif isinstance(event, Notice) and self._level != "error":
            self.console.print(Text(event.message, style="yellow"), soft_wrap=True)

    def close(self) -> None:
        """Take the bar away, also when a command fails."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _start(self, event: StageStarted) -> None:
        self.close()  # of a stage that failed: rich takes one bar at a time
        self._unit, self._total = event.unit, event.total
        self._done, self._new, self._images = 0, 0, 0.0
        self._started = self._shown = time.monotonic()
        if self.console.is_terminal and event.total != 0 and self._level == "info":
            self._progress = Progress(
                TextColumn("{task.description:>12}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                _TimeLeft(),
                _Figures(),
                console=self.console,
                transient=True,
            )
            self._task = self._progress.add_task(
                event.stage, total=event.total, unit=_rate_unit(event.unit), figures={}, rate=0.0, left=None
            )
            self._progress.start()

    def _advance(self, event: StageAdvanced) -> None:
        self._done += event.steps
        images = event.fields.get("images", event.steps)
        self._images += images
        self._new += event.steps if images else 0  # none where an earlier run did them
        now = time.monotonic()
        rate = self._images / max(now - self._started, 1e-9)
        # Steps an image, of those of this run: an epoch's are fewer.
        left = None
        if self._total is not None and self._new:
            left = (self._total - self._done) * (now - self._started) / self._new
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=event.steps, figures=event.fields, rate=rate, left=left)
        elif self._level in ("info", "debug") and now - self._shown > _PLAIN_EVERY_SECONDS:
            self._shown = now
            total = f"/{self._total}" if self._total else ""
            figures = "".join(f", {figure}" for figure in _figures(event.fields))
            eta = f", {left:.0f} s left" if left is not None else ""
            self.console.print(
                f"{event.stage}: {self._done}{total} {self._unit}, {rate:.1f} {_rate_unit(self._unit)}/s{eta}{figures}",
                soft_wrap=True,
                highlight=False,
            )

    def _end(self, event: StageEnded) -> None:
        self.close()
        self.seconds[event.stage] = self.seconds.get(event.stage, 0.0) + event.seconds
        if self._done and self._level in ("info", "debug"):
            rate = f" ({self._images / max(event.seconds, 1e-9):.1f} {_rate_unit(self._unit)}/s)"
            self.console.print(
                f"{event.stage:>12}: {self._done} {self._unit} in {event.seconds:.1f} s{rate if self._new else ''}",
                highlight=False,
            )


def _figures(fields: Mapping[str, float]) -> list[str]:
    """Figures of a step for a person; those named wait_x are shares of the time."""
    return [
        f"waits to {name.removeprefix('wait_')} {value:.0%}"
        if name.startswith("wait_")
        else f"{name} {value:.4g}"
        for name, value in fields.items()
        if name not in ("images", "epoch")
    ]


def _rate_unit(unit: str) -> str:
    return "images" if unit == "steps" else unit


class Session:
    """What a command writes to: the listener for the library, and the person's console."""

    def __init__(self, listener: Listener, console: Console, seconds: Mapping[str, float]) -> None:
        self.listener = listener
        self.console = console
        self.seconds = seconds

    def say(self, line: str) -> None:
        """One line for the person, on standard error."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def table(
        self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False
    ) -> None:
        """A small table for the person, on standard error; all but the first column to the right, unless `words`."""
        table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
        for number, name in enumerate(header):
            table.add_column(name, justify="left" if words or number == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table)


@contextmanager
def session(events: Path | None, level: str | None = None) -> Iterator[Session]:
    """A console and a listener for the body of a command; `events` also gets a line of JSON an event.

    `level` is error, warning, info or debug; without one, $CFA_INDEX_LOG_LEVEL decides.
    """
    console = Console(stderr=True)
    display = _Display(console, level or os.environ.get("CFA_INDEX_LOG_LEVEL", "info"))
    listener: Listener = display
    handle = None
    if events is not None:
        try:
            handle = events.open("a", buffering=1)
        except OSError as error:
            raise OutputError(
                expected=f"to append to {events}",
                got=error.strerror or str(error),
                remedy="give --events another path",
            ) from error
        listener = _both(display, events, handle.write)
    try:
        yield Session(listener, console, display.seconds)
    finally:
        display.close()
        if handle is not None:
            with suppress(OSError):  # of a full disk: the line that failed has said so
                handle.close()


def _both(display: Listener, events: Path, write: Callable[[str], int]) -> Listener:
    def listen(event: Event) -> None:
        display(event)
        line = {"event": type(event).__name__, "time": time.time(), **asdict(event)}
        with writing(events):
            write(json.dumps(line) + "\n")

    return listen


def write_document(target: Path | None, document: Mapping[str, Any]) -> None:
    """The result of a command as JSON: nowhere, on standard output, or into a file."""
    if target is None:
        return
    if str(target) == "-":
        try:
            sys.stdout.write(json_text(document))
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            # What is still in the buffer would fail again when Python ends, with a traceback.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise OutputError(
                expected="to write standard output",
                got=error.strerror or str(error),
                remedy="give --json a file on another disk",
            ) from error
    else:
        write_json(target, document)


def percent(value: float | None) -> str:
    """A fraction for a person, in percent."""
    return "-" if value is None else f"{100 * value:.2f}%"

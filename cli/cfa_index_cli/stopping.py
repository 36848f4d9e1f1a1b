"""Signals that ask a long command to stop where nothing is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether one came; `signal` is which, 0 for none."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal != 0

    @property
    def exit_code(self) -> int:
        """Of a process that a signal ended, as a shell gives it."""
        return 128 + (self.signal or signal.SIGINT)


@contextmanager
def stopping() -> Iterator[Stop]:
    """In the body the first SIGINT or SIGTERM only asks to stop, and says so; another one interrupts.

    Raises:
        KeyboardInterrupt: a second signal came.
    """
    stop = Stop()

    def asked(number: int, frame: FrameType | None) -> None:
        del frame
        again, stop.signal = stop.signal != 0, number
        if again:
            raise KeyboardInterrupt
        # Not through a console: the signal may have come in the middle of its writing.
        os.write(2, b"stopping as soon as nothing is lost; once more stops at once\n")

    before = {number: signal.signal(number, asked) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

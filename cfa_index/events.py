"""What a running job tells its caller: stages, steps and notices. Whoever listens decides how to show them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class StageStarted:
    """A stage begins; `total` steps of `unit` are expected (None: not known)."""

    stage: str
    total: int | None
    unit: str


@dataclass(frozen=True, kw_only=True)
class StageAdvanced:
    """`steps` more are done; `fields` carries figures worth showing, such as L_att."""

    stage: str
    steps: int
    fields: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageTotal:
    """How many steps a stage has in all is known now."""

    stage: str
    total: int


@dataclass(frozen=True, kw_only=True)
class StageEnded:
    """A stage is done after `seconds`."""

    stage: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One line that a person should see, such as an image that was left out."""

    message: str


Event = StageStarted | StageAdvanced | StageTotal | StageEnded | Notice
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener that shows nothing."""
    del event


@contextmanager
def stage(listener: Listener, name: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    """Announce a stage around the body; gives `advance(steps, **figures)` to call inside it."""
    listener(StageStarted(stage=name, total=total, unit=unit))
    started = time.perf_counter()

    def advance(steps: int = 1, **figures: float) -> None:
        listener(StageAdvanced(stage=name, steps=steps, fields=figures))

    yield advance
    listener(StageEnded(stage=name, seconds=time.perf_counter() - started))

"""Runs the shards of a job in this process, in order, skipping those that are done."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

Shard = TypeVar("Shard")
Result = TypeVar("Result")


def run_shards(
    shards: Iterable[Shard],
    *,
    finished: Callable[[Shard], Result | None],
    work: Callable[[Shard], Result],
    collect: Callable[[Result], None],
) -> None:
    """Call `work` for each shard that is not finished, and `collect` for the result of every shard.

    Args:
        shards: may be endless; taken one at a time.
        finished: the result that an earlier run left, or None.
        work: does a shard whole, or raises and leaves nothing.
        collect: called in order.
    """
    for shard in shards:
        result = finished(shard)
        collect(work(shard) if result is None else result)

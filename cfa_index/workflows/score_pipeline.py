"""Shards on their way from the list to their parts: read ahead by workers, scored here, written behind.

    list --> workers read --> score_images --> workers draw --> one thread writes

What is under way at any time is a few batches of images and at most three shards of rows (and maps, if they are
kept).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from typing import Any, Protocol

from cfa_index.bundle import ModelBundle
from cfa_index.engines import Lost, Workers
from cfa_index.errors import ImageError
from cfa_index.events import Listener, Notice
from cfa_index.images import CardDecoder, Jpeg, Views, read_entry, read_for_card
from cfa_index.workflows.score_listing import Shard, uri_of
from cfa_index.workflows.score_maps import ShardMaps
from cfa_index.workflows.score_parts import Row, standing, to_score
from cfa_index.workflows.score_rows import Queued, Read, Scored, queue_batches, results_of
from cfa_index.workflows.score_run import ScoreRun

_BATCHES_AHEAD = 3
_TILED_AHEAD = 3
_SHARDS_BEHIND = 2


class Advance(Protocol):
    """Who is told of progress."""

    def __call__(self, images: int, *, errors: int, resumed: bool = False) -> None:
        """`images` more are done, `errors` of them without a score; `resumed` are an earlier run's."""


@dataclass(kw_only=True)
class Waits:
    """Seconds that scoring stood still."""

    read: float = 0.0
    write: float = 0.0

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the body's seconds to one of them."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - started)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """What is to be done of a shard.

    Attributes:
        shard: it.
        rows: that an earlier run left, None where there is none.
        positions: of the images to score.
    """

    shard: Shard
    rows: list[Row | None]
    positions: list[int]


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Scores the shards that are not done.

    Attributes:
        bundle: the model.
        run: what it works for: where images, rows, maps and heatmaps lie, and the settings.
        workers: that read and draw.
        retry_errors: whether images that had an error are scored again.
        stop: asked before each shard.
        advance: told of images that are done.
        listener: told of what went wrong.
        waits: counted here.
    """

    bundle: ModelBundle
    run: ScoreRun
    workers: Workers
    retry_errors: bool
    stop: Callable[[], bool]
    advance: Advance
    listener: Listener
    waits: Waits = field(default_factory=Waits)

    def score(self, shards: Iterable[Shard]) -> None:
        """Score them.

        Raises:
            DatasetError: the source is missing, or cannot be listed.
            OutputError: something cannot be written; the shards that are written stay.
        """
        read = read_entry if self.run.decode == "host" else read_for_card
        reads = self.workers.ordered(read, self._tasks(shards), window=self._window)
        writing: deque[Future[None]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="cfa-index-write") as writer:
            try:
                results = self._scored(reads)
                for plan, first in results:
                    rest = islice(results, len(plan.positions) - 1)
                    rows, maps, drawn = self._take(plan, chain([first], (scored for _, scored in rest)))
                    writing.append(writer.submit(self._write, plan.shard, rows, maps, drawn))
                    with self.waits.timed("write"):
                        while len(writing) > _SHARDS_BEHIND or (writing and writing[0].done()):
                            writing.popleft().result()
                with self.waits.timed("write"):
                    for future in writing:
                        future.result()
            except BaseException:  # a shard that waits for its heatmaps would wait as long as a file may take
                self.workers.end()
                raise

    def _scored(self, reads: Iterator[tuple[Any, Any]]) -> Iterator[tuple[_Plan, Scored]]:
        """Each image with the plan of its shard; the first batch of a shard is queued before the last is read."""
        scorer, run = self.bundle.scorer, self.run
        keep_maps = run.maps is not None or run.heatmaps is not None
        decoder = None if run.decode == "host" else CardDecoder(run.features, scorer.bank.device)

        def queued() -> Iterator[tuple[_Plan, Queued]]:
            for plan, group in groupby(self._timed(reads), key=lambda read: read[0][0]):
                found = (_pixels(result) for _, result in group)
                for batch in queue_batches(
                    scorer,
                    found,
                    features=run.features,
                    batch_size=run.batch_size,
                    keep_maps=keep_maps,
                    decoder=decoder,
                ):
                    yield plan, batch

        for plan, group in groupby(scorer.downloads.behind(queued()), key=lambda one: one[0]):
            batches = (batch for _, batch in group)
            for scored in results_of(batches, features=run.features, keep_maps=keep_maps):
                yield plan, scored

    @property
    def _window(self) -> int:
        """Images read ahead, and heatmaps behind: a few batches, or a few images where one is many views."""
        return _TILED_AHEAD if self.run.features.tile_px else _BATCHES_AHEAD * self.run.batch_size

    def _tasks(self, shards: Iterable[Shard]) -> Iterator[tuple[tuple[_Plan, int], tuple[Any, ...]]]:
        run = self.run
        for shard in shards:
            if self.stop():
                return
            plan = self._plan(shard)
            if plan.positions:
                self.run.source.require()  # or a share that has gone would be a million errors
            for position in plan.positions:
                entry = shard.entries[position]
                yield (plan, position), (run.source, entry, run.features, run.max_pixels)

    def _plan(self, shard: Shard) -> _Plan:
        rows = self.run.parts.read(shard)
        positions = to_score(rows, retry_errors=self.retry_errors)
        kept = standing(rows, positions)
        if kept:
            self.advance(len(kept), errors=sum(row["error"] is not None for row in kept), resumed=True)
        return _Plan(shard=shard, rows=rows, positions=positions)

    def _timed(self, reads: Iterator[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        while True:
            with self.waits.timed("read"):
                read = next(reads, None)
            if read is None:
                return
            yield read

    def _take(
        self, plan: _Plan, scored: Iterator[Scored]
    ) -> tuple[list[Row], ShardMaps | None, list[Future[ImageError | Lost | None]]]:
        """Rows and maps of a whole shard, and its heatmaps under way."""
        run, shard = self.run, plan.shard
        rows = dict(enumerate(plan.rows))
        again = len(plan.positions) < len(rows)
        maps = run.maps.of(shard, again=again) if run.maps is not None else None
        drawn: list[Future[ImageError | Lost | None]] = []
        failed = 0
        for position, result in zip(plan.positions, scored, strict=True):
            entry, image_id = shard.entries[position], shard.first_id + position
            rows[position] = result.row(image_id, uri_of(entry.path), run.limit, run.model_sha)
            if result.error is not None:
                self.listener(Notice(message=f"left out: {result.error}"))
            if maps is not None:
                maps.add(position, result.anomaly_map)
            if run.heatmaps is not None and result.anomaly_map is not None:
                with self.waits.timed("write"):
                    _wait_for_room(drawn, self._window)
                drawn.append(
                    self.workers.submit(
                        run.heatmaps.draw, image_id, entry, result.anomaly_map.copy(), result.frame
                    )
                )
            elif run.heatmaps is not None:
                run.heatmaps.remove(image_id, entry)
            failed += result.error is not None
            self.advance(1, errors=int(result.error is not None))
        if 2 * failed > len(plan.positions):
            run.source.require()  # it may have gone in the middle
        return [row for row in rows.values() if row is not None], maps, drawn

    def _write(
        self,
        shard: Shard,
        rows: list[Row],
        maps: ShardMaps | None,
        drawn: list[Future[ImageError | Lost | None]],
    ) -> None:
        """Last of all the rows: a shard with rows is done."""
        for future in drawn:
            problem = future.result()
            if problem is not None:  # it was readable a moment ago; its score stands
                why = problem.reason if isinstance(problem, Lost) else str(problem)
                self.listener(Notice(message=f"no heatmap: {why}"))
        if maps is not None:
            maps.write()
        self.run.parts.write(shard, rows)


def _pixels(result: Views | Jpeg | ImageError | Lost | str) -> Read:
    if isinstance(result, Lost):
        return f"expected to read it, got none: {result.reason}; look at the file, or raise --time-limit"
    return str(result) if isinstance(result, ImageError) else result


def _wait_for_room(drawn: list[Future[Any]], window: int) -> None:
    if len(drawn) >= window:
        drawn[-window].result()

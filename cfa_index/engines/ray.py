"""Numbered pieces of work on a Ray cluster: fetched by tasks, worked on by a pool of actors, saved by tasks.

    range --fetch, tasks--> payloads --work, actors--> results --save, tasks--> the target

Ray Data streams the pieces, holds back what the next step cannot take, and does again what a worker that died had
under way. Saving a piece twice must leave what saving it once does: Ray's checkpoint notes a piece after it has
been saved, so that a run that is killed in between saves it again.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from cfa_index.engines.ray_cluster import ENVIRONMENT, RayCluster, connected, environment, last_line, quiet
from cfa_index.errors import CfaIndexError, EngineError

# A process that only reads images imports this package, too, and shall not load pyarrow for it.
if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data.checkpoint import CheckpointConfig

Payload: TypeAlias = Mapping[str, bytes]
"""What a fetched piece is, and what it becomes: named bytes, together below 2 GiB."""
Result = TypeVar("Result")

Worker: TypeAlias = Callable[[int, Payload], Payload]

_ID = "id"
_POLL_S = 0.2
_TRIES = 3
"""Of a fetch whose process died. It is also what keeps Ray from fetching inside the actors: it makes one step of two
that are asked for alike."""


def run_on_ray(
    pieces: int,
    *,
    cluster: RayCluster,
    fetch: Callable[[int], Payload],
    make_worker: Callable[[], Worker],
    save: Callable[[int, Payload], Any],
    checkpoint: str,
    done: Sequence[int],
    saved: Callable[[Any], None],
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Fetch, work on and save the pieces 0 to `pieces` - 1, in any order; those in `done` are left out.

    The functions run in other processes, perhaps on other machines: they can be pickled, and import there what
    they need. What one of them raises ends the run.

    Args:
        pieces: how many there are.
        cluster: where they run.
        fetch: called in tasks of a CPU each.
        make_worker: called once in each actor; what it gives is called with each piece.
        save: called in tasks; saving a piece twice must leave what saving it once does.
        checkpoint: path or URI of a folder for Ray's checkpoint, which every machine can reach; it holds the
            numbers of the pieces that are saved, is written anew from `done`, and is deleted at the end.
        done: numbers of the pieces that are saved already.
        saved: called in this process with what `save` gave, once a piece, some time after it has been saved.
        stop: asked several times a second; when it says so, the run ends with the next piece that is saved, and the
            others under way are lost.

    Returns:
        Whether all pieces are saved; False when it was stopped.

    Raises:
        CfaIndexError: what `fetch`, a worker or `save` raised.
        EngineError: Ray failed.
    """
    if len(done) >= pieces:
        return True
    failures: list[BaseException] = []
    known: set[int] = set()
    asked = False
    with (
        environment(ENVIRONMENT),
        connected(cluster, cpus=cluster.actors_cpus, gpus=cluster.actors_gpus),
    ):
        import ray

        progress = _progress_actor()

        def run() -> None:
            try:
                _stream(pieces, cluster, fetch, make_worker, save, checkpoint, done, progress)
            except BaseException as error:
                failures.append(error)

        # A thread of its own, so that this one can be interrupted.
        plan = threading.Thread(target=run, name="cfa-index-ray", daemon=True)
        plan.start()
        is_last = False
        while not is_last:
            plan.join(_POLL_S)
            is_last = not plan.is_alive()  # asked before the last are taken, or some would be left
            try:
                told_of = ray.get(progress.take.remote())
            except ray.exceptions.RayError as error:
                raise _as_line(failures[0] if failures else error) from None
            for number, told in told_of:
                if number not in known:
                    known.add(number)
                    saved(told)
            if stop() and not asked:
                asked = True
                progress.end.remote()
    if failures and not asked:
        raise _as_line(failures[0]) from None
    return not failures


def each_on_ray(
    names: Sequence[str], work: Callable[[str], Result], *, cluster: RayCluster
) -> Iterator[tuple[str, Result]]:
    """Call a function for each name, as many at a time as the cluster has room for.

    Args:
        names: of the calls.
        work: can be pickled, as can its result; raises nothing that the others should survive.
        cluster: `cpus_per_actor` and `gpus_per_actor` are what a call takes.

    Returns:
        An iterator of names and results, as they come.

    Raises:
        CfaIndexError: what `work` raised.
        EngineError: Ray failed.
    """
    with connected(cluster, cpus=cluster.cpus_per_actor, gpus=cluster.gpus_per_actor):
        import ray

        def call(name: str) -> Result:  # Ray takes functions only
            return work(name)

        task = ray.remote(call).options(
            num_cpus=cluster.cpus_per_actor, num_gpus=cluster.gpus_per_actor, max_retries=1
        )
        waiting = {task.remote(name): name for name in names}
        while waiting:
            (first, *_), _ = ray.wait(list(waiting), num_returns=1)
            name = waiting.pop(first)
            try:
                result = ray.get(first)
            except ray.exceptions.RayError as error:
                raise _as_line(error) from None
            yield name, result


def _stream(
    pieces: int,
    cluster: RayCluster,
    fetch: Callable[[int], Payload],
    make_worker: Callable[[], Worker],
    save: Callable[[int, Payload], Any],
    checkpoint: str,
    done: Sequence[int],
    progress: Any,
) -> None:
    """The plan and its execution."""
    import ray
    from ray.data.checkpoint import CheckpointConfig

    config = CheckpointConfig(id_column=_ID, checkpoint_path=checkpoint, delete_checkpoint_on_success=True)
    _begin_checkpoint(config, done)
    with _plan_context(config):
        actor: Any = _Actor  # Ray makes one in each actor; its types know functions only
        (
            ray.data.range(pieces, override_num_blocks=pieces)
            .map(_Fetch(fetch), num_cpus=1, max_retries=_TRIES)
            .map(
                actor,
                fn_constructor_args=(make_worker,),
                compute=ray.data.ActorPoolStrategy(size=cluster.actors),
                num_cpus=cluster.cpus_per_actor,
                num_gpus=cluster.gpus_per_actor,
            )
            .write_datasink(_sink(save, progress))
        )


@contextmanager
def _plan_context(config: CheckpointConfig) -> Iterator[None]:
    """Ray's settings for the plan of the body, without its warnings.

    They are of Ray's own deprecated settings, and that a piece may be saved twice (see the top of this module).
    """
    from ray.data import DataContext

    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = DataContext.get_current().copy()
        context.checkpoint_config = config
        context.enable_progress_bars = False
        with DataContext.current(context):
            yield


def _begin_checkpoint(config: CheckpointConfig, done: Sequence[int]) -> None:
    """A folder that says what is done, and no more: an earlier run's may name pieces that have gone since."""
    folder = config.checkpoint_path.partition("://")[2] or config.checkpoint_path
    files = config.filesystem
    with suppress(FileNotFoundError):
        files.delete_dir(folder)
    files.create_dir(folder, recursive=True)
    if done:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({_ID: pa.array(sorted(done), pa.int64())})
        pq.write_table(table, f"{folder}/done.parquet", filesystem=files)


class _Fetch:
    """A row's number to the row of its payload."""

    def __init__(self, fetch: Callable[[int], Payload]) -> None:
        self._fetch = fetch

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        number = int(row[_ID])
        return {_ID: number, **self._fetch(number)}


class _Actor:
    """The row of a payload to that of its result."""

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self._work = make_worker()

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        number = int(row[_ID])
        return {_ID: number, **self._work(number, {name: row[name] for name in row if name != _ID})}


class _Stopped(Exception):  # noqa: N818 - it is no error
    """Ends the plan."""


def _sink(save: Callable[[int, Payload], Any], progress: Any) -> Any:
    from ray.data import Datasink

    class Sink(Datasink[None]):
        def write(self, blocks: Iterable[pa.Table], ctx: Any) -> None:
            del ctx
            for block in blocks:
                for row in block.to_pylist():
                    number = row.pop(_ID)
                    # Waited for, or the last ones would come when nobody listens any more.
                    if ray.get(progress.add.remote(number, save(number, row))):
                        raise _Stopped

    import ray

    return Sink()


def _progress_actor() -> Any:
    import ray

    class Progress:
        """What was told of the pieces that were saved, kept until it is taken; and whether the run is to end."""

        def __init__(self) -> None:
            self._told: list[tuple[int, Any]] = []
            self._ends = False

        def add(self, number: int, told: Any) -> bool:
            self._told.append((number, told))
            return self._ends

        def end(self) -> None:
            self._ends = True

        def take(self) -> list[tuple[int, Any]]:
            told, self._told = self._told, []
            return told

    remote: Any = ray.remote(num_cpus=0)(Progress)
    return remote.remote()


def _as_line(error: BaseException) -> BaseException:
    """What was raised on the other side, if it is one of ours, or what Ray says in a line."""
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None)
        if isinstance(inner, CfaIndexError):
            return inner
        if type(cause).__module__.startswith("cfa_index") and isinstance(cause, CfaIndexError):
            return cause
        cause = inner if isinstance(inner, BaseException) else cause.__cause__
    return EngineError(
        expected="Ray to do the work",
        got=last_line(error),
        remedy="run the same command again: what was saved is kept",
    )

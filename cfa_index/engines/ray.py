"""Numbered pieces of work on a Ray cluster: fetched by tasks, worked on by a pool of actors, saved by tasks.

    range --fetch, tasks--> payloads --work, actors--> results --save, tasks--> the target

Ray Data streams the pieces, holds back what the next step cannot take, and does again what a worker that died had
under way. Saving a piece twice must leave what saving it once does: Ray's checkpoint notes a piece after it has
been saved, so that a run that is killed in between saves it again.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cfa_index.errors import CfaIndexError, EngineError, SpecError

if TYPE_CHECKING:
    from ray.data.checkpoint import CheckpointConfig

Payload: TypeAlias = Mapping[str, "NDArray[Any] | bytes"]
"""What a fetched piece is: named arrays and bytes."""
Result = TypeVar("Result")

_ID = "id"
_RESULT = "result"
_POLL_S = 0.2
_AROUND_ACTORS = 3
"""Logical CPUs beside the actors': one each for the filter of a resumed run, for fetching and for saving. With
fewer, Ray waits for ever."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}
"""Of a cluster of this process's own. Nothing is reported to Ray's makers; and it stays on the loopback: whoever
reaches a Ray cluster can run code in it."""


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """Where pieces run, and how many at a time.

    Attributes:
        address: of a cluster that is there, such as `auto` or ray://HOST:10001; None for one on this machine that
            ends with the run.
        actors: that work; each makes its own worker once.
        cpus_per_actor: threads that each may use.
        gpus_per_actor: of each, also a share such as 0.5.

    Raises:
        SpecError: a number that cannot be.
    """

    address: str | None = None
    actors: int = 1
    cpus_per_actor: int = 1
    gpus_per_actor: float = 0.0

    def __post_init__(self) -> None:
        if self.actors < 1 or self.cpus_per_actor < 1 or not 0 <= self.gpus_per_actor < float("inf"):
            raise SpecError(
                expected="actors and their threads to be 1 or more, and their GPUs 0 or more",
                got=f"{self.actors} actors of {self.cpus_per_actor} threads and {self.gpus_per_actor} GPUs",
                remedy="give other values for them",
            )

    @property
    def cpus(self) -> int:
        """Logical CPUs that a run needs at least."""
        return self.actors * self.cpus_per_actor + _AROUND_ACTORS


@contextmanager
def connected(cluster: RayCluster) -> Iterator[None]:
    """Be connected to a cluster in the body; one that this process has joined before is used as it is.

    Raises:
        EngineError: Ray is not installed, the cluster does not answer, or it lacks CPUs or GPUs.
    """
    try:
        with _environment({} if cluster.address else _QUIET):
            import ray
    except ImportError as error:
        raise EngineError(
            expected="Ray to be installed", got="no such library", remedy="pip install 'cfa-index[ray]'"
        ) from error
    joined = ray.is_initialized()
    try:
        if not joined:
            _join(cluster)
        _require_room(cluster)
        yield
    finally:
        if not joined:
            ray.shutdown()


def run_on_ray(
    pieces: int,
    *,
    cluster: RayCluster,
    fetch: Callable[[int], Payload],
    make_worker: Callable[[], Callable[[int, Payload], bytes]],
    save: Callable[[int, bytes], None],
    checkpoint: str,
    done: Sequence[int] = (),
    saved: Callable[[int], None] = lambda number: None,
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
        saved: called in this process with the number of each piece, some time after it has been saved.
        stop: asked several times a second; when it says so, the run ends at once, and pieces under way are lost.

    Returns:
        Whether all pieces are saved; False when it was stopped.

    Raises:
        CfaIndexError: what `fetch`, a worker or `save` raised.
        EngineError: Ray failed.
    """
    if len(done) >= pieces:
        return True
    with connected(cluster):
        import ray

        progress = _progress_actor()
        failures: list[BaseException] = []

        def run() -> None:
            try:
                _stream(pieces, cluster, fetch, make_worker, save, checkpoint, done, progress)
            except BaseException as error:
                failures.append(error)

        # A thread of its own, so that this one can be interrupted.
        running = threading.Thread(target=run, daemon=True)
        running.start()
        while running.is_alive():
            running.join(_POLL_S)
            with suppress(ray.exceptions.RayError):
                for number in ray.get(progress.take.remote()):
                    saved(number)
            if running.is_alive() and stop():
                return False
    if failures:
        raise _as_line(failures[0]) from None
    return True


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
    with connected(cluster):
        import ray

        task = ray.remote(work).options(
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


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Variables that are not set already, for the body."""
    added = [name for name in settings if name not in os.environ]
    os.environ.update({name: settings[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _join(cluster: RayCluster) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    try:
        if cluster.address:
            ray.init(address=cluster.address, **quiet)
            return
        with _environment(_QUIET), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of what Ray will do with GPUs that were not asked for
            ray.init(
                num_cpus=max(os.cpu_count() or 1, cluster.cpus),
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise EngineError(
            expected=f"a Ray cluster at {cluster.address}" if cluster.address else "to start Ray",
            got=_first_line(error),
            remedy="check --ray-address and that Ray runs there" if cluster.address else "see Ray's logs",
        ) from error


def _require_room(cluster: RayCluster) -> None:
    import ray

    there = ray.cluster_resources()
    cpus, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
    if cpus < cluster.cpus or gpus < cluster.actors * cluster.gpus_per_actor:
        raise EngineError(
            expected=f"a Ray cluster with {cluster.cpus} CPUs and {cluster.actors * cluster.gpus_per_actor:g} GPUs",
            got=f"{cpus:g} and {gpus:g}",
            remedy="give fewer actors, or fewer CPUs or GPUs for each",
        )


def _stream(
    pieces: int,
    cluster: RayCluster,
    fetch: Callable[[int], Payload],
    make_worker: Callable[[], Callable[[int, Payload], bytes]],
    save: Callable[[int, bytes], None],
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
        (
            ray.data.range(pieces, override_num_blocks=pieces)
            .map(_Fetch(fetch), num_cpus=1)
            .map(
                _Actor,
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

    with warnings.catch_warnings():
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

    def __init__(self, make_worker: Callable[[], Callable[[int, Payload], bytes]]) -> None:
        self._work = make_worker()

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        number = int(row[_ID])
        return {_ID: number, _RESULT: self._work(number, {k: v for k, v in row.items() if k != _ID})}


def _sink(save: Callable[[int, bytes], None], progress: Any) -> Any:
    from ray.data import Datasink

    class Sink(Datasink[None]):
        def write(self, blocks: Iterable[Any], ctx: Any) -> None:
            del ctx
            for block in blocks:
                for number, result in zip(
                    block[_ID].to_pylist(), block[_RESULT].to_pylist(), strict=True
                ):
                    save(number, result)
                    progress.add.remote(number)

    return Sink()


def _progress_actor() -> Any:
    import ray

    @ray.remote(num_cpus=0)
    class Progress:
        """Numbers of pieces that were saved, kept until they are taken."""

        def __init__(self) -> None:
            self._numbers: list[int] = []

        def add(self, number: int) -> None:
            self._numbers.append(number)

        def take(self) -> list[int]:
            numbers, self._numbers = self._numbers, []
            return numbers

    return Progress.remote()


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
        got=_first_line(error),
        remedy="run the same command again: what was saved is kept",
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]

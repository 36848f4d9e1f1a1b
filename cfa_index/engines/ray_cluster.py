"""A Ray cluster: one that is there, or one on this machine that ends with the run."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cfa_index.errors import EngineError, SpecError

_AROUND_ACTORS = 3
"""Logical CPUs beside the actors': one each for the filter of a resumed run, for fetching and for saving. With
fewer, Ray waits for ever."""
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_AUTO_CONNECT": "0"}
"""Nothing is reported to Ray's makers, and a plan whose cluster was left starts no other one."""
_OWN = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
"""Of a cluster of this process's own. It stays on the loopback, since whoever reaches a Ray cluster may run code in
it; and its processes, which are the run, do not stand back behind all others."""


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """Where pieces run, and how many at a time.

    Attributes:
        address: of a cluster that is there, such as `auto` or HOST:6379; None for one on this machine that
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
    def actors_cpus(self) -> int:
        """Logical CPUs that actors need, with what feeds them."""
        return self.actors * self.cpus_per_actor + _AROUND_ACTORS

    @property
    def actors_gpus(self) -> float:
        """GPUs that the actors need."""
        return self.actors * self.gpus_per_actor


@contextmanager
def connected(cluster: RayCluster, *, cpus: int, gpus: float) -> Iterator[None]:
    """Be connected to a cluster in the body; one that this process has joined before is used as it is.

    Args:
        cluster: it.
        cpus, gpus: that it must have; one of this process's own has as many CPUs at least.

    Raises:
        EngineError: Ray is not installed, the cluster does not answer, or it lacks CPUs or GPUs.
    """
    try:
        with environment({} if cluster.address else _OWN):
            import ray
    except ImportError as error:
        raise EngineError(
            expected="Ray to be installed", got="no such library", remedy="pip install 'cfa-index[ray]'"
        ) from error
    joined = ray.is_initialized()
    try:
        if not joined:
            _join(cluster, cpus)
        _require_room(cpus, gpus)
        yield
    finally:
        if not joined:
            ray.shutdown()


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Variables that are not set already, for the body."""
    added = [name for name in settings if name not in os.environ]
    os.environ.update({name: settings[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def quiet() -> Iterator[None]:
    """Ray's log says errors only, and the signals keep their handlers, which Ray replaces when it starts."""
    logs = [logging.getLogger(name) for name in ("ray", "ray.data")]
    levels = [log.level for log in logs]
    main = threading.current_thread() is threading.main_thread()
    handlers = (
        {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    )
    try:
        for log in logs:
            log.setLevel(logging.CRITICAL)
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _join(cluster: RayCluster, cpus: int) -> None:
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    try:
        settings = ENVIRONMENT if cluster.address else ENVIRONMENT | _OWN
        with quiet(), environment(settings), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own
            if cluster.address:
                ray.init(address=cluster.address, **options)
            else:
                ray.init(
                    address="local",
                    num_cpus=max(len(os.sched_getaffinity(0)), cpus),
                    include_dashboard=False,
                    **options,
                )
    except (OSError, RuntimeError, ValueError) as error:
        raise EngineError(
            expected=f"a Ray cluster at {cluster.address}" if cluster.address else "to start Ray",
            got=last_line(error),
            remedy="check --ray-address and that Ray runs there" if cluster.address else "see Ray's logs",
        ) from error


def _require_room(cpus: int, gpus: float) -> None:
    import ray

    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call] # Ray's
    if there.get("CPU", 0.0) < cpus or there.get("GPU", 0.0) < gpus:
        raise EngineError(
            expected=f"a Ray cluster with {cpus} CPUs and {gpus:g} GPUs",
            got=f"{there.get('CPU', 0.0):g} and {there.get('GPU', 0.0):g}",
            remedy="give fewer actors, or fewer CPUs or GPUs for each",
        )


def last_line(error: BaseException) -> str:
    """The line of an error that says most: the last, where a traceback is in it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]

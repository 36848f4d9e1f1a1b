"""What a benchmark ran on, and how it times."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path


def describe(seed: int, **settings: object) -> str:
    """Machine, versions, seed and settings in a few lines."""
    import torch

    from cfa_index import faiss_version

    libraries = ", ".join(f"{name} {version(name)}" for name in ("cfa-index", "torch", "numpy", "zarr"))
    given = ", ".join(f"{name} {value}" for name, value in settings.items())
    return (
        f"machine: {cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{platform.system()} {platform.machine()}\n"
        f"versions: Python {platform.python_version()}, {libraries}, faiss {faiss_version()}\n"
        f"seed {seed}; {given}"
    )


def cpu_name() -> str:
    """As the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown CPU"


def time_in_turn(jobs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each job, called in turn, `rounds` times after one call to warm up.

    In turn, so that a machine that slows down for a while slows all of them.
    """
    for job in jobs.values():
        job()
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ratio(a: list[float], b: list[float]) -> float:
    """Median over rounds of a / b, round by round."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def peak_memory_mib() -> float:
    """Largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

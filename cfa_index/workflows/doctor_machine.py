"""What the system says of itself: CPU, control group, memory, disks, limits. Linux; elsewhere much is unknown."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ParamSpec, TypeVar

from cfa_index.limits import cpu_quota, memory_limits
from cfa_index.workflows.doctor_facts import CPU_FEATURES, Disk, Memory, Processor

_ROOT = Path("/")
_WRITTEN_BYTES, _BLOCK_BYTES, _WRITING_S = 64 << 20, 4 << 20, 1.0
_SPARE_BYTES = 1 << 30
"""Left free by the measurement of a disk: it must not be what fills it."""

Given = ParamSpec("Given")
Fact = TypeVar("Fact")


def known(look: Callable[Given, Fact], *args: Given.args, **kwargs: Given.kwargs) -> Fact | None:
    """A fact, or None where looking failed: a broken driver or a strange system must not end the others."""
    try:
        return look(*args, **kwargs)
    except Exception:  # whatever a half-installed library or an odd file system raises
        return None


def processor(root: Path = _ROOT) -> Processor:
    """The CPU and this process's share of it.

    Args:
        root: where proc and sys are; another one in tests.
    """
    info = known(_named_values, root / "proc/cpuinfo") or {}
    flags = (info.get("flags") or info.get("Features") or "").split()
    affinity = getattr(os, "sched_getaffinity", None)
    return Processor(
        model=info.get("model name") or info.get("Model"),
        features=tuple(name for name in CPU_FEATURES if name in flags) if flags else None,
        logical=os.cpu_count(),
        affinity=known(lambda: len(affinity(0))) if affinity else None,
        quota=known(cpu_quota, root),
    )


def _named_values(file: Path) -> dict[str, str]:
    """Lines of `name: value`; of a name that comes again, the first."""
    found: dict[str, str] = {}
    for line in file.read_text().splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


def memory(root: Path = _ROOT) -> Memory:
    """Memory that this process may use: the system's, or its control group's where that is less."""
    amounts = known(_named_values, root / "proc/meminfo") or {}
    total, free = (known(_kib, amounts, name) for name in ("MemTotal", "MemAvailable"))
    limits = known(memory_limits, root) or []
    limits = [one for one in limits if total is None or one[0] < total]
    rooms = [room for room in (free, *(limit - used for limit, used in limits)) if room is not None]
    return Memory(
        total=total,
        available=max(0, min(rooms)) if rooms else None,
        limit=min((limit for limit, _ in limits), default=None),
    )


def _kib(amounts: Mapping[str, str], name: str) -> int:
    return int(amounts[name].split()[0]) * 1024


def disk(role: str, folder: Path, *, measure: bool) -> Disk:
    """A target folder; with `measure` up to 64 MiB are written beside it, for a second at most, and removed.

    Nothing is measured where less than 1 GiB would be left.
    """
    place = known(nearest_folder, folder)
    space = known(shutil.disk_usage, place) if place else None
    writable = known(_can_write, place) if place else None
    speed = None
    if measure and place and writable and space and space.free > _SPARE_BYTES + _WRITTEN_BYTES:
        speed = known(_write_speed, place)
    return Disk(
        role=role,
        folder=folder,
        writable=writable,
        free_bytes=space.free if space else None,
        total_bytes=space.total if space else None,
        write_bytes_per_s=speed,
    )


def nearest_folder(path: Path) -> Path:
    """The path itself, or the nearest one above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _can_write(place: Path) -> bool:
    """Tried, since permissions do not tell of a read-only mount or a full disk."""
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0")
    except OSError:
        return False
    return True


def _write_speed(place: Path) -> float:
    """Bytes a second into a file without a name, synced: nothing is left of it, whatever happens."""
    block, written = os.urandom(_BLOCK_BYTES), 0
    with tempfile.TemporaryFile(dir=place, buffering=0) as file:
        started = time.perf_counter()
        while written < _WRITTEN_BYTES and time.perf_counter() - started < _WRITING_S:
            written += file.write(block)
        os.fsync(file.fileno())
        return written / (time.perf_counter() - started)


def open_files() -> tuple[int, int]:
    """Soft and hard limit of open files; one without a limit is the largest number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _finite(soft), _finite(hard)


def _finite(limit: int) -> int:
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def shm_bytes() -> int:
    """Size of /dev/shm."""
    return shutil.disk_usage("/dev/shm").total

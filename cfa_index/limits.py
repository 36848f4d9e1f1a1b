"""What a container leaves of its machine: the limits of this process's control groups, on Linux."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")
"""Where proc and sys are; another one in tests."""


def cpu_quota(root: Path = _ROOT) -> float:
    """The tightest limit among this process's control groups, in cores; infinity without any.

    Raises:
        OSError, ValueError: they cannot be read, as where there is no Linux.
    """
    quotas = [float("inf")]
    for folder in _groups(root, "cpu"):
        unified, used = folder / "cpu.max", folder / "cpu.cfs_quota_us"
        if unified.is_file():
            limit, period = unified.read_text().split()
            if limit != "max":
                quotas.append(int(limit) / int(period))
        elif used.is_file() and int(used.read_text()) > 0:  # -1 for no limit
            quotas.append(int(used.read_text()) / int((folder / "cpu.cfs_period_us").read_text()))
    return min(quotas)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control groups, version 1 and 2, each with those above it.

    A container may see its own group as the root though its name says otherwise; the root is always looked at.
    """
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        own = mount / path.lstrip("/")
        yield own
        yield from (parent for parent in own.parents if parent.is_relative_to(mount))


def memory_limits(root: Path = _ROOT) -> list[tuple[int, int]]:
    """Limit of each group and what is used of it, in bytes, without the files that can be dropped.

    Raises:
        OSError, ValueError: they cannot be read, as where there is no Linux.
    """
    found = []
    for folder in _groups(root, "memory"):
        for limit, used, dropped in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            if not (folder / limit).is_file() or (text := (folder / limit).read_text().strip()) == "max":
                continue
            lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
            stat = {name: int(value) for name, value in lines}
            found.append((int(text), int((folder / used).read_text()) - stat.get(dropped, 0)))
    return found

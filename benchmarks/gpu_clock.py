"""What benchmarks.gpu times with, and how long it may: one clock for both devices, and a budget a section."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import describe

_DRIVER = Path("/proc/driver/nvidia/version")
_HOST_MEMORY = Path("/proc/meminfo")
_LEAST_S = 0.05
"""Of one measurement on a card: a shorter job is repeated within it."""
_MOST_CALLS = 200
_MARGIN = 1.5
"""A size is begun when this many times what it should take is left: the estimate is a guess."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one call: median and quartiles of the measurements."""

    median_s: float
    low_s: float
    high_s: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Of measurements, one at least."""
        if len(seconds) == 1:
            return cls(median_s=seconds[0], low_s=seconds[0], high_s=seconds[0])
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median_s=median, low_s=low, high_s=high)

    @property
    def ms(self) -> float:
        """Median in milliseconds."""
        return 1000 * self.median_s

    def rate(self, things: int) -> float:
        """Things a second, where one call does so many."""
        return things / self.median_s


class Clock:
    """Times jobs on one device: CUDA events on a card, `perf_counter` elsewhere.

    A measurement on a card starts with an empty queue and holds as many calls as fill 50 ms, so that it is what
    a loop sees: kernels, or the host where it launches them too slowly.

    Args:
        device: whose work is timed.
        repeats: measurements a job.
    """

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device = device
        self.repeats = repeats
        self._least_s = _LEAST_S if device.type == "cuda" else 0.0

    def in_turn(self, jobs: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
        """Warm every job up with two calls, then measure them in turn, so that what slows one slows all."""
        calls = {}
        for name, job in jobs.items():
            self.seconds(job)
            once = self.seconds(job)
            calls[name] = min(_MOST_CALLS, max(1, math.ceil(self._least_s / max(once, 1e-9))))
        found: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(self.repeats):
            for name, job in jobs.items():
                found[name].append(self.seconds(job, calls[name]))
        return {name: Timing.of(seconds) for name, seconds in found.items()}

    def seconds(self, job: Callable[[], object], calls: int = 1) -> float:
        """Seconds a call, of some calls one after another."""
        if self.device.type == "cuda":
            start, end = _event(), _event()
            torch.cuda.synchronize(self.device)
            start.record(torch.cuda.current_stream(self.device))
            for _ in range(calls):
                job()
            end.record(torch.cuda.current_stream(self.device))
            end.synchronize()
            return float(start.elapsed_time(end)) / 1000 / calls
        started = time.perf_counter()
        for _ in range(calls):
            job()
        return (time.perf_counter() - started) / calls

    def waits(self, job: Callable[[], object]) -> int | None:
        """How often the host waits for the card in one call, as torch counts it; None without one."""
        if self.device.type != "cuda":
            return None
        job()
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                job()
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return sum("synchroniz" in str(one.message) for one in caught)

    def used_bytes(self) -> int:
        """Bytes of the card that are taken, by whomever, without what torch keeps for later; 0 without a card."""
        if self.device.type != "cuda":
            return 0
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped


@dataclass
class Budget:
    """Seconds that a section may take, and what it left out for want of them.

    Attributes:
        seconds: in all.
        left_out: in words.
    """

    seconds: float
    left_out: list[str] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)

    def allows(self, what: str, expected_s: float = 0.0) -> bool:
        """Whether something that should take so long can still be begun; what cannot is noted."""
        if self.left() > _MARGIN * expected_s:
            return True
        self.skip(what, f"{expected_s:.0f} s expected, {max(self.left(), 0):.0f} s left")
        return False

    def left(self) -> float:
        """Seconds, below zero where more were spent."""
        return self.seconds - self.spent()

    def spent(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._started

    def skip(self, what: str, why: str) -> None:
        """Note what is left out."""
        self.left_out.append(f"{what}: {why}")


def free_bytes(device: torch.device) -> int:
    """Of a card as CUDA tells it, of a host what its kernel would give without swapping."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    for line in _HOST_MEMORY.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"no MemAvailable in {_HOST_MEMORY}: Linux 3.14 or newer is needed")


def describe_device(device: torch.device, seed: int, **settings: object) -> str:
    """Machine, versions, seed and settings; of a card its name, driver, CUDA and free memory, too."""
    lines = [describe(seed, device=device, **settings)]
    cuda = f"torch built for CUDA {torch.version.cuda or 'none'}"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        facts = torch.cuda.get_device_properties(device)
        lines.append(
            f"card: {facts.name}, compute capability {facts.major}.{facts.minor}, "
            f"{facts.multi_processor_count} multiprocessors, {free / 2**30:.2f} of {total / 2**30:.2f} GiB free"
        )
    lines.append(f"{cuda}; driver: {driver_version()}")
    return "\n".join(lines)


def driver_version() -> str:
    """The first line of what NVIDIA's driver says of itself."""
    try:
        return _DRIVER.read_text().splitlines()[0]
    except (OSError, IndexError):
        return "none"


def draw_patches(count: int, width: int, device: torch.device, seed: int, *, block: int = 1 << 18) -> Tensor:
    """Made-up patches (count, width) float32 on the device, drawn there, block by block.

    They lie around 256 centres in a space of 64 directions that all share, spread along 12 of them, with a
    little of everything else: of low intrinsic dimension as features are, not white noise. Another seed draws
    others around the same centres.
    """
    where = device if device.type == "cuda" else torch.device("cpu")  # generators are for these two
    common = torch.Generator(where).manual_seed(0)
    centres = torch.randn(256, 64, generator=common, device=where)
    directions = torch.randn(64, width, generator=common, device=where) / 8
    generator = torch.Generator(where).manual_seed(seed + 1)
    made = torch.empty(count, width, device=where)
    for start in range(0, count, block):
        part = made[start : start + block]
        owners = torch.randint(len(centres), (len(part),), generator=generator, device=where)
        places = centres[owners]
        places[:, :12] += 0.5 * torch.randn(len(part), 12, generator=generator, device=where)
        torch.mm(places, directions, out=part)
        part.add_(torch.randn(part.shape, generator=generator, device=where), alpha=0.02)
    return made.to(device)

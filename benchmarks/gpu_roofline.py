"""How near a search comes to what the device can do, measured in the same run.

A search of n queries among M memories of D' numbers needs 2 n M D' operations and has to read queries and memories
once: 4 (n + M) D' bytes. It cannot take less time than either needs: that is the roof, and which of the two decides
depends on n. Distances that a search writes and reads again are its own affair and count against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.gpu_clock import Budget, Clock, draw_patches
from cfa_index import MemoryBank

_PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What the device did in this run.

    Attributes:
        bytes_per_s: read and written by a copy within its memory.
        flops: operations a second of a square matrix product, by precision.
    """

    bytes_per_s: float
    flops: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RoofRow:
    """One search against its roofs.

    Attributes:
        queries, memories, width: n, M and D'.
        ms: as it scores: one neighbour, its distance exact.
        tflops, gbytes_per_s: what it achieved, by the counts above.
        roof_ms: by the precision of the products.
        bound_by: `products` or `memory`, in fp32.
    """

    queries: int
    memories: int
    width: int
    ms: float
    tflops: float
    gbytes_per_s: float
    roof_ms: dict[str, float]
    bound_by: str

    def achieved(self, precision: str) -> float:
        """Share of what was attainable."""
        return self.roof_ms[precision] / self.ms


def measure_peaks(clock: Clock, *, copy_bytes: int, side: int) -> Peaks:
    """A copy of so many bytes, and square products, in turn."""
    source = torch.zeros(copy_bytes // 4, device=clock.device)
    target = torch.empty_like(source)
    square = torch.ones(side, side, device=clock.device)
    halved = square.to(torch.bfloat16)
    times = clock.in_turn(
        {
            "copy": partial(target.copy_, source),
            "fp32": partial(torch.mm, square, square),
            "tf32": _in_tf32(partial(torch.mm, square, square)),
            "bf16": partial(torch.mm, halved, halved),
        }
    )
    return Peaks(
        bytes_per_s=times["copy"].rate(2 * copy_bytes),
        flops={name: times[name].rate(2 * side**3) for name in _PRECISIONS},
    )


def _in_tf32(job: Callable[[], object]) -> Callable[[], object]:
    """A product whose inputs the card may round to 10 bits; a CPU does nothing else than before."""

    def run() -> object:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return job()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return run


def measure_roofline(
    clock: Clock, budget: Budget, peaks: Peaks, shapes: Sequence[tuple[int, int, int]], *, seed: int
) -> list[RoofRow]:
    """Exact searches of shapes (n, M, D')."""
    rows = []
    for queries, memories, width in shapes:
        if not budget.allows(f"{queries:,} queries in {memories:,} x {width}"):
            continue
        draw = partial(draw_patches, width=width, device=clock.device)
        bank = MemoryBank(draw(memories, seed=seed).cpu().numpy(), clock.device)
        search = partial(bank.search, draw(queries, seed=seed + 1), 1, exact=True)
        rows.append(roof_row(peaks, queries, memories, width, clock.in_turn({"search": search})["search"].ms))
    return rows


def roof_row(peaks: Peaks, queries: int, memories: int, width: int, ms: float) -> RoofRow:
    """A search of so many milliseconds against its roofs."""
    operations, moved = 2 * queries * memories * width, 4 * (queries + memories) * width
    memory_ms = 1000 * moved / peaks.bytes_per_s
    products_ms = {name: 1000 * operations / flops for name, flops in peaks.flops.items()}
    return RoofRow(
        queries=queries,
        memories=memories,
        width=width,
        ms=ms,
        tflops=operations / ms / 1e9,
        gbytes_per_s=moved / ms / 1e6,
        roof_ms={name: max(needed, memory_ms) for name, needed in products_ms.items()},
        bound_by="products" if products_ms["fp32"] > memory_ms else "memory",
    )


def roofline_table(peaks: Peaks, rows: Sequence[RoofRow]) -> str:
    """Peaks and rows as Markdown."""
    products = ", ".join(f"{name} {flops / 1e12:.3g}" for name, flops in peaks.flops.items())
    lines = [
        f"copy {peaks.bytes_per_s / 1e9:.3g} GB/s read and written; products, TFLOP/s: {products}",
        "",
        "| queries | bank | ms | TFLOP/s | GB/s | bound by | achieved / attainable, fp32 | tf32 | bf16 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.queries:,} | {row.memories:,} x {row.width} | {row.ms:.3g} | {row.tflops:.3g} | "
        f"{row.gbytes_per_s:.3g} | {row.bound_by} | "
        + " | ".join(f"{row.achieved(name):.2f}" for name in _PRECISIONS)
        + " |"
        for row in rows
    ]
    return "\n".join(lines)

"""Time and memory of a search against the size of the bank, and the paper's throughput by gamma.

    python -m benchmarks.bank_size [--largest 1e6] [--index ivf-pq ...] [--json FILE]
    python -m benchmarks.bank_size --quick

Banks of 10^3, 10^4, ... memories are drawn from one: whitened patches of ELPV's solar cells under
EfficientNet-Lite0 at strides 4, 8, 16 (D' = 176). Beyond what its 1,200 good cells give, patches are drawn
again with a little noise, a tenth of the distance between neighbours; such rows are marked. Each size is
timed on one set of queries from other images, all indexes in turn; `resident` is what must be in memory for
a search. An exponent b is the least-squares slope of log(value) over log(memories): value ~ memories^b.

Table 6 of the paper: images a second at gamma_c = gamma_d = 1, 1/2, 1/4, 1/8 as a ratio to 1, of whole
inference and of the search alone, wide_resnet50_2 with random weights; the paper's are 1.9, 2.8 and 3.6 on
its GPU (`--no-gamma` leaves this out).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.complexity import exponent
from benchmarks.machine import describe, time_in_turn
from benchmarks.search_cases import LARGEST_LARGE, SearchCase, large_case
from benchmarks.stages import measure
from cfa_index import IndexSpec, MemoryBank, make_index, reuse_freed_memory, set_threads
from cfa_index.errors import BankError

CPU = torch.device("cpu")
GAMMAS = ("1", "1/2", "1/4", "1/8")
PAPER_SPEEDUP = {"1": 1.0, "1/2": 1.9, "1/4": 2.8, "1/8": 3.6}
"""Table 6, throughput as a ratio to gamma 1."""
_NOISE = 0.1
_SMALLEST = 1000


@dataclass(frozen=True, kw_only=True)
class SizeRow:
    """One index over the sizes at which it could be made.

    Attributes:
        memories: M of each column.
        ms: of the queries of one image.
        resident_bytes: of a search.
        build_s: to train, fill and tune it; 0 for Flat.
        recall: recall@1 on queries that did not tune it.
        time_exponent, memory_exponent: slopes in log-log; None with fewer than two sizes.
    """

    index: str
    memories: tuple[int, ...]
    ms: tuple[float, ...]
    resident_bytes: tuple[int, ...]
    build_s: tuple[float, ...]
    recall: tuple[float, ...]
    time_exponent: float | None
    memory_exponent: float | None


@dataclass(frozen=True, kw_only=True)
class SizeCell:
    """One index over one bank; see `SizeRow`."""

    memories: int
    ms: float
    resident_bytes: int
    build_s: float
    recall: float


def bank_sizes(largest: int) -> list[int]:
    """10^3, 10^4, ... up to `largest`.

    Raises:
        ValueError: below 1,000.
    """
    if largest < _SMALLEST:
        raise ValueError(f"expected a largest bank of at least {_SMALLEST}, got {largest}")
    return [size for power in range(3, 12) if (size := 10**power) <= largest]


def enlarged(vectors: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    """`count` vectors (count, d): the given ones, then more drawn from them with a little noise, a block at a time."""
    if count <= len(vectors):
        return vectors[:count]
    draw = np.random.default_rng(seed)
    grown = np.empty((count, vectors.shape[1]), dtype=np.float32)
    grown[: len(vectors)] = vectors
    some = vectors[:1000].astype(np.float64)
    gaps = ((some[:, None, :8] - some[None, :, :8]) ** 2).sum(-1) + np.diag(np.full(len(some), np.inf))
    deviation = np.float32(_NOISE * np.sqrt(gaps.min(axis=1).mean() / 8))
    for start in range(len(vectors), count, 65_536):
        block = grown[start : start + 65_536]
        draw.standard_normal(dtype=np.float32, out=block)
        block *= deviation
        block += vectors[draw.integers(len(vectors), size=len(block))]
    return grown


def measure_sizes(
    case: SearchCase, sizes: Sequence[int], names: Sequence[str], *, min_recall: float, rounds: int, seed: int
) -> list[SizeRow]:
    """Flat and some indexes at each size."""
    cells: dict[str, list[SizeCell]] = {name: [] for name in ("flat", *names)}
    image = torch.from_numpy(case.good[np.arange(case.patches_per_image) % len(case.good)])
    everything = enlarged(case.vectors, max(sizes), seed)
    for size in sizes:
        flat = MemoryBank(np.ascontiguousarray(everything[:size]), CPU)
        made = {"flat": (flat, flat.vectors.nbytes, 0.0, 1.0)}
        for name in names:
            started = time.perf_counter()
            try:
                choice = make_index(
                    flat.vectors,
                    IndexSpec(factory=name, min_recall=min_recall),
                    case.tuning,
                    k=3,
                    patches_per_image=case.patches_per_image,
                    seed=seed,
                )
            except BankError as error:
                print(f"  {name}, {size} memories: {error}", flush=True)
                continue
            bank = flat if choice.index is None else flat.with_index(choice.index)
            seconds, state = time.perf_counter() - started, choice.state
            made[name] = (bank, state.resident_bytes, seconds, state.recall_at_1)
        seconds_of = time_in_turn(
            {name: partial(bank.search, image, 3, exact=True) for name, (bank, *_) in made.items()}, rounds
        )
        for name, (_, resident, built, recall) in made.items():
            ms = 1000 * statistics.median(seconds_of[name])
            cells[name].append(
                SizeCell(memories=size, ms=ms, resident_bytes=resident, build_s=built, recall=recall)
            )
            print(f"  {name}, {size} memories: {ms:.2f} ms an image, {resident / 2**20:.1f} MiB", flush=True)
    return [size_row(name, found) for name, found in cells.items() if found]


def size_row(index: str, cells: Sequence[SizeCell]) -> SizeRow:
    """The cells of one index and their exponents."""
    memories = tuple(cell.memories for cell in cells)
    ms = tuple(cell.ms for cell in cells)
    resident = tuple(cell.resident_bytes for cell in cells)
    fits = len(cells) > 1
    return SizeRow(
        index=index,
        memories=memories,
        ms=ms,
        resident_bytes=resident,
        build_s=tuple(cell.build_s for cell in cells),
        recall=tuple(cell.recall for cell in cells),
        time_exponent=exponent(memories, ms) if fits else None,
        memory_exponent=exponent(memories, resident) if fits else None,
    )


def size_table(rows: Sequence[SizeRow], real: int) -> str:
    """The rows as Markdown, a line a size; sizes above `real` have made-up patches and a star."""
    lines = [
        "| index | memories | ms an image | x Flat | patches/s | resident MiB | s to make | recall@1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    flat = {
        memories: ms
        for row in rows
        if row.index == "flat"
        for memories, ms in zip(row.memories, row.ms, strict=True)
    }
    for row in rows:
        for size, ms, resident, built, recall in zip(
            row.memories, row.ms, row.resident_bytes, row.build_s, row.recall, strict=True
        ):
            star = "*" if size > real else ""
            lines.append(
                f"| {row.index} | {size:,}{star} | {ms:.2f} | {flat[size] / ms:.2f} | "
                f"{1000 * 3136 / ms:,.0f} | {resident / 2**20:.1f} | {built:.1f} | {recall:.4f} |"
            )
    lines += [""] + [
        f"{row.index}: time ~ M^{row.time_exponent:.2f}, memory ~ M^{row.memory_exponent:.2f}"
        for row in rows
        if row.time_exponent is not None and row.memory_exponent is not None
    ]
    return "\n".join(lines)


def gamma_table(results: Sequence[dict[str, Any]]) -> str:
    """Throughput by gamma as a ratio to the first, as Markdown."""
    lines = ["| gamma | whole inference | search alone | paper (GPU) |", "|---|---|---|---|"]
    first = results[0]["ms_per_image"]
    for result in results:
        ms, gamma = result["ms_per_image"], result["gamma"]
        whole, search = (first[job] / ms[job] for job in ("whole inference", "search"))
        lines.append(f"| {gamma} | {whole:.2f} | {search:.2f} | {PAPER_SPEEDUP[gamma]} |")
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--largest", type=float, default=1e6)
    parser.add_argument("--index", action="append", help="beside Flat; may be repeated; default ivf-pq")
    parser.add_argument("--min-recall", type=float, default=0.99)
    parser.add_argument("--queries", type=int, default=2048, help="for tuning")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-gamma", action="store_true")
    parser.add_argument("--no-sizes", action="store_true")
    parser.add_argument("--quick", action="store_true", help="to 10^4, and ResNet18: proves the way")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    largest = 10_000 if given.quick else round(given.largest)
    try:
        sizes = bank_sizes(largest)
    except ValueError as error:
        parser.error(str(error))
    set_threads(given.threads)
    reuse_freed_memory()
    print(describe(given.seed, largest=largest, min_recall=given.min_recall, rounds=given.rounds), flush=True)
    results: dict[str, Any] = {}
    if not given.no_sizes:
        with tempfile.TemporaryDirectory() as name:
            case = large_case(
                Path(name), memories=min(largest, LARGEST_LARGE), queries=given.queries, seed=given.seed
            )
        rows = measure_sizes(
            case,
            sizes,
            given.index or ["ivf-pq"],
            min_recall=given.min_recall,
            rounds=given.rounds,
            seed=given.seed,
        )
        results["sizes"] = [asdict(row) for row in rows]
        print("\n" + size_table(rows, len(case.vectors)), flush=True)
    if not given.no_gamma:
        results["gamma"] = [
            measure(
                gamma,
                backbone_name="resnet18" if given.quick else "wide_resnet50_2",
                batch=4,
                rounds=given.rounds,
                images=4,
                seed=given.seed,
                index="flat",
            )
            for gamma in GAMMAS
        ]
        print("\nthroughput as a ratio to gamma 1\n" + gamma_table(results["gamma"]))
    if given.json:
        given.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

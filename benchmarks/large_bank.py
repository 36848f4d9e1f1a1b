"""A bank larger than memory: ten million vectors of 256 dimensions, built and searched within a budget.

    python -m benchmarks.large_bank [--n 10000000] [--d 256] [--index ivf-sq8 --index ivf-pq] [--budget-gib 1]
    python -m benchmarks.large_bank --quick

The vectors are made up, by shard, straight into a file that is memory mapped: patches around 20,000 centres,
spread along 12 of 64 directions that all share, and a little along every other. Queries are further draws.
Memory is what the process holds itself, RssAnon of /proc/self/status, read every 50 ms by a thread: mapped
pages of the files can be given back at any time and do not count. The peak before anything is built (Python,
torch, FAISS) is told too. Flat is timed on the same mapped file, on the patches of one image.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.machine import describe
from cfa_index import (
    Event,
    MemoryBank,
    StageAdvanced,
    StageEnded,
    StageStarted,
    exact_sq_distances,
    make_index,
    nearest_rows,
    recall_at,
    set_threads,
)
from cfa_index.specs import IndexSpec

_SHARD = 100_000
_K, _PATCHES = 3, 784
_TARGET_GIB = 4.0


class Patches:
    """Draws of made-up patches, the same for a shard whenever it is drawn."""

    def __init__(self, d: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.d, self.seed = d, seed
        self.directions = rng.normal(size=(64, d)).astype(np.float32) / 8
        self.centres = rng.normal(size=(20_000, 64)).astype(np.float32)

    def draw(self, shard: int, count: int) -> NDArray[np.float32]:
        """(count, d) float32."""
        rng = np.random.default_rng([self.seed, shard])
        places = self.centres[rng.integers(0, len(self.centres), size=count)]
        places[:, :12] += 0.5 * rng.standard_normal(size=(count, 12), dtype=np.float32)
        found = (places @ self.directions).astype(np.float32, copy=False)
        found += 0.02 * rng.standard_normal(size=found.shape, dtype=np.float32)
        return found


class Held:
    """Peak of this process' anonymous memory, in bytes, while it runs."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.peak = max(self.peak, anonymous_bytes())

    @classmethod
    @contextmanager
    def measured(cls) -> Iterator[Held]:
        """Watch during the body."""
        held = cls()
        held.peak = anonymous_bytes()
        held._thread.start()
        try:
            yield held
        finally:
            held._stop.set()
            held._thread.join()


def anonymous_bytes() -> int:
    """RssAnon of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status: Linux 4.5 or newer is needed")


class Progress:
    """Lines on standard error: how far a stage is, and the time left."""

    def __init__(self) -> None:
        self._started, self._done, self._total, self._shown = 0.0, 0, 0, 0.0

    def __call__(self, event: Event) -> None:
        """Listen."""
        now = time.monotonic()
        if isinstance(event, StageStarted):
            self._started, self._done, self._total, self._shown = now, 0, event.total or 0, now
            print(f"{event.stage} ...", file=sys.stderr, flush=True)
        elif isinstance(event, StageAdvanced):
            self._done += event.steps
            if now - self._shown > 10 and self._total:
                self._shown = now
                left = (self._total - self._done) * (now - self._started) / self._done
                share = self._done / self._total
                print(f"{event.stage}: {share:.0%}, {left:.0f} s left", file=sys.stderr, flush=True)
        elif isinstance(event, StageEnded):
            print(f"{event.stage}: {event.seconds:.1f} s", file=sys.stderr, flush=True)


def disk_needed(n: int, d: int) -> int:
    """Bytes: the vectors, and the lists of one index twice, as shards and merged; codes of a byte a dimension."""
    return 4 * n * d + 2 * n * (d + 8) + (64 << 20)


def check_disk(folder: Path, needed: int) -> None:
    """Refuse to begin where the files will not fit."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SystemExit(
            f"expected {needed / 2**30:.1f} GiB free in {folder}, got {free / 2**30:.1f}; "
            "give another --folder, or a smaller --n"
        )


def write_vectors(path: Path, n: int, patches: Patches, progress: Progress) -> None:
    """The file of vectors, shard by shard, whole or not at all; its pages are given back as it grows."""
    progress(StageStarted(stage="vectors", total=n, unit="vectors"))
    started = time.monotonic()
    header = np.lib.format.header_data_from_array_1_0(np.empty((0, patches.d), np.float32))
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (n, patches.d)})
            for shard, start in enumerate(range(0, n, _SHARD)):
                drawn = patches.draw(shard, min(_SHARD, n - start))
                file.write(drawn.data)
                progress(StageAdvanced(stage="vectors", steps=len(drawn)))
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    progress(StageEnded(stage="vectors", seconds=time.monotonic() - started))


def measure(
    path: Path, patches: Patches, name: str, *, budget: int, flat_ms: float, seed: int, progress: Progress
) -> dict[str, Any]:
    """Build one index, tune it, search it."""
    vectors = np.load(path, mmap_mode="c")
    queries = patches.draw(1_000_001, 512)
    before = anonymous_bytes()
    started = time.perf_counter()
    with Held.measured() as building:
        choice = make_index(
            vectors,
            IndexSpec(factory=name, min_recall=0.99),
            queries,
            k=_K,
            patches_per_image=_PATCHES,
            seed=seed,
            budget_bytes=budget,
            scratch_dir=path.parent,
            listener=progress,
        )
    built_s = time.perf_counter() - started
    with Held.measured() as searching:
        bank = MemoryBank(vectors, torch.device("cpu"), choice.index)
        image = torch.from_numpy(patches.draw(1_000_002, _PATCHES))
        bank.search(image, _K)
        runs = []
        for _ in range(5):
            started = time.perf_counter()
            found = bank.search(image, _K)
            runs.append(time.perf_counter() - started)
    _, ids = nearest_rows(image.numpy(), vectors, _K)
    nearest = exact_sq_distances(image, bank.tensor, torch.from_numpy(ids)).sort(dim=1).values.numpy()
    first, _ = recall_at(found.sq_distances.numpy(), nearest, _K)
    image_ms = 1000 * float(np.median(runs))
    return {
        "index": choice.state.describe(),
        "lists_on_disk": choice.index is not None and choice.index.lists is not None,
        "build_and_tune_s": built_s,
        "peak_anonymous_gib_before": before / 2**30,
        "peak_anonymous_gib_build": building.peak / 2**30,
        "peak_anonymous_gib_search": searching.peak / 2**30,
        "resident_mib": choice.state.resident_bytes / 2**20,
        "image_ms": image_ms,
        "times_flat": flat_ms / image_ms,
        "recall_at_1": float(first.mean()),
    }


def time_flat(path: Path, patches: Patches) -> float:
    """Milliseconds of Flat for one image, on the mapped file; once, it reads all of it."""
    vectors = np.load(path, mmap_mode="c")
    image = patches.draw(1_000_002, _PATCHES)
    started = time.perf_counter()
    nearest_rows(image, vectors, _K)
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    """Parse, check the disk, make, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=10_000_000)
    parser.add_argument("--d", type=int, default=256)
    parser.add_argument("--index", action="append", help="may be repeated [default: ivf-sq8, ivf-pq]")
    parser.add_argument("--budget-gib", type=float, default=1.0, help="inverted lists held while building")
    parser.add_argument("--folder", type=Path, help="where the files go [default: a temporary folder]")
    parser.add_argument("--keep", action="store_true", help="leave the vectors, and use those that are there")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="100,000 vectors, lists of 8 MiB")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.quick:
        given.n, given.budget_gib = 100_000, 8 / 1024
    set_threads(given.threads)
    print(describe(given.seed, n=given.n, d=given.d, budget_gib=given.budget_gib))
    progress, patches = Progress(), Patches(given.d, given.seed)
    if given.folder is not None:
        given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        path = (
            given.folder if given.keep and given.folder else Path(scratch)
        ) / f"large_bank-{given.n}x{given.d}-{given.seed}.npy"
        there = path.exists()
        check_disk(path.parent, disk_needed(given.n, given.d) - (path.stat().st_size if there else 0))
        if not there:
            write_vectors(path, given.n, patches, progress)
        flat_ms = time_flat(path, patches)
        results = []
        for name in given.index or ["ivf-sq8", "ivf-pq"]:
            result = measure(
                path,
                patches,
                name,
                budget=int(given.budget_gib * 2**30),
                flat_ms=flat_ms,
                seed=given.seed,
                progress=progress,
            )
            results.append(result)
            print(f"\n{result['index']}, lists {'on disk' if result['lists_on_disk'] else 'in memory'}")
            print(f"  build and tune          {result['build_and_tune_s']:9.1f} s")
            print(f"  anonymous memory before {result['peak_anonymous_gib_before']:9.2f} GiB")
            print(f"    peak of building      {result['peak_anonymous_gib_build']:9.2f} GiB")
            print(f"    peak of searching     {result['peak_anonymous_gib_search']:9.2f} GiB")
            print(
                f"  one image               {result['image_ms']:9.1f} ms, {result['times_flat']:.0f} x Flat"
            )
            print(f"  recall@1                {result['recall_at_1']:9.4f}")
    peak = max(max(r["peak_anonymous_gib_build"], r["peak_anonymous_gib_search"]) for r in results)
    print(f"\nFlat, one image: {flat_ms:.0f} ms on the mapped file")
    print(
        f"target {_TARGET_GIB:g} GiB anonymous: {'met' if peak < _TARGET_GIB else 'missed'}, {peak:.2f} GiB"
    )
    if given.json:
        given.json.write_text(json.dumps({"flat_ms": flat_ms, "indexes": results}, indent=2))


if __name__ == "__main__":
    main()

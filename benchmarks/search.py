"""How much faster an index is than Flat on the same bank, at which recall, and what it does to the AUROC.

    python -m benchmarks.search [--only a,b,c,d] [--index ivf-pq ...] [--json FILE]
    python -m benchmarks.search --quick

a  the paper's bank, 3,136 x 1,792 (wide_resnet50_2, random weights, position means): at least 4 times Flat
   at recall@1 of 0.999. Whole inference and a training step: `benchmarks.stages --gamma 1 --index NAME`.
b  image AUROC of the same indexes on EfficientNet-Lite0's recommended bank, against Flat on that very bank,
   for both cell types on the dev and the test split of `cfa_index.split_cells`: within 0.05 points.
c  1,000,000 patches of EfficientNet-Lite0 at strides 4, 8, 16: at least 30 times Flat at recall@1 of 0.99.
   They are whitened, as in a model by default; `--init identity` takes the standardised features, whose
   neighbours are easier to find, since few directions hold most of their variance.
d  exact search on small banks against one matrix product of that shape: at most 1.15 times its time. The
   shapes are cut out of the bank of a.

Features are those of ELPV's solar cells. Bank, tuning and measured queries come from different images.
Recall is told for good and for defective images: an index tuned on good patches knows nothing of the others.
It is tuned to half of the misses that the target allows, since other images are missed a little more often.
An index is timed as it scores, its candidates' distances computed exactly, on the patches of one image.
Everything is timed in turn; a ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.machine import describe, median_ratio, time_in_turn
from benchmarks.search_accuracy import AccuracyRow, measure_accuracy
from benchmarks.search_cases import SearchCase, large_case, paper_case
from cfa_index import IndexSpec, MemoryBank, make_index, reuse_freed_memory, set_threads
from cfa_index.errors import BankError

CPU = torch.device("cpu")
SMALL = ("flat16", "pca-refine", "ivf", "ivf-sq8", "ivf-pq", "hnsw", "auto")
LARGE = ("ivf", "ivf-sq8", "ivf-pq")
SHAPES = ((784, 152), (3136, 152), (784, 448), (3136, 448), (3136, 1792))
"""Of d, rows and width of the bank; 1,792 with 3,136 queries, the others with the 784 of stride 8 too."""
K = 3
_TIE = 1e-5
_MISSES = 0.5
"""Share of the allowed misses that tuning may use up."""


@dataclass(frozen=True, kw_only=True)
class IndexRow:
    """One index on one bank.

    Attributes:
        index: what was asked for.
        made: what it became, tuned; or why it could not be made.
        times_flat: its throughput as a multiple of Flat's, 0 where it could not be made.
        ms: of the patches of one image.
        recall_good, recall_defective: recall@1 on queries that were not used for tuning.
        resident_bytes: of a search.
        build_s: to train, fill and tune it.
    """

    index: str
    made: str
    times_flat: float
    ms: float
    recall_good: float
    recall_defective: float
    resident_bytes: int
    build_s: float


def measure_indexes(
    case: SearchCase, names: Sequence[str], *, min_recall: float, rounds: int, seed: int
) -> list[IndexRow]:
    """Build, tune and time indexes over one bank, Flat first."""
    flat = MemoryBank(case.vectors, CPU)
    made: dict[str, tuple[MemoryBank, str, int, float]] = {"flat": (flat, "flat", case.vectors.nbytes, 0.0)}
    failed = []
    for name in names:
        started = time.perf_counter()
        try:
            choice = make_index(
                case.vectors,
                IndexSpec(factory=name, min_recall=1 - _MISSES * (1 - min_recall)),
                case.tuning,
                k=K,
                patches_per_image=case.patches_per_image,
                seed=seed,
            )
        except BankError as error:
            failed.append(_failure(name, str(error)))
            continue
        seconds = time.perf_counter() - started
        bank = flat if choice.index is None else flat.with_index(choice.index)
        made[name] = (bank, choice.state.describe(), choice.state.resident_bytes, seconds)
        print(f"  {name}: {choice.state.describe()}, made in {seconds:.1f} s", flush=True)
    truths = [_nearest(flat, queries) for queries in (case.good, case.defective)]
    image = torch.from_numpy(case.good[np.arange(case.patches_per_image) % len(case.good)])
    seconds_of = time_in_turn({name: _search(bank, image) for name, (bank, *_) in made.items()}, rounds)
    rows = []
    for name, (bank, described, resident, built) in made.items():
        recalls = [
            recall_at_1(_nearest(bank, queries), truth)
            for queries, truth in zip((case.good, case.defective), truths, strict=True)
        ]
        rows.append(
            IndexRow(
                index=name,
                made=described,
                times_flat=median_ratio(seconds_of["flat"], seconds_of[name]),
                ms=1000 * statistics.median(seconds_of[name]),
                recall_good=recalls[0],
                recall_defective=recalls[1],
                resident_bytes=resident,
                build_s=built,
            )
        )
    return [*rows, *failed]


def recall_at_1(found: NDArray[np.float32], nearest: NDArray[np.float32]) -> float:
    """Share of queries whose nearest memory was found, by squared distances (n,); ties are no misses."""
    return float((found <= nearest * (1 + _TIE) + np.finfo(np.float32).tiny).mean())


def best_of(rows: Sequence[IndexRow], min_recall: float) -> IndexRow | None:
    """The fastest index that finds enough on good images it was not tuned on; Flat does not count."""
    enough = [row for row in rows if row.index != "flat" and row.times_flat and row.recall_good >= min_recall]
    return max(enough, key=lambda row: row.times_flat, default=None)


def index_table(rows: Sequence[IndexRow]) -> str:
    """The rows as Markdown."""
    lines = [
        "| index | x Flat | ms an image | recall@1 good | recall@1 defective | MiB | s to make | made |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.index} | {row.times_flat:.2f} | {row.ms:.2f} | {row.recall_good:.4f} | "
        f"{row.recall_defective:.4f} | {row.resident_bytes / 2**20:.1f} | {row.build_s:.1f} | {row.made} |"
        for row in rows
    ]
    return "\n".join(lines)


def accuracy_table(rows: Sequence[AccuracyRow]) -> str:
    """The rows as Markdown; differences in points."""
    lines = ["| cells | split | index | AUROC % | - Flat, points | made |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row.cells} | {row.split} | {row.index} | {100 * row.auroc:.3f} | "
        f"{100 * row.difference:+.4f} | {row.made} |"
        for row in rows
    ]
    return "\n".join(lines)


def measure_products(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], rounds: int
) -> list[dict[str, Any]]:
    """Exact search on banks cut out of one, against the matrix product of all queries with all memories."""
    found = []
    for memories, width in SHAPES:
        if memories > len(vectors) or width > vectors.shape[1]:
            continue
        bank = MemoryBank(np.ascontiguousarray(vectors[:memories, :width]), CPU)
        for count in (784, 3136):
            if count > len(queries) or (count < 3136 and width > 448):
                continue
            x = torch.from_numpy(np.ascontiguousarray(queries[:count, :width]))
            transposed, out = bank.tensor.T, torch.empty(count, memories)
            jobs: dict[str, Callable[[], object]] = {"product": partial(torch.mm, x, transposed, out=out)}
            for k in (1, 3):
                jobs[f"k {k}"] = partial(bank.search, x, k)
                jobs[f"k {k}, exact"] = partial(bank.search, x, k, exact=True)
            seconds = time_in_turn(jobs, rounds)
            found.append(
                {
                    "memories": memories,
                    "width": width,
                    "queries": count,
                    "product_ms": 1000 * statistics.median(seconds["product"]),
                    **{
                        name: median_ratio(values, seconds["product"])
                        for name, values in seconds.items()
                        if name != "product"
                    },
                }
            )
    return found


def product_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    names = ("k 1", "k 1, exact", "k 3", "k 3, exact")
    lines = [f"| bank | queries | product, ms | {' | '.join(names)} |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {row['memories']} x {row['width']} | {row['queries']} | {row['product_ms']:.2f} | "
        + " | ".join(f"{row[name]:.2f}" for name in names)
        + " |"
        for row in rows
    ]
    return "\n".join(lines)


def _failure(name: str, reason: str) -> IndexRow:
    return IndexRow(
        index=name,
        made=reason.replace("|", "/"),
        times_flat=0.0,
        ms=0.0,
        recall_good=0.0,
        recall_defective=0.0,
        resident_bytes=0,
        build_s=0.0,
    )


def _search(bank: MemoryBank, queries: torch.Tensor) -> Callable[[], object]:
    return partial(bank.search, queries, K, exact=True)


def _nearest(bank: MemoryBank, queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n,) squared distances of the nearest memory that a bank finds."""
    found: NDArray[np.float32] = (
        bank.search(torch.from_numpy(queries), K, exact=True).sq_distances[:, 0].numpy()
    )
    return found


def _verdict(rows: Sequence[IndexRow], min_recall: float, target: float) -> str:
    best = best_of(rows, min_recall)
    if best is None:
        return f"target {target:g} x Flat at recall@1 {min_recall:g}: no index finds enough"
    word = "met" if best.times_flat >= target else "missed"
    return (
        f"target {target:g} x Flat at recall@1 {min_recall:g}: {word}, {best.index} {best.times_flat:.1f} x"
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="a,b,c,d", help="some of a,b,c,d")
    parser.add_argument(
        "--index", action="append", help="a short name or a FAISS factory string; may be repeated"
    )
    parser.add_argument("--memories", type=int, default=1_000_000, help="of c")
    parser.add_argument("--init", choices=["whiten", "identity"], default="whiten", help="descriptor of c")
    parser.add_argument("--queries", type=int, default=2048, help="of c, of each of the three sets")
    parser.add_argument("--cells", choices=["mono", "poly"], action="append", help="of b; default both")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="small banks and few images: proves the way")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    parts = given.only.split(",")
    if unknown := set(parts) - set("abcd"):
        parser.error(f"--only takes some of a,b,c,d, not {', '.join(sorted(unknown))}")
    set_threads(given.threads)
    reuse_freed_memory()
    print(describe(given.seed, only=given.only, k=K, rounds=given.rounds, quick=given.quick), flush=True)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "a" in parts or "d" in parts:
            case = paper_case(
                folder, size_px=128 if given.quick else 224, images=4 if given.quick else 24, seed=given.seed
            )
        if "a" in parts:
            print(f"\na: {len(case.vectors)} x {case.vectors.shape[1]}", flush=True)
            rows = measure_indexes(
                case, given.index or SMALL, min_recall=0.999, rounds=given.rounds, seed=given.seed
            )
            results["a"] = [asdict(row) for row in rows]
            print(f"{index_table(rows)}\n{_verdict(rows, 0.999, 4)}", flush=True)
        if "d" in parts:
            results["d"] = measure_products(case.vectors, case.good, given.rounds * 3)
            print(f"\nd: times one matrix product\n{product_table(results['d'])}", flush=True)
        if "b" in parts:
            found = [
                row
                for cells in given.cells or ["mono", "poly"]
                for row in measure_accuracy(
                    cells,
                    given.index or SMALL,
                    folder=folder / cells,
                    most_images=24 if given.quick else None,
                    seed=given.seed,
                )
            ]
            results["b"] = [asdict(row) for row in found]
            print(f"\nb: image AUROC, one bank\n{accuracy_table(found)}", flush=True)
        if "c" in parts:
            case = large_case(
                folder,
                memories=20_000 if given.quick else given.memories,
                queries=given.queries,
                seed=given.seed,
                init=given.init,
            )
            print(f"\nc: {len(case.vectors)} x {case.vectors.shape[1]}, {given.init}", flush=True)
            rows = measure_indexes(
                case, given.index or LARGE, min_recall=0.99, rounds=min(given.rounds, 3), seed=given.seed
            )
            results["c"] = [asdict(row) for row in rows]
            print(f"{index_table(rows)}\n{_verdict(rows, 0.99, 30)}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

"""cfa-index against what one would pick instead, on the same features, in one run.

    pip install '.[bench]'     # hnswlib, usearch, scikit-learn
    python -m benchmarks.peers [--memories 3136 --memories 100000] [--without usearch] [--quick]
        [--autofaiss-python ENV/bin/python] [--anomalib-python ENV/bin/python]

autofaiss (numpy 1.26, pyarrow below 22) and anomalib want environments of their own, and are called in them.
Features: patches of the ELPV cells, EfficientNet-Lite0 at strides 4, 8 and 16 (D = 176), whitened as by
default; the bank is random patches of good images. Tuned on other good images to a recall@1 of 0.99: our
indexes by their own tuning, hnswlib and usearch by the least ef that reaches it. autofaiss chooses and tunes
by itself, within twice the bytes of the vectors. Recall is measured on a third set of good images, and on
defective ones. One image is 3,136 queries, k is 3. `x Flat` is the throughput as a ratio to our exact search,
measured in turn; of another process, by way of one matrix product of that shape in each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.machine import describe, time_in_turn
from benchmarks.search_cases import SearchCase, large_case
from cfa_index import MemoryBank, exact_sq_distances, make_index, recall_at, set_threads
from cfa_index.errors import BankError
from cfa_index.specs import IndexSpec

K, RECALL = 3, 0.99
OURS = ("flat", "pca-refine", "ivf", "ivf-sq8", "ivf-pq", "hnsw", "auto")
PEERS = ("torch", "scikit-learn", "hnswlib", "usearch", "autofaiss", "anomalib")
_EFS = (8, 16, 32, 64, 128, 256, 512, 1024)
Ids = NDArray[np.int64]
Search = Callable[[NDArray[np.float32]], Ids]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something that finds the three nearest rows of a bank."""

    name: str
    search: Search
    build_s: float
    bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table; recalls of another process are of the timed image alone."""

    name: str
    times_flat: float
    image_ms: float
    build_s: float
    mib: float | None
    recall_good: float
    recall_defective: float | None


def ours(case: SearchCase, name: str, seed: int) -> Contender:
    """One of this project's indexes."""
    started = time.perf_counter()
    choice = make_index(
        case.vectors,
        IndexSpec(factory=name, min_recall=RECALL),
        case.tuning,
        k=K,
        patches_per_image=case.patches_per_image,
        seed=seed,
    )
    bank = MemoryBank(case.vectors, torch.device("cpu"), choice.index)
    return Contender(
        name=f"cfa-index {'auto: ' if name == 'auto' else ''}{choice.state.describe()}",
        search=lambda xq: bank.search(torch.from_numpy(xq), K, exact=True).ids.numpy(),
        build_s=time.perf_counter() - started,
        bytes=choice.state.resident_bytes,
    )


def brute_torch(case: SearchCase) -> Contender:
    """Distances by one matrix product, then topk."""
    xb = torch.from_numpy(case.vectors)
    norms = xb.square().sum(dim=1)

    def search(xq: NDArray[np.float32]) -> Ids:
        parts = [
            torch.addmm(norms, part, xb.T, alpha=-2).topk(K, dim=1, largest=False).indices
            for part in torch.from_numpy(xq).chunk(-(-len(xq) // 512))
        ]
        return torch.cat(parts).numpy()

    return Contender(
        name=f"torch {torch.__version__}, addmm and topk",
        search=search,
        build_s=0.0,
        bytes=case.vectors.nbytes,
    )


def brute_sklearn(case: SearchCase) -> Contender:
    """scikit-learn's NearestNeighbors, brute force: its trees are slower in 176 dimensions."""
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(case.vectors)
    return Contender(
        name=f"scikit-learn {version('scikit-learn')}, brute",
        search=lambda xq: found.kneighbors(xq, return_distance=False),
        build_s=0.0,
        bytes=case.vectors.nbytes,
    )


def graph_hnswlib(case: SearchCase, folder: Path, threads: int, seed: int) -> Contender:
    """hnswlib, M = 32."""
    import hnswlib

    started = time.perf_counter()
    index = hnswlib.Index(space="l2", dim=case.vectors.shape[1])
    index.init_index(max_elements=len(case.vectors), M=32, ef_construction=80, random_seed=seed)
    index.set_num_threads(threads)
    index.add_items(case.vectors)

    def search(xq: NDArray[np.float32]) -> Ids:
        return np.asarray(index.knn_query(xq, k=K)[0]).astype(np.int64)

    ef = least_ef(case, index.set_ef, search)
    index.save_index(str(folder / "hnswlib"))
    return Contender(
        name=f"hnswlib {version('hnswlib')} (M 32, ef {ef})",
        search=search,
        build_s=time.perf_counter() - started,
        bytes=(folder / "hnswlib").stat().st_size,
    )


def graph_usearch(case: SearchCase, threads: int) -> Contender:
    """usearch, connectivity 32, in single precision."""
    from usearch.index import Index

    started = time.perf_counter()
    index = Index(ndim=case.vectors.shape[1], metric="l2sq", dtype="f32", connectivity=32, expansion_add=80)
    index.add(np.arange(len(case.vectors)), case.vectors, threads=threads)

    def set_ef(ef: int) -> None:
        setattr(index, "expansion_search", ef)  # noqa: B010, its stub says read-only; it is not

    def search(xq: NDArray[np.float32]) -> Ids:
        return np.asarray(index.search(xq, K, threads=threads).keys).astype(np.int64).reshape(-1, K)

    ef = least_ef(case, set_ef, search)
    return Contender(
        name=f"usearch {version('usearch')} (connectivity 32, expansion {ef})",
        search=search,
        build_s=time.perf_counter() - started,
        bytes=int(index.serialized_length),
    )


def least_ef(case: SearchCase, set_ef: Callable[[int], None], search: Search) -> int:
    """The first of `_EFS` that finds enough on the tuning queries, else the last; it is left set."""
    truth = Truth(case, case.tuning)
    for ef in _EFS:
        set_ef(ef)
        if truth.recall(search(case.tuning)) >= RECALL:
            break
    return ef


class Truth:
    """Queries and the exact distances of their nearest rows."""

    def __init__(self, case: SearchCase, queries: NDArray[np.float32]) -> None:
        self.bank = MemoryBank(case.vectors, torch.device("cpu"))
        self.queries = torch.from_numpy(queries)
        self.nearest = self.bank.search(self.queries, K, exact=True).sq_distances.numpy()

    def recall(self, ids: Ids) -> float:
        """recall@1 of what was found, by exact distances."""
        found = exact_sq_distances(self.queries[: len(ids)], self.bank.tensor, torch.from_numpy(ids.copy()))
        first, _ = recall_at(found.sort(dim=1).values.numpy(), self.nearest[: len(ids)], 1)
        return float(first.mean())


def contenders(
    case: SearchCase, names: Sequence[str], folder: Path, threads: int, seed: int
) -> Iterator[Contender]:
    """Those of this process, built in turn; one that is not installed is a line."""
    makers: dict[str, Callable[[], Contender]] = {
        "torch": lambda: brute_torch(case),
        "scikit-learn": lambda: brute_sklearn(case),
        "hnswlib": lambda: graph_hnswlib(case, folder, threads, seed),
        "usearch": lambda: graph_usearch(case, threads),
    }
    for name in OURS:
        try:
            yield ours(case, name, seed)
        except BankError as error:
            print(f"cfa-index {name}: {error}")
    for name in names:
        if name not in makers:
            continue
        try:
            yield makers[name]()
        except (ImportError, PackageNotFoundError):
            print(f"{name}: not installed; pip install '.[bench]'")


def elsewhere(peer: str, python: Path, folder: Path, threads: int, rounds: int) -> Iterator[dict[str, Any]]:
    """The searches of a peer in its own environment."""
    script = Path(__file__).with_name("peers_elsewhere.py")
    done = subprocess.run(
        [str(python), str(script), peer, str(folder), str(threads), str(rounds)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        print(f"{peer}: {last[0]}")
    for line in done.stdout.splitlines():
        if line.startswith('{"name"'):
            yield json.loads(line)


def compare(
    case: SearchCase,
    names: Sequence[str],
    environments: dict[str, Path | None],
    *,
    threads: int,
    rounds: int,
    seed: int,
) -> list[Row]:
    """All contenders over one bank."""
    image = np.ascontiguousarray(case.good[: case.patches_per_image])
    good, defective = Truth(case, case.good), Truth(case, case.defective)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        field = list(contenders(case, names, folder, threads, seed))
        xq, xb = torch.from_numpy(image), torch.from_numpy(case.vectors)
        jobs: dict[str, Callable[[], object]] = {one.name: partial(one.search, image) for one in field}
        jobs["product"] = partial(torch.matmul, xq, xb.T)
        seconds = {name: statistics.median(runs) for name, runs in time_in_turn(jobs, rounds).items()}
        flat = seconds[field[0].name]
        rows = [
            Row(
                name=one.name,
                times_flat=flat / seconds[one.name],
                image_ms=1000 * seconds[one.name],
                build_s=one.build_s,
                mib=None if one.bytes is None else one.bytes / 2**20,
                recall_good=good.recall(one.search(case.good)),
                recall_defective=defective.recall(one.search(case.defective)),
            )
            for one in field
        ]
        np.save(folder / "bank.npy", case.vectors)
        np.save(folder / "image.npy", image)
        for peer in ("autofaiss", "anomalib"):
            python = environments[peer]
            if peer not in names:
                continue
            if python is None:
                print(f"{peer}: no environment; make one, pip install {peer}, and give --{peer}-python")
                continue
            for found in elsewhere(peer, python, folder, threads, rounds):
                here = found["search_s"] / found["product_s"] * seconds["product"]
                rows.append(
                    Row(
                        name=found["name"],
                        times_flat=flat / here,
                        image_ms=1000 * found["search_s"],
                        build_s=found["build_s"],
                        mib=None if found["bytes"] is None else found["bytes"] / 2**20,
                        recall_good=good.recall(np.array(found["ids"], dtype=np.int64)),
                        recall_defective=None,
                    )
                )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| | x Flat | ms an image | s to make | MiB | recall@1 good | defective |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mib = "-" if row.mib is None else f"{row.mib:.2f}"
        defective = "-" if row.recall_defective is None else f"{row.recall_defective:.4f}"
        lines.append(
            f"| {row.name} | {row.times_flat:.2f} | {row.image_ms:.1f} | {row.build_s:.1f} | {mib} "
            f"| {row.recall_good:.4f} | {defective} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--memories", type=int, action="append", help="may be repeated [default: 3136, 100000]"
    )
    parser.add_argument("--without", action="append", default=[], choices=PEERS)
    parser.add_argument("--autofaiss-python", type=Path)
    parser.add_argument("--anomalib-python", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="3,136 memories, one round")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    set_threads(given.threads)
    sizes = [3136] if given.quick else given.memories or [3136, 100_000]
    rounds = 1 if given.quick else given.rounds
    print(describe(given.seed, memories=sizes, rounds=rounds, k=K, recall=RECALL))
    names = [name for name in PEERS if name not in given.without]
    environments = {"autofaiss": given.autofaiss_python, "anomalib": given.anomalib_python}
    results = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            case = large_case(Path(folder), memories=size, queries=6272, seed=given.seed)
        rows = compare(case, names, environments, threads=given.threads, rounds=rounds, seed=given.seed)
        results[size] = [asdict(row) for row in rows]
        print(f"\n{size} memories of {case.vectors.shape[1]} dimensions\n\n{table(rows)}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

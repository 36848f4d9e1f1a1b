"""The searches of peers that need an environment of their own; called by `benchmarks.peers`.

    PYTHON benchmarks/peers_elsewhere.py autofaiss FOLDER THREADS ROUNDS
    PYTHON benchmarks/peers_elsewhere.py anomalib FOLDER THREADS ROUNDS

FOLDER holds bank.npy and image.npy, float32. A JSON line a search goes to standard output, with the time of
one matrix product of that shape, so that times of two processes can be compared.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


def timed(rounds: int, *jobs: Callable[[], Any]) -> list[float]:
    """Median seconds of each job, called in turn after one call to warm up."""
    for job in jobs:
        job()
    seconds: list[list[float]] = [[] for _ in jobs]
    for _ in range(rounds):
        for kept, job in zip(seconds, jobs, strict=True):
            started = time.perf_counter()
            job()
            kept.append(time.perf_counter() - started)
    return [statistics.median(kept) for kept in seconds]


def report(name: str, seconds: list[float], ids: Any, *, build_s: float, size: int | None) -> None:
    """One line of JSON."""
    print(
        json.dumps(
            {
                "name": name,
                "search_s": seconds[0],
                "product_s": seconds[1],
                "build_s": build_s,
                "bytes": size,
                "ids": np.asarray(ids)[:, :3].tolist(),
            }
        ),
        flush=True,
    )


def autofaiss(bank: Any, image: Any, folder: Path, threads: int, rounds: int) -> None:
    """What autofaiss chooses when it may use as much memory as the vectors do."""
    import faiss
    from autofaiss import build_index

    faiss.omp_set_num_threads(threads)
    started = time.perf_counter()
    index, info = build_index(
        bank,
        save_on_disk=False,
        metric_type="l2",
        max_index_memory_usage=f"{max(4, 2 * bank.nbytes >> 20)}MB",
        current_memory_available="8G",
        nb_cores=threads,
        verbose=50,
    )
    build_s = time.perf_counter() - started
    seconds = timed(rounds, lambda: index.search(image, 3), lambda: image @ bank.T)
    target = folder / "autofaiss.index"
    faiss.write_index(index, str(target))
    name = f"autofaiss {version('autofaiss')} ({info['index_key'] if info else type(index).__name__})"
    report(name, seconds, index.search(image, 3)[1], build_s=build_s, size=target.stat().st_size)


def anomalib(bank: Any, image: Any, folder: Path, threads: int, rounds: int) -> None:
    """The searches inside anomalib's PatchCore and CFA, on vectors that are given."""
    import torch
    from anomalib.models.image.cfa.torch_model import CfaModel
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    del folder
    torch.set_num_threads(threads)
    memories, queries = torch.from_numpy(bank), torch.from_numpy(image)
    patchcore: Any = PatchcoreModel.__new__(PatchcoreModel)
    torch.nn.Module.__init__(patchcore)
    patchcore.register_buffer("memory_bank", memories)
    cfa: Any = CfaModel.__new__(CfaModel)
    torch.nn.Module.__init__(cfa)
    cfa.memory_bank = memories.T.contiguous()

    def of_patchcore() -> Any:
        return patchcore.nearest_neighbors(embedding=queries, n_neighbors=3)[1]

    def of_cfa() -> Any:
        return cfa.compute_distance(queries[None])[0].sqrt().topk(3, dim=1, largest=False).indices

    with torch.inference_mode():
        for name, search in (("PatchCore's", of_patchcore), ("CFA's", of_cfa)):
            seconds = timed(rounds, search, lambda: queries @ memories.T)
            report(
                f"anomalib {version('anomalib')}, {name} search",
                seconds,
                search(),
                build_s=0.0,
                size=bank.nbytes,
            )


def main() -> None:
    """Run one peer."""
    peer, folder, threads, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    bank, image = np.load(folder / "bank.npy"), np.load(folder / "image.npy")
    {"autofaiss": autofaiss, "anomalib": anomalib}[peer](bank, image, folder, threads, rounds)


if __name__ == "__main__":
    main()

"""From an index as it was built to one that finds enough: nprobe, efSearch and the shortlist, by measuring."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index.bank.cards import Bank
from cfa_index.bank.exact import exact_sq_distances
from cfa_index.bank.index import SearchIndex, tunable
from cfa_index.bank.memory import MemoryBank
from cfa_index.bank.neighbors import Neighbors
from cfa_index.errors import BankError

_LONGEST_SHORTLIST = 256
_TIE = 1e-5
"""Relative: a memory this little farther than the nearest is as good."""
_LATENCY_RUNS, _LATENCY_SECONDS = 5, 2.0
"""A slow search is not repeated: it need not be known that well."""


def recall_at(
    found: NDArray[np.float32], nearest: NDArray[np.float32], k: int
) -> tuple[NDArray[np.bool_], float]:
    """How well a search found the nearest, judged by exact distances, so that ties are no misses.

    Args:
        found: (n, >=k) squared distances of what was returned, ascending.
        nearest: (n, >=k) of the true neighbours, ascending.
        k: of recall@k.

    Returns:
        (n,) whether the nearest was found, and the mean share of the first k found.
    """
    limit = nearest * (1 + _TIE) + np.finfo(np.float32).tiny
    return found[:, 0] <= limit[:, 0], float((found[:, :k] <= limit[:, k - 1 : k]).mean())


class Truth:
    """Queries and the exact distances of their nearest memories.

    Args:
        vectors: (M, D') float32, may be memory mapped.
        queries: (n, D') float32, a first half for tuning and a second for measuring.
        k: how many neighbours a model asks for.
        patches_per_image: queries of one image, for the latency.
        flat: a bank of these vectors, on the device to measure on; None for one on the CPU. It answers as Flat.

    Raises:
        BankError: fewer than two queries.
    """

    def __init__(
        self,
        vectors: NDArray[np.float32],
        queries: NDArray[np.float32],
        *,
        k: int,
        patches_per_image: int,
        flat: Bank | None = None,
    ) -> None:
        if len(queries) < 2:
            raise BankError(
                expected="at least 2 good patches to measure an index with",
                got=str(len(queries)),
                remedy="use --index flat, or give more good images",
            )
        self.vectors = vectors
        self.k = min(k, len(vectors))
        self.patches_per_image = patches_per_image
        self.flat = (flat or MemoryBank(vectors, torch.device("cpu"))).as_flat()
        self.queries = torch.from_numpy(np.ascontiguousarray(queries)).to(self.flat.device)
        nearest = self.flat.search(self.queries, self.k, exact=True).sq_distances
        self.nearest: NDArray[np.float32] = nearest.cpu().numpy()

    @property
    def half(self) -> int:
        """Queries before it tune, those from it on measure."""
        return len(self.queries) // 2

    def where(self, index: SearchIndex) -> Truth:
        """This truth on the device of an index: on the CPU where FAISS has none of its kind on a card."""
        if index.device == self.flat.device:
            return self
        queries = self.queries.cpu().numpy()
        return Truth(self.vectors, queries, k=self.k, patches_per_image=self.patches_per_image)

    def measure(self, index: SearchIndex) -> None:
        """Put into the index's state the recall of the second half, its bytes, and the latency of an image."""
        bank = self.flat.with_index(index)
        part = self.queries[self.half :]
        found = bank.search(part, self.k, exact=True).sq_distances.cpu().numpy()
        first, at_k = recall_at(found, self.nearest[self.half :], self.k)
        index.state = replace(
            index.state,
            recall_at_1=float(first.mean()),
            recall_at_k=at_k,
            k=self.k,
            queries=len(part),
            resident_bytes=index.resident_bytes(),
            latency_ms=self.latency_ms(bank),
        )

    def latency_ms(self, bank: MemoryBank) -> float:
        """Median milliseconds of a search for the patches of one image."""
        rows = torch.arange(self.patches_per_image, device=self.queries.device)
        image = self.queries[rows % len(self.queries)]
        _ended(bank.search(image, self.k, exact=True))
        runs: list[float] = []
        while len(runs) < _LATENCY_RUNS and sum(runs) < _LATENCY_SECONDS:
            started = time.perf_counter()
            _ended(bank.search(image, self.k, exact=True))
            runs.append(time.perf_counter() - started)
        return 1000 * statistics.median(runs)


def _ended(found: Neighbors) -> None:
    """Wait until a search has ended on its device."""
    found.ids[:1].cpu()


def tune(index: SearchIndex, truth: Truth, min_recall: float) -> bool:
    """Set the fastest parameters and shortlist that find enough on the first half of the queries.

    For every value of the one parameter, the shortlist needed is read off one search for the longest. The
    pair that answers fastest is kept; where none finds enough, that which finds most.

    Returns:
        Whether it finds enough.
    """
    queries = truth.queries[: truth.half]
    bank = truth.flat.with_index(index)
    nearest = truth.nearest[: len(queries)]
    most = min(max(_LONGEST_SHORTLIST, truth.k), len(truth.vectors))
    settings = _settings(tunable(index.faiss_index, on_card=index.device.type != "cpu"))
    enough: list[tuple[float, dict[str, int], int]] = []
    best: tuple[float, dict[str, int], int] = (-1.0, settings[-1], most)
    for setting in settings:
        longest = max(min(most, setting.get("efSearch", most)), truth.k)  # a walk names no more than it keeps
        index.tuned(setting, longest)
        recalls = _recalls_by_shortlist(index, truth, queries, nearest, longest)
        fits = [length for length, recall in recalls if recall >= min_recall]
        length, recall = (fits[0], min_recall) if fits else recalls[-1]
        if recall > best[0] and not fits:
            best = (recall, setting, length)
        if fits:
            index.tuned(setting, length)
            enough.append((truth.latency_ms(bank), setting, length))
            if len(enough) > 1 and enough[-1][0] > 1.2 * min(enough)[0]:
                break  # ever more to look at: it only gets slower
    _, setting, length = min(enough, key=lambda one: one[0]) if enough else best
    index.tuned(setting, length)
    return bool(enough)


def _recalls_by_shortlist(
    index: SearchIndex,
    truth: Truth,
    queries: torch.Tensor,
    nearest: NDArray[np.float32],
    most: int,
) -> list[tuple[int, float]]:
    """Recall@1 at each length of the shortlist, ascending."""
    _, ids = index.candidates(queries, most)
    distances = exact_sq_distances(queries, truth.flat.tensor, ids.clamp_min(0))
    distances = distances.masked_fill(ids < 0, torch.inf)
    lengths = [truth.k, *(1 << power for power in range(1, 12) if truth.k < 1 << power <= most)]
    recalls = []
    for length in lengths:
        found = distances[:, :length].amin(dim=1, keepdim=True).cpu().numpy()
        recalls.append((length, float(recall_at(found, nearest[:, :1], 1)[0].mean())))
    assert all(a <= b for (_, a), (_, b) in pairwise(recalls))
    return recalls


def _settings(tunables: dict[str, int]) -> list[dict[str, int]]:
    """Values to try, from the fastest: powers of two and what lies between, up to the most."""
    for name, most in tunables.items():
        first = 1 if name == "nprobe" else 8
        steps = sorted({(2 + half) * first << power >> 1 for power in range(13) for half in (0, 1)})
        return [{name: value} for value in [*(step for step in steps if step < most), most]]
    return [{}]

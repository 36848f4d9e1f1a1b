"""Greedy k-centre, PatchCore's way to a coreset: the next pick is the farthest from all picks so far.

Done plainly, each pick reads every point once, and the bandwidth of the memory sets the pace. Here one
reading serves hundreds of picks. A point's distance to its nearest pick only ever falls, so among the
points that were farthest at the last reading the plain algorithm can run on its own, as long as its
farthest point is no nearer than the farthest outside the pool was. Then one pass of matrix products
brings all points up to date. The picks are those of the plain algorithm.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.compress.gallery import check_enough

_POOL = 4096
_MOST_PICKS = 512
"""Of one pass, so that progress shows."""
_BLOCK = 8192
"""Points a matrix product; those of half precision are widened a block at a time."""
_CHOSEN = -1.0
"""In place of a pick's own squared distance, below all others: it is never picked again."""


def greedy_k_centre(
    points: Tensor,
    k: int,
    *,
    seed: int,
    covered: Tensor | None = None,
    pool: int = _POOL,
    on_picks: Callable[[int], None] | None = None,
    on_estimate: Callable[[float], None] | None = None,
) -> NDArray[np.int64]:
    """Farthest-point sampling: (k,) int64 rows of `points`, in the order picked, all different.

    The first row is drawn by the seed, each next one is the farthest from its nearest picked row. Distances
    are the expansion of matrix products in float32; rows whose distances tie within its rounding may be
    picked in either order.

    Args:
        points: (n, d) float16 or float32 on the CPU.
        k: at most n.
        seed: of the first row.
        covered: (n,) float32, squared distance of each row to what covers it already, such as centres of
            k-means; the first pick is then the row that is covered worst.
        pool: candidates held at a time; it decides the speed and not the result.
        on_picks: called after each pass with the number of new picks.
        on_estimate: called once, after the first pass, with the seconds that all k may take.

    Raises:
        BankError: k is larger than n.
    """
    check_enough(k, len(points))
    starts = range(0, len(points), _BLOCK)
    norms = torch.cat([points[start : start + _BLOCK].float().square().sum(dim=1) for start in starts])
    picks: list[int] = []
    if covered is None:
        sq_distances = torch.full((len(points),), torch.inf)  # of each row to its nearest pick
        picks.append(int(np.random.default_rng(seed).integers(len(points))))
        _bring_up_to_date(sq_distances, points, norms, picks)
        if on_picks is not None:
            on_picks(1)
    else:
        sq_distances = covered.clone()
    while len(picks) < k:
        started = time.perf_counter()
        new = _pick_in_pool(sq_distances, points, norms, pool, min(k - len(picks), _MOST_PICKS))
        if len(picks) + len(new) < k:
            _bring_up_to_date(sq_distances, points, norms, new)
        if on_estimate is not None:
            on_estimate((time.perf_counter() - started) * k / len(new))
            on_estimate = None
        picks += new
        if on_picks is not None:
            on_picks(len(new))
    return np.array(picks, dtype=np.int64)


def _pick_in_pool(sq_distances: Tensor, points: Tensor, norms: Tensor, pool: int, most: int) -> list[int]:
    """The next rows that the plain algorithm would pick, at least one and at most `most`."""
    farthest, rows = sq_distances.topk(min(pool + 1, len(points)))
    bound = float(farthest[-1]) if len(rows) > pool else _CHOSEN  # of every row that is not in the pool
    farthest, rows = farthest[:pool], rows[:pool]
    candidates, candidate_norms = points[rows].float(), norms[rows]
    picked: list[int] = []
    while len(picked) < most:
        best = int(farthest.argmax())
        if float(farthest[best]) < bound:
            break
        picked.append(int(rows[best]))
        products = candidates @ candidates[best]
        to_best = (candidate_norms + candidate_norms[best]).sub_(products, alpha=2).clamp_(min=0)
        torch.minimum(farthest, to_best, out=farthest)
        farthest[best] = _CHOSEN
    return picked


def _bring_up_to_date(sq_distances: Tensor, points: Tensor, norms: Tensor, picks: list[int]) -> None:
    """Lower every row's squared distance to the nearest of some new picks, in place."""
    centres, centre_norms = points[picks].float(), norms[picks]
    for start in range(0, len(points), _BLOCK):
        part = slice(start, start + _BLOCK)
        block = points[part].float()
        nearest = torch.addmm(centre_norms, block, centres.T, alpha=-2).amin(dim=1)
        torch.minimum(sq_distances[part], nearest.add_(norms[part]).clamp_(min=0), out=sq_distances[part])
    sq_distances[picks] = _CHOSEN

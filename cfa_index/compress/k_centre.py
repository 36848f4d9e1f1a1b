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
from itertools import takewhile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.card_memory import has_room
from cfa_index.compress.gallery import check_enough
from cfa_index.footprint import points_footprint

_POOL = 4096
_MOST_PICKS = 512
"""Of one pass, so that progress shows."""
_UNSEEN = 32
"""Picks that are queued on a card before the host looks at them: with a look each it would have nothing to do meanwhile."""
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
    device: torch.device = torch.device("cpu"),
    pool: int = _POOL,
    on_picks: Callable[[int], None] | None = None,
    on_estimate: Callable[[float], None] | None = None,
) -> NDArray[np.int64]:
    """Farthest-point sampling: (k,) int64 rows of `points`, in the order picked, all different.

    The first row is drawn by the seed, each next one is the farthest from its nearest picked row. Distances
    are the expansion of matrix products in float32; rows whose distances tie within its rounding may be
    picked in either order.

    Args:
        points: (n, d) float16 or float32.
        k: at most n.
        seed: of the first row.
        covered: (n,) float32, squared distance of each row to what covers it already, such as centres of
            k-means; the first pick is then the row that is covered worst.
        device: where distances are computed; on the CPU where a card has no room for the points.
        pool: candidates held at a time; it decides the speed and not the result.
        on_picks: called after each pass with the number of new picks.
        on_estimate: called once, after the first pass, with the seconds that all k may take.

    Raises:
        BankError: k is larger than n.
    """
    check_enough(k, len(points))
    if not has_room(points_footprint(*points.shape, half_floats=points.dtype == torch.float16), device):
        device = torch.device("cpu")
    points = points.to(device)
    starts = range(0, len(points), _BLOCK)
    norms = torch.cat([points[start : start + _BLOCK].float().square().sum(dim=1) for start in starts])
    picks = torch.empty(0, dtype=torch.int64, device=device)
    if covered is None:
        sq_distances = torch.full_like(norms, torch.inf)  # of each row to its nearest pick
        picks = torch.full((1,), int(np.random.default_rng(seed).integers(len(points))), device=device)
        _bring_up_to_date(sq_distances, points, norms, picks)
        if on_picks is not None:
            on_picks(1)
    else:
        sq_distances = covered.to(device, copy=True)
    while len(picks) < k:
        started = time.perf_counter()
        new = _pick_in_pool(sq_distances, points, norms, pool, min(k - len(picks), _MOST_PICKS))
        if len(picks) + len(new) < k:
            _bring_up_to_date(sq_distances, points, norms, new)
        if on_estimate is not None:
            on_estimate((time.perf_counter() - started) * k / len(new))
            on_estimate = None
        picks = torch.cat([picks, new])
        if on_picks is not None:
            on_picks(len(new))
    chosen: NDArray[np.int64] = picks.cpu().numpy()
    return chosen


def _pick_in_pool(sq_distances: Tensor, points: Tensor, norms: Tensor, pool: int, most: int) -> Tensor:
    """The next rows that the plain algorithm would pick, at least one and at most `most`: int64 on the device."""
    farthest, rows = sq_distances.topk(min(pool + 1, len(points)))
    bound = float(farthest[-1]) if len(rows) > pool else _CHOSEN  # of every row that is not in the pool
    farthest, rows = farthest[:pool], rows[:pool]
    candidates, candidate_norms = points[rows].float(), norms[rows]
    at_once = 1 if points.device.type == "cpu" else _UNSEEN
    picked: list[Tensor] = []
    right = 0  # picks that are no nearer than the bound
    while right == len(picked) < most:
        heights = []
        for _ in range(min(at_once, most - right)):
            height, best = farthest.max(dim=0, keepdim=True)
            heights.append(height)
            picked.append(best)
            products = candidates @ candidates.index_select(0, best)[0]
            to_best = (candidate_norms + candidate_norms[best]).sub_(products, alpha=2).clamp_(min=0)
            torch.minimum(farthest, to_best, out=farthest)
            farthest.index_fill_(0, best, _CHOSEN)
        seen = torch.cat(heights).cpu().tolist()
        right += sum(1 for _ in takewhile(lambda height: not height < bound, seen))
    return rows[torch.cat(picked[:right])]


def _bring_up_to_date(sq_distances: Tensor, points: Tensor, norms: Tensor, picks: Tensor) -> None:
    """Lower every row's squared distance to the nearest of some new picks, in place."""
    centres, centre_norms = points[picks].float(), norms[picks]
    for start in range(0, len(points), _BLOCK):
        part = slice(start, start + _BLOCK)
        block = points[part].float()
        nearest = torch.addmm(centre_norms, block, centres.T, alpha=-2).amin(dim=1)
        torch.minimum(sq_distances[part], nearest.add_(norms[part]).clamp_(min=0), out=sq_distances[part])
    sq_distances.index_fill_(0, picks, _CHOSEN)

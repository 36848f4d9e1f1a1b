"""The bank's size against the throughput of its search, for each way that a card can search."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.gpu_clock import Budget, Clock, draw_patches, free_bytes
from benchmarks.search import recall_at_1
from cfa_index import CardSpec, IndexSpec, MemoryBank, half_footprint, make_index, memories_footprint
from cfa_index.errors import CardMemoryError, CfaIndexError

_MIN_RECALL = 0.99
_GROWTH = 12.0
"""How many times longer a bank of ten times the size is expected to take."""
_WORK_BYTES = 1 << 30
"""Left free beside a bank: FAISS's scratch memory, distances, what is drawn."""


@dataclass(frozen=True, kw_only=True)
class SizeRow:
    """One way to search one bank.

    Attributes:
        kind: flat, flat fp16, or an index by its short name.
        memories, width: M and D'.
        made: the index as it was tuned, or why there is none; then all figures below are 0.
        ms, low_ms, high_ms: of the patches of one image: median and quartiles.
        queries_per_s: patches a second.
        times_flat: throughput as a multiple of Flat's.
        recall: recall@1 against Flat, on queries that tuned nothing.
        device_bytes: that the bank takes on the card, as CUDA counts; 0 without one.
        estimated_bytes: the same as estimated before; None for an index, whose lists are not known before.
    """

    kind: str
    memories: int
    width: int
    made: str
    ms: float = 0.0
    low_ms: float = 0.0
    high_ms: float = 0.0
    queries_per_s: float = 0.0
    times_flat: float = 0.0
    recall: float = 0.0
    device_bytes: int = 0
    estimated_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class SizePlan:
    """What is measured.

    Attributes:
        sizes, widths: M and D'.
        patches: of an image.
        images: a batch, whose patches are one search.
        seed: of the draws and of k-means.
        indexes: beside Flat.
    """

    sizes: Sequence[int]
    widths: Sequence[int]
    patches: int
    images: int
    seed: int
    indexes: Sequence[str] = ("ivf", "ivf-sq8", "ivf-pq", "cagra")


def measure_sizes(clock: Clock, budget: Budget, plan: SizePlan) -> list[SizeRow]:
    """Every way at every size while time and memory last, smallest banks first, the time shared among the widths."""
    _nearest(MemoryBank(np.eye(2, dtype=np.float32), clock.device), torch.zeros(1, 2, device=clock.device))
    # FAISS has taken its scratch memory now: what a bank takes comes on top.
    rows: list[SizeRow] = []
    for done, width in enumerate(plan.widths):
        share = Budget(budget.left() / (len(plan.widths) - done))
        took: dict[str, float] = {}  # seconds of each way at the size before
        for memories in plan.sizes:
            case = f"{memories:,} x {width}"
            if why := too_large(clock.device, memories, width):
                share.skip(case, why)
            elif share.allows(case, _GROWTH * took.get("flat", 0.0)):
                try:
                    rows += _at_size(clock, share, plan, memories, width, took)
                except CardMemoryError as error:
                    share.skip(case, str(error))
        budget.left_out += share.left_out
    return rows


def _at_size(
    clock: Clock, budget: Budget, plan: SizePlan, memories: int, width: int, took: dict[str, float]
) -> list[SizeRow]:
    started = time.perf_counter()
    draw = partial(draw_patches, width=width, device=clock.device)
    vectors = draw(memories, seed=plan.seed).cpu().numpy()
    queries = draw(plan.patches * plan.images, seed=plan.seed + 1)
    empty = clock.used_bytes()
    flat = MemoryBank(vectors, clock.device)
    flat_bytes = clock.used_bytes() - empty
    nearest = _nearest(flat, queries)
    row = partial(_row, clock, plan, queries=queries, flat=flat, nearest=nearest)
    rows = [row("flat", flat, made="every distance", device_bytes=flat_bytes)]
    took["flat"] = time.perf_counter() - started
    kept = 0.0 if memories == max(plan.sizes) else _GROWTH * took["flat"]  # for Flat at the next size
    for kind in ("flat fp16", *plan.indexes):
        if not budget.allows(f"{kind}, {memories:,} x {width}", kept + _GROWTH * took.get(kind, 0.0)):
            continue
        started, before = time.perf_counter(), clock.used_bytes()
        try:
            bank, made = _searched_by(kind, flat, draw(plan.patches, seed=plan.seed + 2), plan)
        except CfaIndexError as error:
            rows.append(SizeRow(kind=kind, memories=memories, width=width, made=f"{error}".replace("|", "/")))
            continue
        shared = flat_bytes if bank.tensor is flat.tensor else 0
        rows.append(row(kind, bank, made=made, device_bytes=clock.used_bytes() - before + shared))
        took[kind] = time.perf_counter() - started
    return rows


def _searched_by(kind: str, flat: MemoryBank, tuning: Tensor, plan: SizePlan) -> tuple[MemoryBank, str]:
    """A bank that is searched in some way, and what it became. Raises BankError or DeviceError."""
    if kind == "flat fp16":
        return MemoryBank(flat.vectors, flat.device, card=CardSpec(storage="fp16")), "half floats, then exact"
    choice = make_index(
        flat.vectors,
        IndexSpec(factory=kind, min_recall=_MIN_RECALL),
        tuning.cpu().numpy(),
        k=1,
        patches_per_image=plan.patches,
        seed=plan.seed,
        flat=flat,
    )
    if choice.index is None:
        return flat, choice.state.describe()
    bank = flat.with_index(choice.index)
    made = choice.state.describe()
    there = bank.index is not None and bank.index.device.type == flat.device.type
    return bank, made if there else f"{made}: not on {flat.device}, searched exactly"


def _row(
    clock: Clock,
    plan: SizePlan,
    kind: str,
    bank: MemoryBank,
    *,
    made: str,
    device_bytes: int,
    queries: Tensor,
    flat: MemoryBank,
    nearest: NDArray[np.float32],
) -> SizeRow:
    times = clock.in_turn({"flat": _search(flat, queries), kind: _search(bank, queries)})
    own = times[kind]
    return SizeRow(
        kind=kind,
        memories=len(bank),
        width=bank.tensor.shape[1],
        made=made,
        ms=own.ms / plan.images,
        low_ms=1000 * own.low_s / plan.images,
        high_ms=1000 * own.high_s / plan.images,
        queries_per_s=own.rate(len(queries)),
        times_flat=times["flat"].median_s / own.median_s,
        recall=recall_at_1(_nearest(bank, queries), nearest),
        device_bytes=device_bytes,
        estimated_bytes=estimated_bytes(kind, len(bank), bank.tensor.shape[1]),
    )


def _search(bank: MemoryBank, queries: Tensor) -> Callable[[], object]:
    """As `score` searches: one neighbour, its distance exact."""
    return partial(bank.search, queries, 1, exact=True)


def _nearest(bank: MemoryBank, queries: Tensor) -> NDArray[np.float32]:
    """(n,) squared distances of the nearest memories that a bank finds."""
    found: NDArray[np.float32] = bank.search(queries, 1, exact=True).sq_distances[:, 0].cpu().numpy()
    return found


def estimated_bytes(kind: str, memories: int, width: int) -> int | None:
    """Of a bank that is searched exactly, on a card."""
    vectors, halves = memories_footprint(memories, width), half_footprint(memories, width)
    return {"flat": vectors.total, "flat fp16": (vectors + halves).total}.get(kind)


def too_large(device: torch.device, memories: int, width: int) -> str:
    """Why a bank is not tried; empty when it may be.

    The device holds Flat and, beside it, the bank of fp16 storage that is compared with it; the host the vectors.
    """
    flat, halved = (estimated_bytes(kind, memories, width) or 0 for kind in ("flat", "flat fp16"))
    for where, needed, free in (
        (f"on {device}", flat + halved + _WORK_BYTES, free_bytes(device)),
        ("on the host", flat + _WORK_BYTES, free_bytes(torch.device("cpu"))),
    ):
        if needed > free:
            return f"{needed / 2**30:.2f} GiB needed {where}, {free / 2**30:.2f} free"
    return ""


def size_table(rows: Sequence[SizeRow]) -> str:
    """The rows as Markdown."""
    lines = [
        "| bank | search | ms an image (quartiles) | queries/s | x Flat | recall@1 | MiB on the card | estimated | "
        "made |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.memories:,} x {row.width} | {row.kind} | {row.ms:.3g} ({row.low_ms:.3g}-{row.high_ms:.3g}) | "
        f"{row.queries_per_s:,.0f} | {row.times_flat:.2f} | {row.recall:.4f} | {row.device_bytes / 2**20:.1f} | "
        f"{'' if row.estimated_bytes is None else f'{row.estimated_bytes / 2**20:.1f}'} | {row.made} |"
        for row in rows
    ]
    return "\n".join(lines)
